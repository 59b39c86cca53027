"""Servers on this machine that answer as no good server would, each byte as it is written here."""

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread

Answer = Callable[[socket.socket, bytes], object]  # writes to a connection on which a request has come

SECRET = "s3cret"
HEAD = b"HTTP/1.1 200 OK\r\n"


@contextmanager
def serving(answer: Answer, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """Yield the address of a server, without its scheme; it speaks TLS with a context for it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = Thread(target=_accept, args=(listener, answer, context), daemon=True)
        accepting.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()


def _accept(listener: socket.socket, answer: Answer, context: ssl.SSLContext | None) -> None:
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            Thread(target=_answer, args=(connection, answer, context), daemon=True).start()


def _answer(connection: socket.socket, answer: Answer, context: ssl.SSLContext | None) -> None:
    with connection, suppress(OSError):
        secured = connection if context is None else context.wrap_socket(connection, server_side=True)
        with secured:
            answer(secured, secured.recv(1 << 16))


def saying(*parts: bytes) -> Answer:
    """Return an answer of these bytes."""
    return lambda connection, request: connection.sendall(b"".join(parts))


def file(contents: bytes, promised: int | None = None) -> Answer:
    """Return an answer that is a file, and that may promise another length."""
    length = len(contents) if promised is None else promised
    return saying(HEAD, f"Content-Length: {length}\r\n\r\n".encode(), contents)


def redirect(target: str, code: int = 302) -> Answer:
    """Return an answer that leads elsewhere."""
    return saying(f"HTTP/1.1 {code} Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode())


def without_end(head: bytes, block: bytes = bytes(1 << 16)) -> Answer:
    """Return an answer that never ends."""

    def answer(connection: socket.socket, request: bytes) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(block)

    return answer


def dripping(head: bytes, rest: bytes, seconds: float, pause: float = 0.02) -> Answer:
    """Return an answer of which, after its head, a byte comes now and then; after some time all of the rest does."""

    def answer(connection: socket.socket, request: bytes) -> None:
        connection.sendall(head)
        place, end = 0, time.monotonic() + seconds
        while time.monotonic() < end and place < len(rest):
            connection.sendall(rest[place : place + 1])
            place += 1
            time.sleep(pause)
        connection.sendall(rest[place:])

    return answer
