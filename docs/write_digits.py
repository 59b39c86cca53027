"""Write the handwritten digits of scikit-learn as a folder of images for each digit.

    python docs/write_digits.py FOLDER [--train N]

They are the 1,797 pictures of 8x8 pixels that scikit-learn ships: the test part of "Optical Recognition of Handwritten
Digits" (E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning Repository, licence CC BY 4.0).
"""

import argparse
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

try:
    from sklearn.datasets import load_digits
except ImportError as error:
    raise SystemExit(f"write_digits.py needs scikit-learn ({error}): pip install scikit-learn") from error

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATE = "the digit {}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder to write")
    parser.add_argument(
        "--train", type=int, help="how many to write with captions to train on; the others are to measure on"
    )
    options = parser.parse_args()
    digits = load_digits()
    images = [Image.fromarray(np.round(pixels * 255 / 16).astype(np.uint8)) for pixels in digits.images]
    names = [NAMES[digit] for digit in digits.target]
    if options.train:
        from twinlens.toy_world.new_words import write_world

        pairs = Random(0).sample(list(zip(images, names, strict=True)), len(images))
        write_world(options.folder, TEMPLATE, pairs[: options.train], pairs[options.train :])
        return
    for number, (image, name) in enumerate(zip(images, names, strict=True)):
        place = options.folder / name
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number:04}.png")


if __name__ == "__main__":
    main()
