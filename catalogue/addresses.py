"""Answers from http and https addresses, and from no others, within a limit of time for all that a server does."""

import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, InvalidURL, responses
from io import BufferedReader, RawIOBase
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

ADDRESS_ERRORS = (OSError, HTTPException, ValueError)  # what reading an address raises

_SCHEMES = ("http", "https")
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 10
_LONGEST_SHOWN = 255  # characters of an address
_ERROR_NUMBER = re.compile(r"^\[Errno -?\d+\] ")


def is_address(text: str) -> bool:
    """Return whether a text, in place of a path, is an http or https address."""
    return text.lstrip()[:8].lower().startswith(("http://", "https://"))


class Clock:
    """The time that a server has, to be shared by all steps of an answer."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.restart()

    def restart(self) -> None:
        """Give all of the time once more."""
        self._end = time.monotonic() + self._seconds

    def left(self) -> float:
        """Return the seconds that are left. Raises TimeoutError where none are."""
        if (left := self._end - time.monotonic()) <= 0:
            raise TimeoutError
        return left


@contextmanager
def open_address(
    url: str, clock: Clock, *, method: str = "GET", headers: Mapping[str, str] | None = None
) -> Iterator[HTTPResponse]:
    """Yield the answer of a server, after redirects to other http and https addresses.

    Its head, and what is read of it, take no longer than `clock` says; looking up the name of the server is not
    counted. Raises one of ADDRESS_ERRORS, also while the answer is read; `reason_in_words` says what they mean.
    """
    opener = OpenerDirector()
    for handler in (
        ProxyHandler(),
        _TimedHandler(clock),
        _TimedTLSHandler(clock),
        HTTPErrorProcessor(),
        HTTPDefaultErrorHandler(),
        UnknownHandler(),  # of the scheme of a proxy
    ):
        opener.add_handler(handler)
    for _ in range(_MOST_REDIRECTS + 1):
        parts = urlsplit(url)
        if parts.scheme.lower() not in _SCHEMES:
            raise OSError(f"it leads to an address of {parts.scheme or 'no scheme'}, expected http or https")
        if "@" in parts.netloc:  # http.client would take it for a part of the name, and ask everyone for that
            raise OSError("it has a user or a password, which are not sent")
        address = quote(url, safe="!#$%&'()*+,/:;=?@[]~")  # as browsers do with spaces and letters beyond ASCII
        # Many servers refuse urllib's own name.
        request = Request(address, headers={"User-Agent": "twinlens", **(headers or {})}, method=method)
        try:
            answer = opener.open(request, timeout=clock.left())
        except HTTPError as error:
            error.close()  # it holds the connection; nobody reads on, since it might never end
            target = error.headers.get("Location")
            if error.code not in _REDIRECTS or not target:
                raise
            url = urljoin(url, target)
            continue
        with answer:
            yield answer
        return
    raise OSError(f"it leads from one address to another, more than {_MOST_REDIRECTS} times")


def shown_address(url: str) -> str:
    """Return an address as messages print it: without user, password and the values of its query, which open doors."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"{url.partition(':')[0]}:..."
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{'?...' if parts.query else ''}"
    return shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}..."


def reason_in_words(error: Exception, seconds: float) -> str:
    """Return why there is no answer, with nothing of what the server wrote and nothing of the address."""
    if isinstance(error, HTTPError):
        return f"HTTP Error {error.code}: {responses.get(error.code, 'unknown')}"
    reason = error.reason if isinstance(error, URLError) else error
    if isinstance(reason, TimeoutError):
        return f"it took more than {seconds:g} s"
    if isinstance(reason, InvalidURL | UnicodeError) or not isinstance(reason, str | OSError | HTTPException):
        return "it is no valid address"
    if isinstance(reason, HTTPException) and not isinstance(reason, OSError):
        return f"the server's answer is not HTTP ({type(reason).__name__})"
    return _ERROR_NUMBER.sub("", str(reason)) or type(reason).__name__


class _TimedReader(RawIOBase):
    """The bytes that a socket receives, as long as the clock runs."""

    def __init__(self, file: Any, connection: socket.socket, clock: Clock) -> None:
        self._file, self._socket, self._clock = file, connection, clock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._socket.settimeout(self._clock.left())
        count: int | None = self._file.readinto(buffer)
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class _TimedAnswer(HTTPResponse):
    def __init__(self, clock: Clock, connection: socket.socket, *arguments: Any, **settings: Any) -> None:
        super().__init__(connection, *arguments, **settings)
        file: Any = self.fp
        self.fp = BufferedReader(_TimedReader(file.detach(), connection, clock))


class _TimedConnection(HTTPConnection):
    def __init__(self, host: str, *, clock: Clock, **settings: Any) -> None:
        super().__init__(host, **settings)
        self._clock = clock
        self.response_class: Any = partial(_TimedAnswer, clock)

    def connect(self) -> None:
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        self.timeout = self._clock.left() / len(found)  # each of them may be tried
        super().connect()


class _TimedTLSConnection(_TimedConnection, HTTPSConnection):
    pass


class _TimedHandler(HTTPHandler):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def http_open(self, req: Request) -> Any:
        return self.do_open(partial(_TimedConnection, clock=self._clock), req)


class _TimedTLSHandler(HTTPSHandler):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def https_open(self, req: Request) -> Any:
        return self.do_open(partial(_TimedTLSConnection, clock=self._clock), req)
