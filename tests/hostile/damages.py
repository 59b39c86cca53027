"""Random damage to images, vocabularies and the JSON of a model folder: an answer, or an error of one line.

The damages of a kind share a process with a limit on its memory, and each of them has ten seconds.
"""

import io
import resource
import shutil
import signal
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.damage import damaged
from helpers.photographs import cat
from PIL import Image

from hostile.settings import sound_folder
from hostile.trial import memory
from hostile.vocabularies import model

SECONDS = 10  # for one file
SPARE_MEMORY = 1 << 30  # bytes
REFUSALS = (OSError, ValueError, ImportError, Image.DecompressionBombError)  # which commands print as they are
Files = dict[str, bytes]  # sound ones by their names
FORMATS: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("jpg", "png", "webp", "gif", "bmp", "tif", "jp2", "ppm", "ico", "tga", "pcx", "sgi")},
    "progressive.jpg": {"progressive": True},
    "deflated.tif": {"compression": "tiff_deflate"},
    "grey.png": {},
}


def images() -> tuple[Files, Callable[[Path], object]]:
    """Images of the formats that Pillow writes, and what opens them."""
    from twinlens.processing.image_input import open_image

    photo, files = cat().convert("RGB").resize((48, 40)), {}
    for name, settings in FORMATS.items():
        data = io.BytesIO()
        data.name = f"photo.{name}"  # which says the format
        (photo.convert("L") if "grey" in name else photo).save(data, **settings)
        files[data.name] = data.getvalue()
    return files, open_image


def vocabularies() -> tuple[Files, Callable[[Path], object]]:
    """SentencePiece's models and a tokenizer.json, and what tokenizes a text with them."""
    import twinlens

    files = {"unigram.model": model(), "bpe.model": model(kind=2)}
    files["tokenizer.json"] = (sound_folder() / "tokenizer.json").read_bytes()
    return files, lambda path: twinlens.SiglipTokenizer.from_file(path)(["a red star, 12"])


def settings() -> tuple[Files, Callable[[Path], object]]:
    """The JSON of a folder, and what describes the folder and loads its processor."""
    from twinlens.formats import inspect_source
    from twinlens.inference import load_processor

    def read(path: Path) -> None:
        inspect_source(path.parent)
        load_processor(path.parent)

    names = [path.name for path in sound_folder().glob("*.json") if path.name not in ("parity.json", "tokenizer.json")]
    return {name: (sound_folder() / name).read_bytes() for name in sorted(names)}, read


def examine(kind: str, count: int) -> None:
    """Read damaged files of a kind. Raises AssertionError for one that is neither read nor refused in one line."""
    files, read = {"images": images, "vocabularies": vocabularies, "settings": settings}[kind]()
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        if kind == "settings":
            shutil.copytree(sound_folder(), folder, dirs_exist_ok=True)
        for name, data in files.items():  # each is read, and has imported what it needs
            Path(folder, name).write_bytes(data)
            read(Path(folder, name))
        resource.setrlimit(resource.RLIMIT_AS, (memory()[0] + SPARE_MEMORY,) * 2)
        for number in range(count):
            name = list(files)[number % len(files)]
            path = Path(folder, name)
            path.write_bytes(damaged(files[name], number))
            print(
                f"\r{kind}, damage {number} of {name}", end="", flush=True
            )  # what is read last if it ends the process
            counts[_outcome(read, path)] += 1
            path.write_bytes(files[name])
    print(dict(counts))


def _outcome(read: Callable[[Path], object], path: Path) -> str:
    def too_long(number: int, frame: Any) -> None:
        raise AssertionError(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        read(path)
    except REFUSALS as error:
        message = str(error)
    else:
        return "answered"
    finally:
        signal.alarm(0)
    assert message
    assert "\n" not in message, message
    return "refused"
