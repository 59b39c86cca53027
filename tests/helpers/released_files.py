"""Files of other projects' distributions, for tests that compare with them; fetched once, never committed."""

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from filelock import FileLock


def released_module(requirement: str, name: str) -> ModuleType:
    """Import one file of a distribution on its own, without the package around it and what that needs."""
    path = released_file(requirement, name)
    spec = spec_from_file_location(f"released_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def released_package(requirement: str) -> Path:
    """Fetch a distribution and unpack all of it, once; skips the test when the package index is out of reach."""
    target = _cache() / requirement / "unpacked"
    with _fetched(requirement, target) as archive:
        if archive is not None:
            partial = target.with_suffix(".partial")
            if archive.suffix == ".whl":
                zipfile.ZipFile(archive).extractall(partial)
            else:
                with tarfile.open(archive) as sources:
                    sources.extractall(partial, filter="data")
            partial.rename(target)
    return target


def released_file(requirement: str, name: str) -> Path:
    """Fetch one file out of a distribution, once; skips the test when the package index is out of reach."""
    target = _cache() / requirement / Path(name).name
    with _fetched(requirement, target) as archive:
        if archive is not None:
            partial = target.with_suffix(".partial")
            partial.write_bytes(_member(archive, name))
            partial.rename(target)
    return target


def _cache() -> Path:
    return Path(os.environ.get("TWINLENS_TEST_CACHE") or Path.home() / ".cache" / "twinlens-tests")


@contextmanager
def _fetched(requirement: str, target: Path) -> Iterator[Path | None]:
    """Yield the archive that `target` is to be made of, or None where it was made already."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"), tempfile.TemporaryDirectory(dir=_cache()) as scratch:
        if target.exists():
            yield None
            return
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--ignore-requires-python"]
        answer = subprocess.run([*command, "--dest", scratch, requirement], capture_output=True, text=True, check=False)
        archives = [path for path in Path(scratch).iterdir() if path.suffix in (".whl", ".gz")]
        if not archives:
            last_line = (answer.stderr.strip() or "no file arrived").splitlines()[-1]
            pytest.skip(f"pip could not download {requirement}: {last_line}")
        yield archives[0]


def _member(archive: Path, name: str) -> bytes:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as members:
            return members.read(next(member for member in members.namelist() if member.endswith(name)))
    with tarfile.open(archive) as sources:
        file = sources.extractfile(next(member for member in sources.getnames() if member.endswith(name)))
        assert file is not None
        return file.read()
