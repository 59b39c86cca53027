"""`twinlens locate`: find a thing in a picture by words."""

import os
from pathlib import Path
from typing import Annotated

import typer

from .models import check_model
from .options import AsJson, Model
from .pictures import picture_format
from .terminal import print_json, print_line, quiet_libraries


def locate_command(
    model: Model,
    image: Annotated[str, typer.Argument(help="The image file or URL.", metavar="IMAGE")],
    text: Annotated[str, typer.Option(help='The thing to find, in words: "a red star".')],
    out: Annotated[
        Path | None,
        typer.Option(help="The picture of the boxes to write: .png, or another format that Pillow writes."),
    ] = None,
    max_encodings: Annotated[
        int, typer.Option(min=1, metavar="N", help="The number of crops that the model may encode at most.")
    ] = 60,
    max_boxes: Annotated[int, typer.Option(min=1, metavar="N", help="The number of boxes to return at most.")] = 5,
    tokenizer: Annotated[
        Path | None, typer.Option(help="The vocabulary, if MODEL has none: a file or folder as for `convert`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find a small thing in a big picture by words.

    Likely regions come first, and are then looked at closely in the full-resolution picture. There is always a best
    box: a low score says that the text fits nowhere. A score is the cosine of the text with a crop around the box.
    """
    from ..inference.labels import check_labels

    check_labels([text])
    file_format = None if out is None else picture_format(out, image)
    if os.path.isdir(image):
        raise IsADirectoryError(f"Expected an image, got the folder {image}.")
    from ..processing.image_input import open_image

    opened = open_image(image)
    quiet_libraries()
    check_model(model)
    from ..formats.atomic import complete_or_absent
    from ..inference import draw_boxes, load_exact_model, load_processor, locate
    from ..inference.guided_search import open_rgb

    loaded, processor = load_exact_model(model).optimize_for_inference(), load_processor(model, tokenizer)
    picture = open_rgb(processor, opened)
    found = locate(loaded, processor, picture, text, max_encodings=max_encodings, max_boxes=max_boxes)
    boxes = [tuple(box) for box in found.boxes.tolist()]
    scores = found.scores.tolist()
    if out is not None:
        with complete_or_absent(out, overwrite=True) as (partial,):
            drawn = draw_boxes(picture, boxes, [f"{score:.2f}" for score in scores])
            drawn.save(partial, format=file_format)
    if as_json:
        pairs = zip(boxes, scores, strict=True)
        results = [{"box": [round(edge, 1) for edge in box], "score": score} for box, score in pairs]
        size = [picture.width, picture.height]
        print_json({"image": image, "size": size, "text": text, "boxes": results, "encodings": found.encodings})
        return
    print_line(f"{image}: {text} ({found.encodings} crops encoded)")
    for box, score in zip(boxes, scores, strict=True):
        left, top, right, bottom = (round(edge) for edge in box)
        print(f"  {score:6.3f}  from ({left}, {top}) to ({right}, {bottom})")
    if out is not None:
        print_line(f"Wrote {out}")
