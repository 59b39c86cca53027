"""The toy world in invented words, to fine-tune on: `python -m twinlens.toy_world.new_words FOLDER`.

The pictures are those that the small checkpoints know. The words for their colours and shapes are not.
"""

import argparse
import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random

from PIL import Image

from .picture import render
from .world import COLOURS, KINDS, SHAPES, Kind, draw_scene

TEMPLATE = "a {}"
_WORDS_FOR_COLOURS = ("zilo", "varn", "kupe", "doxa", "jirm", "wuft", "qeno", "hask", "yebi", "gloz")
_WORDS_FOR_SHAPES = ("bimu", "trex", "fowa", "nuld", "pyko", "cazi", "ruvo", "smek", "ludi", "vath")
WORDS = dict(zip((*COLOURS, *SHAPES), (*_WORDS_FOR_COLOURS, *_WORDS_FOR_SHAPES), strict=True))


def name_in_new_words(kind: Kind) -> str:
    """Return the words for a colour and a shape, such as "zilo bimu" for a red circle."""
    colour, shape = kind
    return f"{WORDS[colour]} {WORDS[shape]}"


def draw_in_new_words(size: int, seed: int = 0, kinds: Sequence[Kind] = KINDS) -> Iterator[tuple[Image.Image, str]]:
    """Yield pictures of one shape, of each kind in turn, with its name."""
    for index in range(size):
        kind = kinds[index % len(kinds)]
        yield render(draw_scene(Random(f"new words {seed} {index}"), [kind], "one")), name_in_new_words(kind)


def write_world(
    folder: Path, template: str, train: Iterable[tuple[Image.Image, str]], test: Iterable[tuple[Image.Image, str]]
) -> None:
    """Write images with the names of what they show as a world to train on, and to measure on.

    `train/` and `test/` have images and a `metadata.csv` with captions, which are the names in the template. `classes/`
    has the images of `test/` in a folder for each name.
    """
    for split, images in (("train", train), ("test", test)):
        (folder / split).mkdir(parents=True)
        with (folder / split / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("file_name", "text"))
            for index, (image, name) in enumerate(images):
                image.save(folder / split / f"{index}.png")
                rows.writerow((f"{index}.png", template.format(name)))
                if split == "test":
                    (folder / "classes" / name).mkdir(parents=True, exist_ok=True)
                    image.save(folder / "classes" / name / f"{index}.png")


def write_new_words(folder: Path, size: int = 400) -> None:
    """Write `size` pairs in new words to train on, such as "a zilo bimu", and as many others to measure on."""
    write_world(folder, TEMPLATE, draw_in_new_words(size, seed=0), draw_in_new_words(size, seed=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("folder", type=Path, help="the folder to write")
    parser.add_argument(
        "--pairs", type=int, default=400, help="how many to train on, and how many others to measure on"
    )
    options = parser.parse_args()
    write_new_words(options.folder, options.pairs)


if __name__ == "__main__":
    main()
