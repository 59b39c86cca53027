"""Write the handwritten digits of scikit-learn as a folder of images for each digit.

    python docs/write_digits.py FOLDER

They are the 1,797 pictures of 8x8 pixels that scikit-learn ships: the test part of "Optical Recognition of Handwritten
Digits" (E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning Repository, licence CC BY 4.0).
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder to write")
    folder = parser.parse_args().folder
    digits = load_digits()
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        place = folder / NAMES[digit]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(pixels * 255 / 16).astype(np.uint8)).save(place / f"{number:04}.png")


if __name__ == "__main__":
    main()
