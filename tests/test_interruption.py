"""A conversion that is killed, or runs out of space, leaves a complete folder or none."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from helpers.builders import TINY_SIGLIP, write_big_vision
from helpers.processes import finish, start

from twinlens.conversion import convert
from twinlens.parity import verify


def starts(process: BaseProcess, log: Path) -> None:
    """Wait until the conversion begins."""
    while process.is_alive() and not (log.exists() and log.read_text()):
        time.sleep(0.001)


def convert_beside(source: Path) -> None:
    """Convert to `folder` beside the source, and say when that begins."""
    print("begin", flush=True)
    convert(source, source.parent / "folder")


def interrupted(folder: Path) -> list[Path]:
    """Return the folders in which a conversion has left a part of its output, and no more."""
    return [path.parent for path in folder.glob("*/.folder.*") if not (path.parent / "folder").exists()]


def test_killed_at_any_moment(tmp_path: Path, thorough: bool) -> None:
    source, log = tmp_path / "siglip.npz", tmp_path / "log"
    write_big_vision(source, **TINY_SIGLIP)
    process = start(convert_beside, source, output=log)
    starts(process, log)
    begin = time.perf_counter()
    assert finish(process) == 0
    duration = time.perf_counter() - begin
    complete = {path.name: path.read_bytes() for path in (tmp_path / "folder").iterdir()}
    moments = random.Random(0)
    found: list[bool] = []
    wanted = 20 if thorough else 2
    # The first conversion is the slowest: others may end before they are killed, which more of them make up for.
    while len(found) < wanted or (not interrupted(tmp_path) and len(found) < wanted + 6):
        (folder := tmp_path / str(len(found))).mkdir()
        (folder / source.name).symlink_to(source)
        log.unlink()
        process = start(convert_beside, folder / source.name, output=log)
        starts(process, log)
        time.sleep(moments.uniform(0, 1.1) * duration)
        process.kill()
        if (code := finish(process)) == 0:
            duration *= 0.8
        assert code in (-signal.SIGKILL, 0)
        left = {path.name for path in folder.iterdir()} - {source.name}
        found.append("folder" in left)
        if "folder" in left:
            written = {path.name: path.read_bytes() for path in (folder / "folder").iterdir()}
            assert written.keys() == complete.keys()
            assert all(written[name] == complete[name] for name in complete if name != "parity.json")
        # What is left otherwise is hidden, and is in nobody's way.
        assert all(name.startswith(".folder.") for name in left - {"folder"})
    assert False in found
    assert verify(source, tmp_path / "folder").passed
    partial = interrupted(tmp_path)[0]
    assert finish(start(convert_beside, partial / source.name, output=log)) == 0
    assert verify(source, partial / "folder").passed
    assert {path.name for path in partial.iterdir()} == {source.name, "folder"}


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Yield an empty disk of so many bytes."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting needs permission: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)  # PyTorch leaves a file open


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the bundled checkpoints are converted to."""
    folders = {name: tmp_path_factory.mktemp("folders") / name for name in ("clip-shapes", "siglip-shapes")}
    for name, folder in folders.items():
        convert(name, folder, verify=False)
    return folders


@pytest.mark.skipif(sys.platform != "linux", reason="needs tmpfs")
def test_full_disk(
    folders: dict[str, Path], tmp_path: Path, run: Callable[..., tuple[int, str, str]], thorough: bool
) -> None:
    """Wherever in the work it is full: one line, and nothing stays."""
    source = "clip-shapes"
    sizes = [path.stat().st_size for path in folders[source].iterdir()]
    weights, needed = max(sizes), sum(sizes)
    few = [weights // 2, weights + (needed - weights) // 2]  # while weights are written, or the vocabulary
    for number, size in enumerate(range(4096, needed, 4096 * 50) if thorough else few):
        with small_disk(tmp_path / str(number), size) as disk:
            code, _, errors = run("convert", source, disk / "folder", "--no-verify")
            assert (code, errors.count("\n")) == (1, 1)
            assert errors.startswith(f"twinlens: Writing {disk / 'folder'} failed: ")
            assert "no space left" in errors.lower()
            assert not list(disk.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="needs tmpfs")
@pytest.mark.parametrize(
    ("source", "format", "file"),
    [
        ("clip-shapes", "openai", "clip.pt"),
        ("clip-shapes", "open_clip", "clip.bin"),
        ("clip-shapes", "open_clip", "clip.safetensors"),
        ("siglip-shapes", "big_vision", "siglip.npz"),
    ],
)
def test_export_to_a_full_disk(
    source: str,
    format: str,
    file: str,
    folders: dict[str, Path],
    tmp_path: Path,
    run: Callable[..., tuple[int, str, str]],
    thorough: bool,
) -> None:
    needed = (folders[source] / "model.safetensors").stat().st_size
    for number, size in enumerate(range(4096, needed // 2, needed // 40) if thorough else (needed // 2,)):
        with small_disk(tmp_path / str(number), size) as disk:
            code, _, errors = run("export", folders[source], disk / file, "--format", format)
            assert (code, errors.count("\n")) == (1, 1)
            assert errors.startswith(f"twinlens: Writing {disk / file} failed: ")
            assert "no space left" in errors.lower()
            assert not list(disk.iterdir())
