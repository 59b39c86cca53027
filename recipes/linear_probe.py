"""A linear probe: logistic regression on the embeddings of labelled images.

    python recipes/linear_probe.py MODEL TRAIN TEST

TRAIN and TEST each have one folder of images for each class, named after it.
"""

import argparse
from pathlib import Path

import torch

from twinlens import DualEncoderModel, DualEncoderProcessor
from twinlens.evaluation import linear_probe
from twinlens.training import image_classes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="the model: a folder, a Hub id or an official checkpoint file")
    parser.add_argument("train", type=Path, help="the images to learn from: one folder for each class")
    parser.add_argument("test", type=Path, help="the images to classify: one folder for each class")
    options = parser.parse_args()
    model = DualEncoderModel.from_pretrained(options.model)
    processor = DualEncoderProcessor.from_pretrained(options.model)
    (images, names), (tests, test_names) = image_classes(options.train), image_classes(options.test)
    if names != test_names:
        parser.error(f"the classes differ: {', '.join(names)} and {', '.join(test_names)}")
    probe = linear_probe(model.encode(images.files, processor, kind="image"), torch.tensor(images.labels), len(names))
    predictions = probe(model.encode(tests.files, processor, kind="image")).argmax(dim=1)
    right = (predictions == torch.tensor(tests.labels)).float().mean().item()
    print(f"accuracy {right:.1%} of {len(tests)} images, {len(names)} classes, {len(images)} images to learn from")


if __name__ == "__main__":
    main()
