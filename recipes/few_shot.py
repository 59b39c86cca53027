"""A few examples a class beside the classes' names, without training (Tip-Adapter, arXiv:2111.03930).

    python recipes/few_shot.py MODEL EXAMPLES TEST [--shots 4] [--template "a photo of a {}."]

EXAMPLES and TEST hold a folder of images for each class, which is named after it.
"""

import argparse
from pathlib import Path

import torch

from twinlens import DualEncoderModel, DualEncoderProcessor
from twinlens.evaluation import few_shot_logits
from twinlens.inference import embed_images, embed_texts
from twinlens.training import image_classes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a folder, a Hub id or an official file")
    parser.add_argument("examples", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--shots", type=int, default=4, help="examples of each class, the first ones by name")
    parser.add_argument("--template", default="a photo of a {}.", help="{} is the name of a class")
    parser.add_argument("--alpha", type=float, default=1.0, help="weight of the examples")
    parser.add_argument("--beta", type=float, default=5.5, help="how near they have to be")
    options = parser.parse_args()
    model = DualEncoderModel.from_pretrained(options.model).eval()
    processor = DualEncoderProcessor.from_pretrained(options.model)
    (examples, names), (others, other_names) = image_classes(options.examples), image_classes(options.test)
    if names != other_names:
        parser.error(f"the classes differ: {', '.join(names)} and {', '.join(other_names)}")
    classes = embed_texts(model, processor, [options.template.replace("{}", name) for name in names])
    images = embed_images(model, processor, others.files)
    kept = [n for n, label in enumerate(examples.labels) if examples.labels[:n].count(label) < options.shots]
    cache = embed_images(model, processor, [examples.files[n] for n in kept])
    labels = torch.tensor([examples.labels[n] for n in kept])
    for title, alpha in (("by name alone", 0.0), (f"with {options.shots} examples a class", options.alpha)):
        logits = few_shot_logits(images, classes, cache, labels, alpha=alpha, beta=options.beta)
        right = (logits.argmax(dim=1) == torch.tensor(others.labels)).float().mean().item()
        print(f"accuracy {right:.1%} {title}, {len(others)} images, {len(names)} classes")


if __name__ == "__main__":
    main()
