"""A linear probe: logistic regression on the embeddings of labelled images.

    python recipes/linear_probe.py MODEL TRAIN TEST

TRAIN and TEST hold a folder of images for each class.
"""

import argparse
from pathlib import Path

import torch

from twinlens import DualEncoderModel, DualEncoderProcessor
from twinlens.evaluation import linear_probe
from twinlens.inference import embed_images
from twinlens.training import image_classes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a folder, a Hub id or an official file")
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    options = parser.parse_args()
    model = DualEncoderModel.from_pretrained(options.model).eval()
    processor = DualEncoderProcessor.from_pretrained(options.model)
    (images, names), (others, other_names) = image_classes(options.train), image_classes(options.test)
    if names != other_names:
        parser.error(f"the classes differ: {', '.join(names)} and {', '.join(other_names)}")
    probe = linear_probe(embed_images(model, processor, images.files), torch.tensor(images.labels), len(names))
    predictions = probe(embed_images(model, processor, others.files)).argmax(dim=1)
    right = (predictions == torch.tensor(others.labels)).float().mean().item()
    print(f"accuracy {right:.1%} of {len(others)} images, {len(names)} classes, {len(images)} images to learn from")


if __name__ == "__main__":
    main()
