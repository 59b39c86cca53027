"""Images and tars at addresses: of good servers, and of those that drip, lie, lead elsewhere or never end."""

import io
import re
import shutil
import ssl
import subprocess
import tarfile
from pathlib import Path

import pytest
from helpers.photographs import cat
from helpers.servers import HEAD, SECRET, Answer, dripping, file, redirect, saying, serving, without_end

from twinlens.catalogue.addresses import reason_in_words, shown_address
from twinlens.processing import image_download
from twinlens.processing.image_download import download_image
from twinlens.processing.image_input import open_image
from twinlens.training import load_pairs, shards
from twinlens.training.streams import TarStream

MAX_SECONDS = 0.2
LATE_SECONDS = 10  # after which a server that was given too much time sends a sound image


def png() -> bytes:
    data = io.BytesIO()
    cat().crop((0, 0, 20, 20)).save(data, "PNG")
    return data.getvalue()


PNG = png()
LENGTH = f"Content-Length: {len(PNG)}\r\n\r\n".encode()


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(image_download, "MAX_SECONDS", MAX_SECONDS)
    monkeypatch.setattr(image_download, "MAX_BYTES", 1 << 20)


GOOD: dict[str, Answer] = {
    "plain": file(PNG),
    "without a length": saying(HEAD, b"\r\n", PNG),
    "in chunks": saying(HEAD, b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n%b\r\n0\r\n\r\n" % (len(PNG), PNG)),
    "after 100 Continue": saying(b"HTTP/1.1 100 Continue\r\n\r\n", HEAD, LENGTH, PNG),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("code", [0, 301, 302, 303, 307, 308])
def test_good_servers(name: str, code: int) -> None:
    with serving(GOOD[name]) as address:
        if not code:
            assert open_image(f" http://{address}/a cat ü.png#top").size == (20, 20)
            return
        with serving(redirect(f"http://{address}/other place.png", code)) as first:
            assert download_image(f"http://{first}/") == PNG


BAD: dict[str, tuple[Answer, str]] = {
    "drips": (dripping(HEAD + LENGTH, PNG, LATE_SECONDS), r"it took more than 0\.2 s"),
    "drips its head": (dripping(b"", HEAD + LENGTH + PNG, LATE_SECONDS), r"it took more than 0\.2 s"),
    "drips in chunks": (
        dripping(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n-\r\n" * 500, LATE_SECONDS),
        r"it took more than 0\.2 s",
    ),
    "says nothing": (dripping(b"", HEAD + LENGTH + PNG, LATE_SECONDS, LATE_SECONDS), r"it took more than 0\.2 s"),
    "continues for ever": (without_end(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), r"it took more than 0\.2 s"),
    "never ends": (without_end(HEAD + b"\r\n"), "it has more than 1,048,576 bytes"),
    "is too large": (file(PNG, 1 << 40), "it has more than 1,048,576 bytes"),
    "heads without end": (without_end(HEAD, b"X: y\r\n"), r"is not HTTP \(HTTPException\)"),
    "one head without end": (without_end(HEAD + b"X: "), r"is not HTTP \(LineTooLong\)"),
    "breaks off": (file(PNG[:100], 1000), "the connection broke after 100 of 1,000 bytes"),
    "a chunk breaks off": (
        saying(HEAD, b"Transfer-Encoding: chunked\r\n\r\nfff\r\n", PNG[:100]),
        r"is not HTTP \(IncompleteRead\)",
    ),
    "hangs up": (saying(), r"Remote end closed connection"),
    "is no web server": (saying(b"220 mail.example, ", SECRET.encode(), b"\r\n"), r"is not HTTP \(BadStatusLine\)"),
    "refuses": (saying(f"HTTP/1.1 403 {SECRET}\r\n\r\n{SECRET}".encode()), "HTTP Error 403: Forbidden"),
    "leads to a file": (redirect("file:///etc/passwd"), "it leads to an address of file, expected http or https"),
    "leads to ftp": (redirect("ftp://127.0.0.1/a.png"), "it leads to an address of ftp"),
    "leads to data": (redirect("data:image/png;base64,AAAA"), "it leads to an address of data"),
    "leads to itself": (redirect("/again"), "more than 10 times"),
    "leads nowhere": (redirect("http://[::1/"), "it is no valid address"),
    "redirects without end": (
        without_end(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\n\r\n"),
        "Connection refused",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_servers(name: str) -> None:
    answer, reason = BAD[name]
    with serving(answer) as address:
        url = f"http://{address}/cat.png?key={SECRET}"
        with pytest.raises(
            OSError, match=rf"^Expected an image at http://{address}/cat\.png\?\.\.\., which could not .*{reason}"
        ) as raised:
            open_image(url)
        assert SECRET not in str(raised.value)
        assert raised.value.__suppress_context__  # a traceback would show it


def test_a_wrong_length_gives_a_damaged_image() -> None:
    with (
        serving(file(PNG, len(PNG) // 2)) as address,
        pytest.raises(ValueError, match=r"/cat\.png, which is damaged"),
    ):
        open_image(f"http://{address}/cat.png")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://{address}/cat.png", "(?:SSL|ssl)"),
        ("http://name:" + SECRET + "@{address}/cat.png", "it has a user or a password"),
        ("http://{address}:" + SECRET, "it is no valid address"),
        ("http://name:" + SECRET + "@host/cat.png", "it has a user or a password"),
        ("http://[::1/cat.png", "it is no valid address"),
        ("http:///cat.png", "no host given"),
        ("http://127.0.0.1:9/cat.png", "refused"),
        ("http://name.invalid/cat.png", "[Nn]ame"),
        ("http://" + "a" * 70 + ".invalid/cat.png", "it is no valid address"),
    ],
)
def test_bad_addresses(url: str, reason: str) -> None:
    with serving(file(PNG)) as address:
        with pytest.raises(OSError, match=f"Expected an image at http.*could not be downloaded: .*{reason}") as raised:
            open_image(url.format(address=address))
        assert f":{SECRET}@" not in str(raised.value)


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1 that it has signed itself, and its key."""
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("there is no openssl")
    path: Path = tmp_path_factory.mktemp("identity") / "pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    new = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([*new, *subject, "-keyout", path, "-out", f"{path}.cert"], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + Path(f"{path}.cert").read_bytes())
    return path


def test_certificates(identity: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity)
    with serving(file(PNG), context) as address:
        with pytest.raises(OSError, match=r"could not be downloaded: .*self.signed certificate"):
            download_image(f"https://{address}/")
        monkeypatch.setenv("SSL_CERT_FILE", f"{identity}.cert")  # now it is known
        assert download_image(f"https://{address}/") == PNG
    with (
        serving(dripping(HEAD + LENGTH, PNG, LATE_SECONDS), context) as address,
        pytest.raises(OSError, match=r"it took more than 0\.2 s"),
    ):
        download_image(f"https://{address}/")


def test_what_is_shown_of_addresses() -> None:
    assert shown_address("http://name:key@host:80/a/b.png?key=1#x") == "http://host:80/a/b.png?..."
    assert shown_address("https://host/a.png") == "https://host/a.png"
    assert shown_address("http://[bad") == "http:..."
    assert len(shown_address("https://host/" + "a" * 1000)) < 300
    assert reason_in_words(OSError(), 1) == "OSError"


def tar() -> bytes:
    """A tar of one pair, and of another one behind it that makes it larger than a part."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in (("0.png", PNG), ("0.txt", b"a cat"), ("1.png", PNG), ("1.txt", b"b" * (1 << 19))):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return data.getvalue()


TAR = tar()
TAR_HEAD = HEAD + f"Content-Length: {len(TAR)}\r\n\r\n".encode()
TARS: dict[str, tuple[Answer, int, str]] = {  # what a server does, how many pairs are read, why not all of them
    "plain": (file(TAR), 2, ""),
    "without a length": (saying(HEAD, b"\r\n", TAR), 2, ""),
    "in chunks": (
        saying(HEAD, b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n%b\r\n0\r\n\r\n" % (len(TAR), TAR)), 2, "",
    ),
    "breaks off": (saying(TAR_HEAD, TAR[: 1 << 19]), 1, "the connection broke"),
    "breaks off early": (saying(TAR_HEAD, TAR[:20480]), 1, "the connection broke"),
    "drips": (dripping(TAR_HEAD, TAR, LATE_SECONDS), 0, r"it took more than 0\.2 s"),
    "leads to a file": (redirect("file:///etc/passwd"), 0, "it leads to an address of file"),
    "refuses": (saying(f"HTTP/1.1 403 {SECRET}\r\n\r\n{SECRET}".encode()), 0, "HTTP Error 403: Forbidden"),
}  # fmt: skip


class TestTars:
    @pytest.mark.parametrize("name", TARS)
    def test_no_program_is_started(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def start(*arguments: object, **options: object) -> None:
            raise AssertionError(arguments)

        monkeypatch.setattr(subprocess, "Popen", start)
        monkeypatch.setattr(shards, "_PART_SECONDS", MAX_SECONDS)
        answer, pairs, reason = TARS[name]
        with serving(answer) as address:
            stream = load_pairs(f"http://{address}/a.tar?key={SECRET}", repeat=False)
            assert isinstance(stream, TarStream)
            assert SECRET not in repr(stream)
            if pairs:
                assert len(list(stream)) == pairs
            else:
                with pytest.raises(ValueError, match=r"No pair of http://127\..* can be read"):
                    list(stream)
        reasons = stream.skip.reasons
        assert not any(SECRET in stated for stated in reasons)
        assert bool(reasons) == bool(reason)
        for stated in reasons[:1]:  # a sample that was not whole is another one
            assert re.match(rf"the rest of http://{address}/a\.tar\?\.\.\.: .*{reason}", stated)

    @pytest.mark.parametrize("name", ["s3://a/b.tar", "hf://a/b.tar", "file:///a.tar", "pipe:touch executed; a.tar"])
    def test_others_are_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"Tars are files, or at http and https addresses, got '\w+:"):
            load_pairs(name)
