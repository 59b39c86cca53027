"""`twinlens explain`: where a model looks in an image."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .models import check_model
from .options import AsJson, Model
from .pictures import picture_format
from .terminal import print_json, print_line, quiet_libraries


def explain_command(
    model: Model,
    image: Annotated[str, typer.Argument(help="The image file or URL.", metavar="IMAGE")],
    out: Annotated[Path, typer.Option(help="The picture to write: .png, or another format that Pillow writes.")],
    text: Annotated[
        list[str] | None,
        typer.Option(help="A text to find in the image. Repeat the option for further texts.", metavar="TEXT"),
    ] = None,
    map: Annotated[
        Literal["similarity", "attention", "rollout"],
        typer.Option(
            help="similarity: the cosine of each patch with the text. attention: how much the embedding of the image "
            "attends to each patch, whatever the text. rollout: the same through all layers (arXiv:2005.00928)."
        ),
    ] = "similarity",
    tokenizer: Annotated[
        Path | None, typer.Option(help="The vocabulary, if MODEL has none: a file or folder as for `convert`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw where a model looks in an image.

    The heat map lies over the part of the image that the model sees. It has one value for each patch, and is
    interpolated linearly between their centres. Its colours reach from its own lowest value to its highest: they show
    where a text fits best. Whether it fits at all is what the score above it says, which is that of the whole image.
    """
    if map == "similarity" and not text:
        raise typer.BadParameter('Pass --text "a cat", or --map attention or rollout, which need no text.')
    file_format = picture_format(out, image)
    quiet_libraries()
    check_model(model)
    from ..formats.atomic import complete_or_absent
    from ..inference import explain_image, load_exact_model, load_processor
    from ..inference.explanation import describe_score

    loaded = load_exact_model(model).optimize_for_inference()
    processor = load_processor(model, tokenizer, reads_texts=bool(text))
    picture, scores = explain_image(loaded, processor, image, text or (), map=map)
    with complete_or_absent(out, overwrite=True) as (partial,):
        picture.save(partial, format=file_format)
    if as_json:
        print_json({"picture": str(out), "map": map, "texts": [score._asdict() for score in scores]})
        return
    for score in scores:
        print_line(f"{score.text}: {describe_score(loaded, score, len(scores))}")
    print_line(f"Wrote {out}")
