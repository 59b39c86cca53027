"""Files of tokenizers: SentencePiece models, tokenizer.json, OpenAI's gzip, pipes and devices."""

import gzip
import json
import os
import struct
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from .settings import sound_folder
from .trial import Case


def varint(number: int) -> bytes:
    encoded = b""
    while number >= 0x80:
        encoded += bytes([number & 0x7F | 0x80])
        number >>= 7
    return encoded + bytes([number])


def field(number: int, value: bytes | int) -> bytes:
    """A field of a protocol buffer."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def piece(text: str, score: float = -1.0, kind: int = 1) -> bytes:
    return field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + field(3, kind))


def model(*pieces: bytes, kind: int = 1, unk: int = 0, eos: int = 1, charsmap: bytes = b"") -> bytes:
    usual = (piece("<unk>", 0, 2), piece("</s>", 0, 3), piece("\u2581"), piece("a"))
    trainer = field(3, kind) + field(40, unk % (1 << 64)) + field(42, eos % (1 << 64))
    return b"".join([*usual, *pieces]) + field(2, trainer) + field(3, field(2, charsmap))


def tokenizer(**changes: Any) -> bytes:
    """The tokenizer.json of the sound folder with some entries changed."""
    content = json.loads((sound_folder() / "tokenizer.json").read_text(encoding="utf-8"))
    return json.dumps(content | changes).encode()


def _doubling(times: int) -> dict[str, Any]:
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    return {"type": "Sequence", "normalizers": [step] * times}


def _charsmap(units: list[int]) -> bytes:
    return struct.pack(f"<{len(units) + 1}I", 4 * len(units), *units)


FILES: dict[str, Callable[[], bytes]] = {
    "model: a long number": lambda: b"\x08" + b"\xff" * 3_000_000 + b"\x01",
    "model: a length of 2**62": lambda: b"\x0a" + varint(1 << 62),
    "model: unknown piece outside": lambda: model(unk=10_000),
    "model: unknown piece before": lambda: model(unk=-5),
    "model: end outside": lambda: model(eos=10_000),
    "model: BPE, unknown piece outside": lambda: model(kind=2, unk=10_000),
    "model: only user-defined pieces": lambda: piece("a", 0, 4) * 3 + field(2, field(42, 1)),
    "model: piece of 300 kB": lambda: model(piece("a" * 300_000)),
    "model: BPE, piece of 300 kB": lambda: model(piece("a" * 300_000), kind=2),
    "model: score of NaN": lambda: model(piece("b", float("nan"))),
    "model: score of infinity": lambda: model(piece("b", float("inf"))),
    "model: empty pieces": lambda: model(*[piece("")] * 3),
    "model: one piece twice": lambda: model(piece("a"), piece("a")),
    "model: 3 million pieces": lambda: model(piece("b") * 3_000_000),
    "model: kind of piece 99": lambda: model(piece("b", kind=99)),
    "model: no text": lambda: field(1, 5),
    "model: spellings in a circle": lambda: model(charsmap=_charsmap([0] * 300)),
    "model: spellings of 2**n": lambda: model(charsmap=_charsmap([n << 10 | 1 << 8 | n & 0xFF for n in range(5000)])),
    "model: spellings of nothing": lambda: model(charsmap=b"\xff\xff\xff\xff"),
    "json: padding of 10**10": lambda: tokenizer(
        padding={"strategy": {"Fixed": 10**10}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                 "pad_type_id": 0, "pad_token": "a"}
    ),
    "json: truncation to nothing": lambda: tokenizer(
        truncation={"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 10**10}
    ),
    "json: doubling": lambda: tokenizer(normalizer=_doubling(60)),
    "json: a text of 50 MB": lambda: tokenizer(normalizer={"type": "Prepend", "prepend": "a" * 50_000_000}),
    "json: piece of 300 kB": lambda: tokenizer(model={"type": "Unigram", "unk_id": 0,
                                                      "vocab": [["<unk>", 0], ["</s>", 0], ["a" * 300_000, -1]]}),
    "json: unknown piece outside": lambda: tokenizer(model={"type": "Unigram", "unk_id": 99, "vocab": [["</s>", 0]]}),
    "json: no pieces": lambda: tokenizer(model={"type": "Unigram", "unk_id": None, "vocab": []}),
    "json: another model": lambda: tokenizer(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
    "json: deep": lambda: b'{"model":' * 200_000,
    "json: zeros": lambda: b"{" + bytes(70_000_000),
    "gzip: bomb": lambda: gzip.compress(bytes(200_000_000)),
    "gzip: cut": lambda: gzip.compress(b"#version\n" * 1000)[:50],
    "gzip: damaged": lambda: gzip.compress(b"#version\n" * 1000)[:20] + bytes(50),
    "gzip: merges without number": lambda: gzip.compress(b"#merges: " + b"9" * 5000 + b"\na b"),
    "gzip: a line of 5 MB": lambda: gzip.compress(b"#merges: 1\n" + b"a" * 5_000_000 + b" b"),
    "empty": lambda: b"",
    "zeros": lambda: bytes(1_000_000),
}  # fmt: skip


def write(make: Callable[[], bytes], folder: Path) -> None:
    (folder / "file").write_bytes(make())


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "file")


def link(target: str, folder: Path) -> None:
    (folder / "file").symlink_to(target)


NAMED: dict[str, Callable[[Path], None]] = {
    **{name: partial(write, make) for name, make in FILES.items()},
    "pipe": pipe,
    "endless device": partial(link, "/dev/zero"),
    "device": partial(link, "/dev/null"),
    "memory of the process": partial(link, "/proc/self/mem"),
}
_SLOW = ("model: 3 million pieces", "json: a text of 50 MB", "json: zeros", "gzip: bomb", "model: spellings of 2**n")
SAMPLE = tuple(name for name in NAMED if name not in _SLOW)[::4]
ALL = tuple(NAMED)


def cases(names: Iterable[str]) -> dict[str, Case]:
    convert = ("convert", "{source}", "{out}", "--no-verify", "--tokenizer", "{path}")
    commands = [
        [source if part == "{source}" else part for part in convert] for source in ("siglip-shapes", "clip-shapes")
    ]
    return {name: Case(NAMED[name], commands=commands) for name in names}
