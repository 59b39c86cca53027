"""The tour of `twinlens demo`: a trained official file, its conversion, the proof, answers, a search, and attention."""

from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image
from transformers import pipeline

from ..conversion import convert
from ..inference import embed_images, embed_texts
from ..modeling import DualEncoderModel
from ..processing import DualEncoderProcessor
from ..toy_world import HELD_OUT, KINDS, draw_scene, name, render

SIDE = 64  # pixels
LABELS = ("red star", "purple heart", "white arrow", "green circle")
QUERY = "two yellow squares"


def demonstrate(folder: Path, console: Any) -> None:
    """Run the tour in `folder`, saying every step on `console`."""
    converted = folder / "siglip-shapes"
    console.print("1. twinlens convert siglip-shapes siglip-shapes")
    console.print("   A small SigLIP in big_vision's format that is part of this package; it knows drawings of shapes.")
    certificate = convert("siglip-shapes", converted)
    if certificate is not None:
        console.print(certificate.table())

    console.print('\n2. transformers\' own pipeline("zero-shot-image-classification"), with this model:')
    model, processor = DualEncoderModel.from_pretrained(converted), DualEncoderProcessor.from_pretrained(converted)
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
        picture = render(draw_scene(Random(number), [kind], "one"), SIDE)  # type: ignore[list-item]
        picture.save(pictures / f"{label.replace(' ', '-')}.png")
        best, second, *_ = classify(picture, candidate_labels=[name(kind) for kind in KINDS], hypothesis_template="{}")
        unseen = f"; training had no {label}" if kind in HELD_OUT else ""
        console.print(
            f"   {label:<13} {best['label']} {best['score']:.1%}, then {second['label']} {second['score']:.1%}{unseen}"
        )

    console.print(f'\n3. Search 200 pictures for "{QUERY}":')
    scenes = [draw_scene(Random(f"search {number}")) for number in range(200)]
    drawn = [render(scene, SIDE) for scene in scenes]
    similarity = embed_images(model, processor, drawn) @ embed_texts(model, processor, [QUERY])[0]
    for place in similarity.topk(3).indices.tolist():
        things = scenes[place].things
        kinds = " and ".join(dict.fromkeys(name(thing.kind) for thing in things))
        console.print(f"   cosine {similarity[place]:.2f}: a picture of {len(things)}, {kinds}")

    picture = render(draw_scene(Random(9), [("blue", "star"), ("orange", "cross")], "pair"), SIDE)
    file = folder / "attention.png"
    attention_picture(model, processor, picture).save(file)
    console.print(f"\n4. Where it looks, which its pooling head tells: {file.name}")


def attention_picture(model: Any, processor: Any, picture: Image.Image, enlarged: int = 8) -> Image.Image:
    """The picture, and beside it what SigLIP's pooling head attends to, bright, averaged over its heads."""
    with torch.no_grad():
        outputs = model.vision_model(**processor(images=picture), output_pooling_attentions=True)
    weights = outputs.pooling_attentions[0].mean(dim=1).flatten()  # (patches,)
    grid = model.config.vision_config.grid_size
    levels = (255 * weights / weights.max()).round().to(torch.uint8).view(grid, grid)
    size = (picture.width * enlarged, picture.height * enlarged)
    both = Image.new("RGB", (2 * size[0], size[1]))
    large = picture.resize(size, Image.Resampling.LANCZOS)
    both.paste(large, (0, 0))
    mask = Image.fromarray(levels.numpy()).resize(size, Image.Resampling.BICUBIC)
    both.paste(Image.composite(large, Image.new("RGB", size), mask), (size[0], 0))
    return both
