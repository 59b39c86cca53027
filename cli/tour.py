"""The tour of `twinlens demo`: an official file is converted with proof, answers, searches, and shows its attention."""

import shlex
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from transformers import pipeline

from ..conversion.convert import convert
from ..inference import explain_image
from ..modeling import SiglipModel
from ..processing import SiglipProcessor
from ..toy_world import HELD_OUT, KINDS, describe_kind, draw_scene, render

if TYPE_CHECKING:
    from rich.console import Console

LABELS = ("red star", "purple heart", "white arrow", "green circle")
QUERY = "two yellow squares"


def run_tour(folder: Path, console: "Console") -> None:
    """Run the tour, write its files into `folder`, and print every step."""
    converted = folder / "siglip-shapes"
    console.print(f"1. twinlens convert siglip-shapes {shlex.quote(str(converted))}", markup=False)
    console.print("   A small SigLIP in big_vision's format, which knows drawings of shapes.")
    console.print(convert("siglip-shapes", converted).table())

    console.print("\n2. transformers' own pipeline for zero-shot classification, with this model:")
    model, processor = SiglipModel.from_pretrained(converted), SiglipProcessor.from_pretrained(converted)
    classify = pipeline(
        "zero-shot-image-classification",
        model=model,
        tokenizer=processor.tokenizer,
        image_processor=processor.image_processor,
    )
    pictures = folder / "pictures"
    pictures.mkdir()
    for number, label in enumerate(LABELS):
        kind = tuple(label.split())
        picture = render(draw_scene(Random(number), [kind], "one"))  # type: ignore[list-item]
        picture.save(pictures / f"{label.replace(' ', '-')}.png")
        best, second, *_ = classify(
            picture, candidate_labels=[describe_kind(kind) for kind in KINDS], hypothesis_template="{}"
        )
        unseen = " *" if kind in HELD_OUT else ""
        console.print(
            f"   {label:<13} {best['label']} {best['score']:.1%}, then {second['label']} {second['score']:.1%}{unseen}"
        )

    console.print("   * training showed none of these", markup=False)

    console.print(f'\n3. Search 200 pictures for "{QUERY}":')
    scenes = [draw_scene(Random(f"search {number}")) for number in range(200)]
    drawn = [render(scene) for scene in scenes]
    similarity = model.encode(drawn, processor) @ model.encode(QUERY, processor)
    for place in similarity.topk(3).indices.tolist():
        things = scenes[place].things
        kinds = " and ".join(dict.fromkeys(describe_kind(thing.kind) for thing in things))
        console.print(f"   cosine {similarity[place]:.2f}: a picture of {len(things)}, {kinds}")

    picture = render(draw_scene(Random(9), [("blue", "star"), ("orange", "cross")], "pair"))
    file = folder / "attention.png"
    explain_image(model, processor, picture, map="attention")[0].save(file)
    console.print("\n4. Where the model looks, from the attention weights of its pooling head,", markup=False)
    console.print(f"   interpolated between the centres of its patches: {file}", markup=False)
