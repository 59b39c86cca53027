"""Names of files and of classes in folders of images: no UTF-8, line feeds, what terminals, shells and options obey."""

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from .settings import sound_folder
from .trial import Case

NAMES: dict[str, bytes] = {
    "no UTF-8": b"\xff",
    "a surrogate": b"\xed\xa0\x80",
    "a line feed": b"a\nb",
    "a carriage return": b"a\rb",
    "escapes": b"\x1b[2J\x1b]0;a\x07",
    "controls of 8 bits": b"\xc2\x9b2J\xc2\x85\xe2\x80\xa8",
    "from right to left": b"\xe2\x80\xae",
    "an option": b"--help",
    "a dash": b"-x",
    "a long one": b"a" * 250,
    "a list": b"@a",
    "an address": b"http:",
    "a pipe": b"pipe:a",
    "a pattern": b"[a]{1..3}*",
    "a home": b"~",
    "a format": b"%s{}{0}",
    "a page": b"\"'<script>",
    "a command": b"$(touch a);`b`",
}
TRAIN = ("--steps", "1", "--batch-size", "2", "--dry-run")
COMMANDS = (
    ("classify", "siglip-shapes", "{path}/images", "--labels", "a,b"),
    ("embed", "siglip-shapes", "{path}/images", "--out", "{out}"),
    ("evaluate", "siglip-shapes", "{path}/classes"),
    ("train", "siglip-shapes", "{path}/images", "{out}", *TRAIN),
)


def _images(name: bytes, content: bytes | None, folder: Path) -> None:
    """Make a folder of two pictures with captions, one of this name, and two classes, one of this name."""
    picture = (sound_folder() / "picture.png").read_bytes()
    root = os.fsencode(folder / "file")
    for place in (b"images", b"classes/" + name, b"classes/b"):
        os.makedirs(root + b"/" + place)
    for path, held in ((b"images/" + name, content), (b"images/b", None), (b"classes/" + name + b"/b", content),
                       (b"classes/" + name + b"/c", None), (b"classes/b/c", None)):  # fmt: skip
        with open(root + b"/" + path + b".png", "wb") as file:
            file.write(picture if held is None else held)
    for path in (name, b"b"):
        with open(root + b"/images/" + path + b".txt", "wb") as file:
            file.write(b"a caption of " + path[:2])


def _output(name: bytes, folder: Path) -> None:
    """Make a folder of one picture, to be trained on into a folder of this name: `output`, a link, has it."""
    _images(b"a", None, folder)
    os.mkdir(os.fsencode(folder / "file") + b"/" + name)
    os.symlink(name, os.fsencode(folder / "file" / "output"))


NAMED: dict[str, Callable[[Path], None]] = {
    **{f"{title}, whole": partial(_images, name[:246], None) for title, name in NAMES.items()},
    **{f"{title}, damaged": partial(_images, name[:246], b"a") for title, name in NAMES.items()},
}
OUTPUTS: dict[str, Callable[[Path], None]] = {
    f"{title} of an output": partial(_output, NAMES[title]) for title in ("no UTF-8", "a surrogate")
}
ALL = SAMPLE = (*NAMED, *OUTPUTS)


def cases(names: Iterable[str]) -> dict[str, Case]:
    import matplotlib.figure  # noqa: F401  (what it makes for itself is made before the canary watches)

    import twinlens.training.run  # noqa: F401

    sound_folder()
    into = (("train", "siglip-shapes", "{path}/images", "{path}/output", *TRAIN[:-1]),)
    return {
        # Of several images `classify` lists those that it cannot read, a line for each.
        name: Case(NAMED[name], commands=COMMANDS["damaged" in name :])
        if name in NAMED
        else Case(OUTPUTS[name], commands=into)
        for name in names
    }
