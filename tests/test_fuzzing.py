"""Damaged and hostile files: a clear error or the right tensors, whatever is in them."""

import io
import os
import pickle
import signal
import struct
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers.builders import TINY_CLIP, TINY_SIGLIP, big_vision_tensors, openai_tensors, write_archive, write_npz
from helpers.damage import cut_in_headers, damaged
from helpers.processes import run_command

from twinlens.formats import FormatError, read_checkpoint

SECONDS = 10  # for one file
SPARE = 64 << 20  # bytes that libraries may take beside the tensors

CLIP: dict[str, Any] = {**TINY_CLIP, "width": 64, "layers": 1, "text_layers": 1, "vocabulary": 20}
SIGLIP: dict[str, Any] = {**TINY_SIGLIP, "layers": 1, "text_layers": 1}


def files(folder: Path) -> dict[str, tuple[bytes, dict[str, torch.Tensor]]]:
    """Give a sound file of every container with what it holds."""
    clip, siglip = openai_tensors(**CLIP), big_vision_tensors(**SIGLIP)
    write_archive(clip, folder / "archive")
    torch.save(clip, folder / "zip")
    torch.save(clip, folder / "legacy", _use_new_zipfile_serialization=False)
    write_npz(folder / "npz", siglip)
    safetensors.torch.save_file(clip, folder / "safetensors")
    return {path.name: (path.read_bytes(), siglip if path.name == "npz" else clip) for path in sorted(folder.iterdir())}


def outcome(path: Path, expected: dict[str, torch.Tensor], checks_values: bool) -> str:
    """Read a file as it may come; AssertionError for anything but an error of one line or the right tensors."""

    def too_long(number: int, frame: Any) -> None:
        raise AssertionError(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        checkpoint = read_checkpoint(path)
        held = {**checkpoint.tensors, **checkpoint.layout.integer_buffers}
        checkpoint.state_dict()
    except FormatError as refusal:
        message = str(refusal)
    else:
        assert held.keys() == expected.keys()
        for name, value in expected.items():
            assert held[name].shape == value.shape, name
            assert not checks_values or torch.equal(held[name].float(), value.float()), name
        return "read"
    finally:
        signal.alarm(0)
    assert "\n" not in message, message
    return "refused"


def resident() -> tuple[int, int]:
    """Give the bytes resident now and at most until now."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) * 1024, int(status["VmHWM"].split()[0]) * 1024


def test_mutated_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thorough: bool) -> None:
    mutations = 20_000 if thorough else 300
    (tmp_path / "sound").mkdir()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    sources = files(tmp_path / "sound")
    target, counts = tmp_path / "mutated", Counter[tuple[str, str]]()
    for name, (data, tensors) in sources.items():  # warms up, and shows that each is read
        target.write_bytes(data)
        assert outcome(target, tensors, True) == "read", name
    largest = max(len(data) for data, _ in sources.values())
    Path("/proc/self/clear_refs").write_text("5")  # forgets what was the most until now
    before, _ = resident()
    for number in range(mutations):
        name = list(sources)[number % len(sources)]
        data, tensors = sources[name]
        target.write_bytes(damaged(data, number))
        try:
            # Only zip archives have checksums of their values.
            counts[name, outcome(target, tensors, name not in ("legacy", "safetensors"))] += 1
        except Exception as error:
            raise AssertionError(f"{name}, damage {number}: {error!r}") from error
    assert resident()[1] - before < 2 * largest + SPARE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "mutated", "sound"]
    assert not list((tmp_path / "empty").iterdir())
    assert sum(counts[name, "refused"] for name in sources) > mutations // 2
    print(dict(counts))


def zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, contents in entries.items():
            archive.writestr(name, contents)
    return file.getvalue()


def array(header: str, values: bytes = bytes(64)) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + values


def shared() -> bytes:
    """A thousand tensors by the same bytes."""
    file, value = io.BytesIO(), torch.zeros(1000)
    torch.save({f"visual.transformer.resblocks.{n}.ln_1.weight": value for n in range(1000)}, file)
    return file.getvalue()


class Calls:
    """A pickle that runs a command."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def saved(shape: str) -> bytes:
    return zipped({"params/t.npy": array(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}")})


def pickled(contents: Any) -> bytes:
    return zipped({"archive/data.pkl": contents if isinstance(contents, bytes) else pickle.dumps(contents)})


HOSTILE: dict[str, Callable[[], bytes]] = {
    "bomb": lambda: zipped({"archive/data.pkl": bytes(50_000_000)}, zipfile.ZIP_DEFLATED),
    "bomb of arrays": lambda: zipped({"params/t.npy": bytes(50_000_000)}, zipfile.ZIP_DEFLATED),
    "zip slip": lambda: zipped({"../../slip/data.pkl": b"x", "../../slip.npy": b"x", "/slip.npy": b"x"}),
    "huge array": lambda: saved("(1<<40,)"),
    "huge shape": lambda: saved("(99999999999,)"),
    "negative shape": lambda: saved("(-4,)"),
    "objects": lambda: zipped({"params/t.npy": array("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}")}),
    "header that calls": lambda: zipped({"params/t.npy": array("__import__('os').mkdir('executed')")}),
    "long header of safetensors": lambda: struct.pack("<Q", 1 << 60) + b"{" + bytes(100),
    "offsets outside": lambda: (
        struct.pack("<Q", 64) + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'.ljust(64)
    ),
    "shared values": shared,
    "call": lambda: pickled(Calls(os.mkdir, "executed")),
    "evaluation": lambda: pickled({"a": Calls(eval, "__import__('os').mkdir('executed')")}),
    "legacy call": lambda: pickle.dumps(Calls(os.mkdir, "executed")),
    "huge memory of a pickle": lambda: pickled(b"\x80\x02]r\xff\xff\xff\x7f."),
    "deep": lambda: pickled(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    data = HOSTILE[name]()
    (tmp_path / "file").write_bytes(data)
    before, _ = resident()
    assert outcome(tmp_path / "file", {}, True) == "refused"
    assert resident()[0] - before < 2 * len(data) + SPARE
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "inside"]


@pytest.mark.parametrize(
    "json",
    [
        "[]",
        "nonsense",
        '{"model_cfg": 3}',
        '{"model_cfg": {"embed_dim": -1}}',
        '{"model_cfg": {"vision_cfg": {"layers": 1e99}}}',
        '{"model_cfg": {"embed_dim": NaN, "vision_cfg": [], "text_cfg": null}}',
        "[" * 5000,
        '{"model_cfg": {"quick_gelu": "no"}}',
    ],
)  # fmt: skip
def test_json_beside(json: str, tmp_path: Path) -> None:
    path = tmp_path / "open_clip_model.safetensors"
    safetensors.torch.save_file(openai_tensors(**CLIP, half=False, integers=False), path)
    (tmp_path / "open_clip_config.json").write_text(json)
    assert outcome(path, {}, True) == "refused"


def test_command_line(tmp_path: Path) -> None:
    """A sample: exit code 1 and one line, no traceback."""
    (tmp_path / "sound").mkdir()
    sources = files(tmp_path / "sound")
    for number, name in enumerate(("zip", "npz")):
        (tmp_path / "file").write_bytes(cut_in_headers(sources[name][0], number))
        command = ("inspect", tmp_path / "file") if number else ("convert", tmp_path / "file", tmp_path / "folder")
        code, printed = run_command(*command, output=tmp_path / "log")
        assert (code, len(printed)) == (1, 1)
        assert not (tmp_path / "folder").exists()
