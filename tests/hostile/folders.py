"""Folders on their way to the Hub: what lies beside a model, and what a certificate claims."""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from .settings import VALUES, WHOLE, sound_folder
from .trial import Case

READ = (("push", "{path}", "someone/model", "--dry-run"), ("verify", "{path}", "--quick"))
PROOF = {"verdict": "pass", "source": {"files": [{"name": "a", "sha256": "0"}]}}
FIELDS = ("verdict", "files", "source")
ENTRY = {"name": "config.json", "bytes": 1, "sha256": "0"}


def _copied(folder: Path) -> Path:
    target: Path = folder / "file"
    shutil.copytree(sound_folder(), target)
    return target


def _with(names: dict[str, bytes], folder: Path) -> None:
    target = _copied(folder)
    for name, content in names.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(content)


def _proof(field: str, value: str, folder: Path) -> None:
    """A certificate with one field set to a value in JSON."""
    text = json.dumps({**PROOF, "files": [ENTRY], field: "to be replaced"}).replace('"to be replaced"', value)
    _with({"parity.json": text.encode()}, folder)


def _link(name: str, target: str, folder: Path) -> None:
    path = _copied(folder) / name
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def _pipe(name: str, folder: Path) -> None:
    path = _copied(folder) / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _many(folder: Path) -> None:
    target = _copied(folder)
    for number in range(20_000):
        (target / f"{number}.csv").touch()


def _deep(folder: Path) -> None:
    here = _copied(folder)
    for _ in range(300):
        here /= "deeper"
        here.mkdir()
        (here / "a.txt").touch()


def _code(config: Any, folder: Path) -> None:
    target = _copied(folder)
    content = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**content, "auto_map": config}))
    (target / "a.py").write_text("from .a import x\nfrom ./../../../etc/passwd import y\n" + "\n" * 1_000_000)


NAMED: dict[str, Callable[[Path], None]] = {
    **{
        f"parity.json {field}: {name}": partial(_proof, field, value)
        for field in FIELDS
        for name, value in VALUES.items()
    },
    **{f"parity.json: {name}": partial(_with, {"parity.json": content}) for name, content in WHOLE.items()},
    "parity.json of other places": partial(_proof, "files", json.dumps([{**ENTRY, "name": "/etc/passwd"}] * 1000)),
    "parity.json of entries in entries": partial(_proof, "files", json.dumps([[ENTRY], {"name": [ENTRY]}])),
    "card that is a link": partial(_link, "README.md", "/etc/passwd"),
    "weights that are a link": partial(_link, "model.safetensors", "/dev/zero"),
    "settings that are a link": partial(_link, "preprocessor_config.json", "/proc/self/mem"),
    "a link to all": partial(_link, "onnx", "/"),
    "a link to itself": partial(_link, "vocab.json", "vocab.json"),
    "card that is a pipe": partial(_pipe, "README.md"),
    "weights that are a pipe": partial(_pipe, "model.safetensors"),
    "certificate that is a pipe": partial(_pipe, "parity.json"),
    "card of brackets": partial(_with, {"README.md": b"![" * 500_000}),
    "card of tags": partial(_with, {"README.md": b"<img " * 300_000}),
    "card of pictures elsewhere": partial(_with, {"README.md": b"![a](../../../../etc/a.png) ![b](/etc/b.png)"}),
    "card of bytes": partial(_with, {"README.md": bytes(range(256)) * 1000}),
    "names of controls": partial(_with, {"\x1b[2J\n.csv": b"", "a" * 250: b""}),
    "20,000 files": _many,
    "folders in folders": _deep,
    "auto_map of a list": partial(_code, ["a.Model"]),
    "auto_map of other places": partial(_code, {"AutoModel": "../../../etc/passwd.x", "AutoConfig": ["a.X", None, {}]}),
}  # fmt: skip
SAMPLE = tuple(NAMED)[::9]
ALL = tuple(NAMED)


def cases(names: Iterable[str]) -> dict[str, Case]:
    sound_folder()
    return {name: Case(NAMED[name], commands=READ) for name in names}
