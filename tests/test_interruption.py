"""A conversion that is killed, or runs out of space, leaves a complete folder or none.

`KILLS=20 pytest tests/test_interruption.py` kills as many; the default is a sample of them.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builders import TINY_SIGLIP, write_big_vision

from twinlens.conversion import verify

KILLS = int(os.environ.get("KILLS", "4"))


def start(source: Path) -> subprocess.Popen[str]:
    """Convert to `folder` beside the source, in a process of its own that says when it begins."""
    script = (
        "import sys; from twinlens.conversion import convert; print('begin', flush=True);"
        "convert(sys.argv[1], sys.argv[2]); print('end', flush=True)"
    )
    command = [sys.executable, "-c", script, str(source), str(source.parent / "folder")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def test_killed_at_any_moment(tmp_path: Path) -> None:
    source = tmp_path / "siglip.npz"
    write_big_vision(source, **TINY_SIGLIP)
    with start(source) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begin\n"
        begin = time.perf_counter()
        assert process.stdout.readline() == "end\n"
        duration = time.perf_counter() - begin
    complete = {path.name: path.read_bytes() for path in (tmp_path / "folder").iterdir()}
    moments = random.Random(0)
    found = []
    for number in range(KILLS):
        (folder := tmp_path / str(number)).mkdir()
        (folder / source.name).symlink_to(source)
        with start(folder / source.name) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(moments.uniform(0, 1.1) * duration)
            process.send_signal(signal.SIGKILL)
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
    with start(partial / source.name) as process:
        assert process.stdout is not None
        assert process.stdout.read() == "begin\nend\n"
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
        command = [sys.executable, "-m", "twinlens", "convert", source, disk / "folder"]
        answer = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
        assert answer.returncode == 1
        assert answer.stderr.startswith(f"Writing {disk / 'folder'} failed: ") or "No space left" in answer.stderr
        assert answer.stderr.count("\n") == 1
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)
