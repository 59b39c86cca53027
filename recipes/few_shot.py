"""Few-shot classification without training, by the names of classes and a few examples (Tip-Adapter, arXiv:2111.03930).

    python recipes/few_shot.py MODEL EXAMPLES TEST [--shots 4] [--template "a photo of a {}."]

EXAMPLES and TEST each have one folder of images for each class, named after it.
"""

import argparse
from pathlib import Path

import torch

from twinlens import DualEncoderModel, DualEncoderProcessor
from twinlens.evaluation import few_shot_logits
from twinlens.training import image_classes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="the model: a folder, a Hub id or an official checkpoint file")
    parser.add_argument("examples", type=Path, help="the labelled examples: one folder of images for each class")
    parser.add_argument("test", type=Path, help="the images to classify: one folder for each class")
    parser.add_argument("--shots", type=int, default=4, help="number of examples of each class, the first ones by name")
    parser.add_argument(
        "--template", default="a photo of a {}.", help="sentence around the name of a class; {} stands for the name"
    )
    parser.add_argument("--alpha", type=float, default=1.0, help="weight of the examples in the logits")
    parser.add_argument(
        "--beta", type=float, default=5.5, help="the larger, the more similar an example has to be to count"
    )
    options = parser.parse_args()
    model = DualEncoderModel.from_pretrained(options.model)
    processor = DualEncoderProcessor.from_pretrained(options.model)
    (examples, names), (tests, test_names) = image_classes(options.examples), image_classes(options.test)
    if names != test_names:
        parser.error(f"the classes differ: {', '.join(names)} and {', '.join(test_names)}")
    classes = model.encode([options.template.replace("{}", name) for name in names], processor)
    images = model.encode(tests.files, processor, kind="image")
    shots = [n for n, label in enumerate(examples.labels) if examples.labels[:n].count(label) < options.shots]
    shot_embeds = model.encode([examples.files[n] for n in shots], processor, kind="image")
    labels = torch.tensor([examples.labels[n] for n in shots])
    for title, alpha in (("by name alone", 0.0), (f"with {options.shots} examples a class", options.alpha)):
        logits = few_shot_logits(images, classes, shot_embeds, labels, alpha=alpha, beta=options.beta)
        right = (logits.argmax(dim=1) == torch.tensor(tests.labels)).float().mean().item()
        print(f"accuracy {right:.1%} {title}, {len(tests)} images, {len(names)} classes")


if __name__ == "__main__":
    main()
