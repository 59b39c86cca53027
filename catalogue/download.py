"""Download of official files: resumed after an interruption, checked, and complete or absent."""

import hashlib
import io
import shutil
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPResponse
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeGuard
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from filelock import FileLock
from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError
from tqdm import tqdm  # type: ignore[import-untyped]

from .addresses import ADDRESS_ERRORS, Clock, open_address, reason_in_words, shown_address
from .bundled import BUNDLED, bundled_checkpoint
from .official_checkpoint import HUB, OfficialCheckpoint
from .published import ALIASES, CATALOGUE, nearest_names, official_checkpoint

Progress = Callable[[str], None]  # called with the current step in words

BLOCK_BYTES = 1 << 20
TIMEOUT_SECONDS = 30  # for an answer, and then without another part of it
MAX_FAILED_ATTEMPTS = 3  # in a row, each of which brought nothing new
RETRY_PAUSE_SECONDS = 2.0
_LONGEST_LENGTH = 18  # digits
CONNECTION_ERRORS = (URLError, ConnectionError, TimeoutError, ssl.SSLError, HTTPException)

ANOTHER_WAY = "Once you have the file from elsewhere, pass its path instead of a name."

# Arguments of `from_pretrained` that say where on the Hub, or in its cache, files are.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def resolve_source(
    source: str | Path, *, progress: Progress = lambda step: None
) -> tuple[Path, OfficialCheckpoint | None]:
    """Return the path of a checkpoint that is given as a path or by name, and its entry in the catalogue.

    What exists as a path is a path, whatever its name. A published checkpoint is downloaded; a path and a bundled
    checkpoint have no entry. Raises FileNotFoundError for anything else, OSError for a download that failed.
    """
    if Path(source).exists():
        return Path(source), None
    if str(source) in BUNDLED:
        return bundled_checkpoint(str(source)).weights, None
    try:
        checkpoint = official_checkpoint(str(source))
    except ValueError as error:
        raise FileNotFoundError(f"{source}: no such file. {error}") from error
    return download_checkpoint(checkpoint, progress=progress), checkpoint


def is_name(source: object) -> "TypeGuard[str | Path]":
    """Return whether `source` is a name for `resolve_source`, of a published or a bundled checkpoint, and no path.

    Raises FileNotFoundError, with the names most like it, for what is neither and could not be on the Hub either,
    where all models of the families are below the name of an owner.
    """
    if not isinstance(source, (str, PathLike)) or Path(source).exists():
        return False
    name = str(source)
    if name in BUNDLED or name in CATALOGUE or name in ALIASES:
        return True
    if "/" not in name and nearest_names(name):
        resolve_source(name)  # raises
    return False


@contextmanager
def suggest_names(source: object) -> Iterator[None]:
    """Add the names that are most like `source` to an error, such as transformers' where the Hub has no such model."""
    try:
        yield
    except (OSError, ValueError) as error:
        close = nearest_names(source) if isinstance(source, str) and not Path(source).exists() else []
        if not close:
            raise
        hint = f"The names of `twinlens list` that are most like {source!r} are {', '.join(map(repr, close))}."
        raise (OSError if isinstance(error, OSError) else type(error))(f"{error} {hint}") from error


def download_checkpoint(checkpoint: OfficialCheckpoint, *, progress: Progress = lambda step: None) -> Path:
    """Return the file of a published checkpoint from the cache, and download what is missing.

    A file of a repository of open_clip has `open_clip_config.json` beside it. Raises OSError.
    """
    if checkpoint.address.startswith(HUB):
        return _download_from_hub(checkpoint.address.removeprefix(HUB), progress)
    return download_file(checkpoint.address, sha256=checkpoint.sha256, progress=progress)


def published_vocabulary(
    source: str | Path, entry: OfficialCheckpoint | None, *, progress: Progress = lambda step: None
) -> Path | None:
    """Return the vocabulary of what `resolve_source` has found; None for a path, or where none is published.

    Raises OSError for a download that failed.
    """
    if str(source) in BUNDLED and not Path(source).exists():
        return bundled_checkpoint(str(source)).vocabulary
    if entry is None or entry.vocabulary.address is None:
        return None
    return download_file(entry.vocabulary.address, sha256=entry.vocabulary.sha256, progress=progress)


def download_file(url: str, *, sha256: str | None = None, progress: Progress = lambda step: None) -> Path:
    """Return the file at an address, which is kept below `HF_HOME/twinlens` under that address. Raises OSError."""
    parts = urlsplit(url)
    target = Path(constants.HF_HOME, "twinlens", parts.hostname or "", parts.path.lstrip("/"))
    if target.is_file():
        return target
    if constants.HF_HUB_OFFLINE:
        raise OSError(f"{url} was not downloaded before, and HF_HUB_OFFLINE forbids it now. {ANOTHER_WAY}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.is_file():  # another process had the lock
            return target
        try:
            partial = _complete_partial_file(url, target, progress)
        except ADDRESS_ERRORS as error:
            reason = reason_in_words(error, TIMEOUT_SECONDS)
            raise OSError(f"Downloading {shown_address(url)} failed: {reason}. {ANOTHER_WAY}") from error
        if sha256 is not None and (actual := file_sha256(partial)) != sha256:
            partial.unlink()
            raise OSError(f"{url} should have the sha256 {sha256}, but what arrived has {actual} and was removed.")
        partial.replace(target)
    return target


def _complete_partial_file(url: str, target: Path, progress: Progress) -> Path:
    """Complete the partial file of this version, which the server's entity tag names, and return its path."""
    with open_address(url, Clock(TIMEOUT_SECONDS), method="HEAD") as response:
        length, version = response.headers["Content-Length"] or "", response.headers["ETag"]
    if not length.isdecimal() or len(length) > _LONGEST_LENGTH or (size := int(length)) == 0:
        raise OSError("the server does not say how long the file is")
    tag = hashlib.sha256(f"{version} {size}".encode()).hexdigest()[:12]
    partial = target.with_name(f"{target.name}.{tag}.incomplete")
    with partial.open("ab") as file:
        if (free := shutil.disk_usage(target.parent).free) < size - file.tell():
            raise OSError(f"it has {size:,} bytes, {target.parent} has room for {free:,}")
        furthest, failed_attempts = file.tell(), 0
        while file.tell() < size:
            try:
                _append_rest(url, file, size, progress)
            except HTTPError:
                raise
            except CONNECTION_ERRORS:
                failed_attempts = failed_attempts + 1 if file.tell() <= furthest else 0
                furthest = max(furthest, file.tell())
                if failed_attempts == MAX_FAILED_ATTEMPTS:
                    raise
                time.sleep(RETRY_PAUSE_SECONDS)
    return partial


def _append_rest(url: str, file: BinaryIO, size: int, progress: Progress) -> None:
    """Read on from the end of `file`; from the start where the server sends no parts."""
    clock, wanted = Clock(TIMEOUT_SECONDS), f"bytes={file.tell()}-"
    with open_address(url, clock, headers={"Range": wanted}) as response:
        if response.status != 206:
            file.truncate(0)
            file.seek(0)
        elif not response.headers.get("Content-Range", "").startswith(wanted.replace("=", " ")):
            raise OSError("the server sends another part of the file than it was asked for")
        while block := _next_block(response, clock):
            if file.tell() + len(block) > size:
                file.truncate(0)  # what is there is not to be trusted either
                raise OSError(f"the server sends more than the {size:,} bytes that it had promised")
            file.write(block)
            progress(_progress_text(url.rpartition("/")[2], file.tell(), size))
    if file.tell() < size:
        raise ConnectionError(f"the connection broke after {file.tell():,} of {size:,} bytes")


def _next_block(response: HTTPResponse, clock: Clock) -> bytes:
    clock.restart()
    return response.read1(BLOCK_BYTES)


def _download_from_hub(repository: str, progress: Progress) -> Path:
    progress_bar = _progress_bar(repository, progress)
    try:
        with suppress(EntryNotFoundError):  # its settings can also be given on the command line
            hf_hub_download(repository, "open_clip_config.json")
        with suppress(EntryNotFoundError):  # open_clip, too, takes the other file only where this one is missing
            return Path(hf_hub_download(repository, "open_clip_model.safetensors", tqdm_class=progress_bar))
        return Path(hf_hub_download(repository, "open_clip_pytorch_model.bin", tqdm_class=progress_bar))
    except Exception as error:  # HTTP libraries raise anything
        reason = str(error) or type(error).__name__
        raise OSError(f"Downloading {repository} from the Hub failed: {reason} {ANOTHER_WAY}") from error


def _progress_bar(name: str, progress: Progress) -> type[tqdm]:
    """Return a class of progress bars for huggingface_hub that call `progress` instead of drawing themselves."""

    class ProgressBar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": False, "file": io.StringIO()})

        def display(self, *args: Any, **kwargs: Any) -> None:
            progress(_progress_text(name, self.n, self.total or 0))

    return ProgressBar


def _progress_text(name: str, done_bytes: float, size_bytes: float) -> str:
    return f"downloading {name}: {done_bytes / 1e6:,.0f} of {size_bytes / 1e6:,.0f} MB"


def is_on_hub(repository: str, file: str, *, repo_type: Literal["model", "dataset"] = "model") -> bool:
    """Return whether a file of a repository is in the cache, or else the repository is on the Hub, by one request.

    What cannot be the name of a repository, such as a path, is not asked for. Raises OSError where the Hub refuses a
    gated repository.
    """
    try:
        if isinstance(try_to_load_from_cache(repository, file, repo_type=repo_type), str):
            return True
        get_hf_file_metadata(hf_hub_url(repository, file, repo_type=repo_type))
    except GatedRepoError:
        raise
    except EntryNotFoundError:  # the repository is there without this file
        return True
    except Exception:  # no name of a repository, no such one, no network, HF_HUB_OFFLINE: HTTP libraries raise anything
        return False
    return True


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, read a block at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
