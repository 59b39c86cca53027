"""What is in the place of a file that a command reads: pipes, folders, links in circles, devices, holes, nothing."""

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path

from .settings import sound_folder
from .trial import Case

HOLE = 5 << 30  # bytes that take no place on the disk


def _hole(path: Path, start: bytes = b"") -> None:
    path.write_bytes(start)
    os.truncate(path, HOLE)


PLACES: dict[str, Callable[[Path], object]] = {
    "pipe": lambda path: os.mkfifo(path),
    "folder": lambda path: path.mkdir(),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "link to zeros": lambda path: path.symlink_to("/dev/zero"),
    "link to a null": lambda path: path.symlink_to("/dev/null"),
    "hole": _hole,
    "nothing": lambda path: path.write_bytes(b""),
    "line of zeros": lambda path: path.write_bytes(bytes(20 << 20)),
    "line of letters": lambda path: path.write_bytes(b"a" * (20 << 20)),
    "line without end": partial(_hole, start=b"a" * 5000),
    "lines": lambda path: path.write_bytes(b"a\n" * (5 << 20)),
    "brackets": lambda path: path.write_bytes(b"[" * (1 << 20)),
}


@cache
def sound_index() -> Path:
    """An index of two pictures that `embed` wrote, with the pictures in it."""
    from PIL import Image

    from twinlens.index import EmbedPlan, embed

    folder = sound_folder().with_name("index")
    (folder / "pictures").mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (20, 20), (100 * number, 0, 0)).save(folder / "pictures" / f"{number}.png")
    embed(EmbedPlan("siglip-shapes", [str(folder / "pictures")], folder / "index"))
    return folder / "index"


def _sound_data() -> Path:
    """A folder with a folder of pictures for each of two classes."""
    from PIL import Image

    folder = sound_folder().with_name("data")
    for name in ("red", "blue"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), name).save(folder / name / "0.png")
    return folder


Commands = Sequence[Sequence[str]]
MODEL: Commands = (
    ("inspect", "{path}"),
    ("classify", "{path}", "{path}/picture.png", "--labels", "a,b"),
    ("verify", "{path}", "--quick"),
    ("export", "{path}", "{out}.npz", "--format", "big_vision"),
    ("push", "{path}", "someone/model", "--dry-run"),
)
INDEX: Commands = (("search", "{path}", "a red star"),)
OPTIONS: dict[str, Commands] = {  # a file that is named by an option
    "labels": (("classify", "siglip-shapes", "{path}/picture.png", "--labels", "@{path}/file.txt"),),
    "templates": (("evaluate", "siglip-shapes", "{path}/data", "--templates", "{path}/file.txt"),),
    "names.txt": (("evaluate", "siglip-shapes", "{path}/data", "--labels-file", "{path}/file.txt"),),
    "names.json": (("evaluate", "siglip-shapes", "{path}/data", "--labels-file", "{path}/file.json"),),
    "plan": (("train", "--config", "{path}/file.yaml", "--dry-run"),),
    "table.csv": (("evaluate", "siglip-shapes", "{path}/file.csv"),),
    "table.jsonl": (("evaluate", "siglip-shapes", "{path}/file.jsonl"),),
    "list": (("embed", "siglip-shapes", "{path}/file.txt", "--out", "{out}"),),
    "tar": (("embed", "siglip-shapes", "{path}/file.tar", "--out", "{out}"),),
    "image": (("explain", "siglip-shapes", "{path}/file.png", "--text", "a", "--out", "{out}.png"),),
    "located image": (("locate", "siglip-shapes", "{path}/file.png", "--text", "a", "--out", "{out}.png"),),
    "searched image": (("search", "{path}/index", "--image", "{path}/file.png"),),
}
FILES = {
    "model": ("config.json", "model.safetensors", "preprocessor_config.json", "processor_config.json",
              "tokenizer.json", "tokenizer_config.json", "official_layout.json", "parity.json", "README.md",
              "special_tokens_map.json", "added_tokens.json", "adapter_config.json", "generation_config.json",
              "chat_template.jinja", "open_clip_config.json", "model.safetensors.index.json"),
    "index": ("index.json", "embeddings-00000.safetensors", "index-00000.parquet", "job.json"),
}  # fmt: skip


def _in_folder(kind: str, name: str, place: str, folder: Path) -> None:
    target = folder / "file"
    shutil.copytree(sound_folder() if kind == "model" else sound_index(), target)
    (target / name).unlink(missing_ok=True)
    PLACES[place](target / name)


def _at_option(name: str, place: str, folder: Path) -> None:
    target = folder / "file"
    shutil.copytree(_sound_data(), target / "data")
    shutil.copytree(sound_index(), target / "index")
    shutil.copy(sound_folder() / "picture.png", target)
    (suffix,) = {Path(part).suffix for part in OPTIONS[name][0] if "/file." in part}
    PLACES[place](target / f"file{suffix}")


# A pipe may be what a program prints; a list of millions of images that are not there is a job like others.
_SOUND = {("labels", "pipe"), ("templates", "pipe"), ("names.txt", "pipe"), ("list", "lines")}
NAMED: dict[str, tuple[Callable[[Path], None], Commands]] = {
    **{
        f"{place} for {name}": (partial(_in_folder, kind, name, place), MODEL if kind == "model" else INDEX)
        for kind, names in FILES.items()
        for name in names
        for place in PLACES
    },
    **{
        f"{place} for {name}": (partial(_at_option, name, place), commands)
        for name, commands in OPTIONS.items()
        for place in PLACES
        if (name, place) not in _SOUND
    },
}
SAMPLE = tuple(NAMED)[::41]
ALL = tuple(NAMED)


def cases(names: Iterable[str]) -> dict[str, Case]:
    import matplotlib.figure  # noqa: F401  (what it makes for itself is made before the canary watches)

    import twinlens.training.run  # noqa: F401

    sound_index()
    _sound_data()
    return {name: Case(NAMED[name][0], commands=NAMED[name][1]) for name in names}
