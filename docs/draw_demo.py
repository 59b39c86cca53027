"""Draw what `twinlens demo` shows: the measured errors, the answers of a pipeline, and where the model looks.

    twinlens demo --folder tour
    python docs/draw_demo.py tour

Writes docs/pictures/demo.png, the picture of the README, and docs/pictures/attention.png, which is the demo's own.
"""

import json
import sys
from pathlib import Path
from random import Random
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from transformers import pipeline

from twinlens import DualEncoderModel, DualEncoderProcessor
from twinlens.inference import pooling_attention
from twinlens.toy_world import KINDS, draw_scene, render

PICTURES = Path(__file__).resolve().parent / "pictures"
DARK, BLUE, RED, GREY = "#16324f", "#3b6fb6", "#c0392b", "#8695a5"


def draw(tour: Path, file: Path) -> None:
    """Draw the picture of the README from the folder of a tour."""
    figure = Figure(figsize=(12.6, 4.4), dpi=110, facecolor="white")
    parts: Any = figure.subfigures(1, 3, width_ratios=[5.2, 4.6, 2.6])
    proof, answers, looks = parts
    titles = "1  An official file, converted with proof", "2  transformers' own pipeline answers", "3  Where it looks"
    for part, title in zip((proof, answers, looks), titles, strict=True):
        part.text(0.04, 0.93, title, fontsize=12.5, fontweight="bold", color=DARK)
    draw_errors(
        json.loads((tour / "siglip-shapes" / "parity.json").read_text()), proof.add_axes((0.15, 0.2, 0.8, 0.66))
    )
    draw_answers(tour, answers)
    picture = render(draw_scene(Random(9), [("blue", "star"), ("orange", "cross")], "pair"))  # that of the tour
    weights = pooling_attention(*load(tour), picture)
    for row, shown in enumerate((picture, picture.convert("L").convert("RGB"))):
        axes = looks.add_axes((0.06, 0.5 - 0.38 * row, 0.62, 0.365))
        axes.imshow(shown, interpolation="bilinear", extent=(0, 1, 0, 1))
        if row:
            axes.imshow(weights.numpy(), cmap="inferno", alpha=0.65, interpolation="bilinear", extent=(0, 1, 0, 1))
        axes.axis("off")
        axes.set_anchor("W")
    looks.text(0.06, 0.095, "bright: what SigLIP's pooling\nhead attends to", fontsize=9, color=DARK, va="top")
    figure.savefig(file)


def draw_errors(parity: dict[str, Any], axes: Axes) -> None:
    """Draw the error of every output against the float64 reference, below its tolerance."""
    first = parity["comparisons"][0]["outputs"]
    places = range(len(first))
    axes.fill_between(places, [output["tolerance"] for output in first], 1e-3, step="mid", color=RED, alpha=0.10, lw=0)
    axes.step(places, [output["tolerance"] for output in first], where="mid", color=RED, lw=1.3)
    axes.plot(places, [output["scaled_error"] for output in first], "o-", color=BLUE, ms=4.5, lw=1.5)
    axes.set(yscale="log", ylim=(1e-8, 1e-3), xlim=(-0.6, len(first) - 0.4))
    axes.text(0, 5e-5, "tolerance: a folder that misses it is not written", color=RED, fontsize=9)
    axes.text(0, 2.2e-6, "error against an independent float64 computation", color=BLUE, fontsize=9)
    towers = [output["name"].split(".")[0].replace("logits_per_image", "logits") for output in first]
    for tower in dict.fromkeys(towers):
        inside = [place for place in places if towers[place] == tower]
        axes.text(sum(inside) / len(inside), 3.5e-9, f"{tower}\ntower" if tower != "logits" else tower,
                  ha="center", va="top", fontsize=9.5, color=DARK)  # fmt: skip
        axes.plot([inside[0] - 0.3, inside[-1] + 0.3], [6e-9, 6e-9], color=GREY, lw=1.5, clip_on=False)
    axes.set_xticks([])
    axes.tick_params(labelsize=9, colors=DARK)
    axes.grid(axis="y", color="0.92")
    axes.spines[["top", "right"]].set_visible(False)


def draw_answers(tour: Path, part: Any) -> None:
    """Draw each picture of the tour beside the three most probable of 100 labels."""
    model, processor = load(tour)
    classify = pipeline(
        "zero-shot-image-classification",
        model=model,
        tokenizer=processor.tokenizer,
        image_processor=processor.image_processor,
    )
    labels = [f"{'an' if colour == 'orange' else 'a'} {colour} {shape}" for colour, shape in KINDS]
    files = sorted((tour / "pictures").glob("*.png"))
    for row, file in enumerate(files):
        bottom = 0.86 - 0.2 * (row + 1)
        with Image.open(file) as picture:
            image = part.add_axes((0.04, bottom, 0.19, 0.18))
            image.imshow(picture, interpolation="lanczos")
            image.axis("off")
            best = classify(picture, candidate_labels=labels, hypothesis_template="{}")[:3]
        axes = part.add_axes((0.27, bottom + 0.01, 0.66, 0.16))
        for place, answer in enumerate(best):
            axes.barh(-place, answer["score"], height=0.78, color=BLUE if place == 0 else "#c5d3e3")
            inside = f"{answer['label']}  {answer['score']:.0%}"
            axes.text(answer["score"] + 0.015, -place, inside, va="center", fontsize=9, color=DARK)
        axes.set(xlim=(0, 1.1), ylim=(-2.6, 0.6))
        axes.axis("off")


def load(tour: Path) -> tuple[DualEncoderModel, DualEncoderProcessor]:
    folder = tour / "siglip-shapes"
    return DualEncoderModel.from_pretrained(folder), DualEncoderProcessor.from_pretrained(folder)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    draw(folder, PICTURES / "demo.png")
    (PICTURES / "attention.png").write_bytes((folder / "attention.png").read_bytes())
