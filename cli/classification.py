"""`twinlens classify`: zero-shot classification of image files."""

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from .models import check_model
from .options import AsJson
from .terminal import print_json, quiet_libraries


def classify_command(
    model: Annotated[
        str, typer.Argument(help="A converted folder, an official checkpoint file, or a Hub id.", metavar="MODEL")
    ],
    images: Annotated[list[str], typer.Argument(help="The image files or URLs to classify.", metavar="IMAGE")],
    labels: Annotated[
        str | None,
        typer.Option(
            help='The labels to choose from, separated by commas: "a cat,a dog". @FILE names a text file that has '
            "one label on each line."
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="One label, which may contain commas. Repeat the option for every label.", metavar="TEXT"),
    ] = None,
    template: Annotated[
        str,
        typer.Option(
            help="The sentence around a label; {} stands for the label. Or several, whose embeddings are averaged: "
            "openai80, siglip, or a text file with one on each line. The default is that of the zero-shot pipeline of "
            "transformers."
        ),
    ] = "This is a photo of {}.",
    tokenizer: Annotated[
        Path | None, typer.Option(help="The vocabulary, if MODEL has none: a file or folder as for `convert`.")
    ] = None,
    scores: Annotated[
        str | None,
        typer.Option(help="sigmoid, softmax or cosine; by default what MODEL was trained for.", metavar="KIND"),
    ] = None,
    top: Annotated[int | None, typer.Option(help="Show the best labels only, this many.", min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Classify images by labels in words.

    SigLIP scores every label by itself, from 0% to 100%; the scores of CLIP add up to 100%. A label that is given more
    than once counts once.
    """
    from ..inference import check_labels, read_labels, read_templates

    if labels is None and not label:
        raise typer.BadParameter('Pass --labels "a cat,a dog", --labels @FILE, or --label once for each label.')
    from_option = [] if labels is None else read_labels(labels)
    given = check_labels([*from_option, *(text.strip() for text in label or ())])
    names = list(dict.fromkeys(given))
    templates = read_templates(template)
    if scores not in (None, "sigmoid", "softmax", "cosine"):
        raise typer.BadParameter(f"Expected sigmoid, softmax or cosine, got {scores!r}.", param_hint="--scores")
    if folders := [image for image in images if os.path.isdir(image)]:
        raise IsADirectoryError(
            f"Expected images, got the folder {folders[0]}: pass the images in it, {folders[0]}/*.png."
        )
    if others := [image for image in images if not os.path.isfile(image)]:
        _check_references(others)
    if repeated := [name for name, count in Counter(given).items() if count > 1]:
        names_of_some = ", ".join(map(repr, repeated[:5])) + (", ..." if len(repeated) > 5 else "")
        print(f"Given more than once, and counted once: {names_of_some}.", file=sys.stderr)
    quiet_libraries()
    check_model(model)
    from ..inference import classify_images

    options: Any = {"templates": templates, "scores": scores, "top_k": top, "tokenizer": tokenizer}
    answers = classify_images(model, images, names, **options)
    results: list[dict[str, Any]] = [
        {"image": image, "scores": {entry["label"]: entry["score"] for entry in answer}}
        for image, answer in zip(images, answers, strict=True)
    ]
    if as_json:
        print_json(results)
        return
    for result in results:
        print(result["image"])
        for name, score in result["scores"].items():
            print(f"  {score:8.4f}  {name}" if scores == "cosine" else f"  {score:8.2%}  {name}")


def _check_references(images: list[str]) -> None:
    """Raise an error for what is neither a file nor a URL of one, before the model is loaded."""
    from ..processing.image_input import open_image

    for image in images:
        if not image.lower().startswith(("http://", "https://")):  # these are downloaded once, by the processor
            open_image(image)
