"""Fine-tuning on few pairs with all defaults: accuracy by the number of pairs, and what is kept of the start.

    python benchmarks/fine_tuning.py [--json FILE] [--plot FILE] [--pairs 100 400] [--only pairs]

- pairs: `clip-shapes` is trained on the toy world in invented words (100 classes) and on scikit-learn's digits (10),
  all weights and with LoRA of rank 8, and measured on the classes of other pictures.
- kept: what the tuned model, its start, and their averages (`twinlens average`) know of the old and the new words.

Seconds are of one thread.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Case, option_parser, parse_options, print_rows, write_results
from PIL import Image

import twinlens
from twinlens.evaluation import zero_shot_accuracy
from twinlens.toy_world import KINDS, SingleShapeDataset
from twinlens.toy_world.new_words import TEMPLATE, draw_in_new_words, write_world
from twinlens.training import TrainingPlan, average, train

START = "clip-shapes"
KINDS_OF_CASES = ("pairs", "kept")
PAIRS = [100, 400]
MEASURED = 400  # pictures to measure on
LORA_RANK = 8
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the tuned model in an average
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

Pairs = list[tuple[Image.Image, str]]  # a picture and the name of what it shows


def new_words(count: int) -> tuple[Pairs, Pairs]:
    """Return pairs in invented words to train on, and others to measure on."""
    return [*draw_in_new_words(count)], [*draw_in_new_words(MEASURED, seed=1)]


def digits(count: int) -> tuple[Pairs, Pairs]:
    """Return handwritten digits of scikit-learn to train on, and others to measure on."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    pairs = [
        (Image.fromarray(np.round(data.images[i] * 255 / 16).astype(np.uint8)), DIGITS[data.target[i]]) for i in order
    ]
    return pairs[MEASURED : MEASURED + count], pairs[:MEASURED]


def old_words(count: int) -> Pairs:
    """Return pictures with the words that the start knows."""
    data = SingleShapeDataset(count, seed=5)
    return [(data[index]["image"], " ".join(KINDS[data[index]["label"]])) for index in range(count)]


WORLDS = {"new words": (new_words, TEMPLATE), "digits": (digits, "the digit {}")}


def run(world: str, count: int, folder: Path, **settings: Any) -> tuple[Path, float]:
    """Train with all defaults; return the folder of the model, and the seconds of training."""
    make, template = WORLDS[world]
    write_world(folder, template, *make(count))
    train(TrainingPlan(model=START, data=str(folder / "train"), output=str(folder / "tuned"), **settings))
    return folder / "tuned", json.loads((folder / "tuned" / "training.json").read_text())["seconds"]


def accuracy(model: Any, pictures: Pairs, template: str) -> float:
    """Return the share of pictures of which a model of twinlens tells the name among all names."""
    processor = twinlens.DualEncoderProcessor.from_pretrained(START)
    names = sorted({name for _, name in pictures})
    images = model.encode([image for image, _ in pictures], processor)
    classes = model.encode([template.format(name) for name in names], processor)
    labels = torch.tensor([names.index(name) for _, name in pictures])
    return round(zero_shot_accuracy(images, classes, labels), 4)


def measure_pairs(counts: Sequence[int]) -> Iterator[Case]:
    """Yield the accuracy after training on so many pairs."""
    for world, (make, template) in WORLDS.items():
        for mode, settings in {"all weights": {}, "LoRA": {"lora_rank": LORA_RANK}}.items():
            for count in counts:
                with tempfile.TemporaryDirectory() as folder:
                    tuned, seconds = run(world, count, Path(folder), **settings)
                    found = accuracy(twinlens.DualEncoderModel.from_pretrained(tuned), make(count)[1], template)
                yield {
                    "case": "pairs", "world": world, "mode": mode, "pairs": count, "accuracy": found,
                    "seconds": seconds,
                }  # fmt: skip


def measure_kept(count: int = 400) -> Iterator[Case]:
    """Yield what averages of the start and the tuned model know of the old and the new words."""
    with tempfile.TemporaryDirectory() as folder:
        tuned, _ = run("new words", count, Path(folder))
        for share in SHARES:
            mixed = average([START, tuned], Path(folder, f"average {share}"), [1 - share, share])
            model = twinlens.DualEncoderModel.from_pretrained(mixed)
            known = {"old words": old_words(MEASURED), "new words": new_words(0)[1]}
            found = {words: accuracy(model, pictures, TEMPLATE) for words, pictures in known.items()}
            yield {"case": "kept", "share": share, **found}


def draw(cases: Sequence[Case], file: Path) -> None:
    """Draw the accuracy by the number of pairs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    panels = figure.subplots(1, len(WORLDS), sharey=True, squeeze=False)[0]
    for axis, world in zip(panels, WORLDS, strict=True):
        for mode in ("all weights", "LoRA"):
            points = [case for case in cases if case.get("world") == world and case["mode"] == mode]
            axis.plot(
                [case["pairs"] for case in points], [100 * case["accuracy"] for case in points], marker="o", label=mode
            )
        axis.set(xscale="log", title=world, xlabel="pairs to train on", ylim=(0, 102))
        axis.set_xticks(PAIRS, [str(count) for count in PAIRS], minor=False)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    panels[0].set(ylabel="accuracy on other pictures, %")
    panels[-1].legend(frameon=False, loc="lower right")
    figure.savefig(file)


def main() -> None:
    """Measure every case."""
    parser = option_parser(__doc__)
    parser.add_argument("--pairs", type=int, nargs="+", default=PAIRS)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the accuracy by the number of pairs, as SVG")
    parser.add_argument("--only", default="", help="a part of the case's name: pairs or kept")
    options = parse_options(parser, KINDS_OF_CASES)
    torch.set_num_threads(1)
    measures = {"pairs": lambda: measure_pairs(options.pairs), "kept": measure_kept}
    cases: list[Case] = []
    for kind in KINDS_OF_CASES:
        if options.only in kind:
            for case in measures[kind]():
                cases.append(case)
                print_rows(cases, len(cases) - 1)
    if options.plot:
        draw(cases, options.plot)
    write_results(options, cases, "peft")


if __name__ == "__main__":
    main()
