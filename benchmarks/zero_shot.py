"""Zero-shot classification: 32 photographs by 200 labels, from images and strings to sorted labels.

    python benchmarks/zero_shot.py [--json FILE] [--rounds 1] [--only clip] [--all]

transformers' pipeline is called as it is, with our model, with the same after `optimize_for_inference()`, and with
transformers' own; beside it stands `twinlens.ZeroShotClassifier`, which is built in the measured time. All have the
same random weights, of the sizes of CLIP B/16 and SigLIP B/16-224, in float32 on two threads. With transformers' own
model the pipeline encodes all labels again for each image. SigLIP takes minutes there: the time of an image is that of
the first 4, unless with `--all`.
"""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from common import THREADS, Case, interleaved_times, option_parser, parse_options, print_rows, write_results
from inputs import Sizes, labels, photographs, write_model, write_processor
from PIL import Image

import twinlens

Answers = list[list[dict[str, Any]]]  # for each image, labels and scores, the best first

MODELS: dict[str, tuple[str, Sizes]] = {
    "clip-b16": ("CLIP", {"vision_config": {"patch_size": 16}}),
    "siglip-b16": ("Siglip", {}),
}
IMAGES, LABELS = 32, 200
IMAGES_OF_SLOW = 4
SLOW = ("siglip-b16", "transformers, pipeline")


def score_difference(answers: Answers, others: Answers) -> float:
    """Return the largest difference of a score, over the images that both have."""
    return max(
        abs(score["score"] - {other["label"]: other["score"] for other in theirs}[score["label"]])
        for ours, theirs in zip(answers, others, strict=False)
        for score in ours
    )


def variants_of(
    name: str, folder: Path, images: list[Image.Image], candidates: list[str], slow_images: int
) -> dict[str, tuple[int, Callable[[], Answers]]]:
    """Return how each variant classifies, and how many images it gets."""
    model = twinlens.DualEncoderModel.from_pretrained(folder).eval()
    processor = twinlens.DualEncoderProcessor.from_pretrained(folder)
    fast = twinlens.DualEncoderModel.from_pretrained(folder).eval().optimize_for_inference()
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
    ours = transformers.pipeline("zero-shot-image-classification", model=model, **parts)
    optimised = transformers.pipeline("zero-shot-image-classification", model=fast, **parts)
    theirs = transformers.pipeline("zero-shot-image-classification", model=str(folder), device="cpu")
    few = images[:slow_images] if (name, "transformers, pipeline") == SLOW else images

    def classify() -> Answers:
        answers: Answers = twinlens.ZeroShotClassifier(fast, processor, candidates)(images, batch_size=IMAGES)
        return answers

    return {
        "twinlens, optimised, ZeroShotClassifier": (len(images), classify),
        "twinlens, optimised, pipeline": (len(images), lambda: optimised(images, candidate_labels=candidates)),
        "twinlens, pipeline": (len(images), lambda: ours(images, candidate_labels=candidates)),
        "transformers, pipeline": (len(few), lambda: theirs(few, candidate_labels=candidates)),
    }


def measure(name: str, folder: Path, images: list[Image.Image], options: Any) -> Case:
    """Measure one model, after a call with one image that warms each variant up."""
    write_model(folder, *MODELS[name])
    write_processor(folder, MODELS[name][0])
    candidates = labels(options.labels)
    slow_images = len(images) if options.all else min(IMAGES_OF_SLOW, len(images))
    for _, warm_up in variants_of(name, folder, images[:1], candidates[:2], 1).values():
        warm_up()
    variants = variants_of(name, folder, images, candidates, slow_images)
    answers: dict[str, Answers] = {}

    def keep(variant: str) -> Callable[[], None]:
        return lambda: answers.update({variant: variants[variant][1]()})

    times = interleaved_times({variant: keep(variant) for variant in variants}, options.rounds, warm_up=False)
    expected = answers["transformers, pipeline"]
    return {
        "case": name,
        "labels": options.labels,
        "ms_each": {
            variant: round(statistics.median(seconds) / variants[variant][0] * 1e3, 1)
            for variant, seconds in times.items()
        },
        "images": {variant: count for variant, (count, _) in variants.items()},
        "runs": options.rounds,
        "score_difference": {
            variant: float(f"{score_difference(answers[variant], expected):.1e}") for variant in variants
        },
    }


def main() -> None:
    """Measure every case."""
    parser = option_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--labels", type=int, default=LABELS)
    parser.add_argument("--only", default="", help="a part of the model's name, such as clip")
    parser.add_argument("--all", action="store_true", help="give all images to transformers' own SigLIP, too")
    options = parse_options(parser, MODELS)
    torch.set_num_threads(THREADS)
    images = photographs(options.images)
    cases: list[Case] = []
    for name in MODELS:
        if options.only in name:
            with tempfile.TemporaryDirectory() as folder:
                cases.append(measure(name, Path(folder), images, options))
            print_rows(cases, len(cases) - 1)
    write_results(options, cases, "tokenizers", "pillow", "torchvision")


if __name__ == "__main__":
    main()
