"""A conversion that is killed, or runs out of space, leaves a complete folder or none."""

import random
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from helpers.builders import TINY_SIGLIP, write_big_vision
from helpers.processes import finish, run_command, start

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
    found = []
    for number in range(20 if thorough else 3):
        (folder := tmp_path / str(number)).mkdir()
        (folder / source.name).symlink_to(source)
        log.unlink()
        process = start(convert_beside, folder / source.name, output=log)
        starts(process, log)
        time.sleep(moments.uniform(0, 1.1) * duration)
        process.kill()
        assert finish(process) in (-signal.SIGKILL, 0)
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
    partial = next(path.parent for path in tmp_path.glob("*/.folder.*") if not (path.parent / "folder").exists())
    assert finish(start(convert_beside, partial / source.name, output=log)) == 0
    assert verify(source, partial / "folder").passed


@pytest.mark.skipif(sys.platform != "linux", reason="needs tmpfs")
def test_full_disk(tmp_path: Path) -> None:
    source, disk = tmp_path / "siglip.npz", tmp_path / "disk"
    write_big_vision(source, **TINY_SIGLIP)
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", disk], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting needs permission: {mounted.stderr.strip()}")
    try:
        code, printed = run_command("convert", source, disk / "folder", output=tmp_path / "log")
        assert code == 1
        (line,) = printed
        assert line.startswith(f"twinlens: Writing {disk / 'folder'} failed: ")
        assert "No space left" in line
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)
