"""`twinlens classify`: zero-shot classification of image files."""

import csv
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .images import find_images
from .models import check_model
from .options import AsJson, Model
from .terminal import align_points, one_line, print_json, print_json_line, print_line, quiet_libraries, show_progress

if TYPE_CHECKING:
    from ..inference import ZeroShotClassifier

Answer = list[dict[str, Any]]  # labels and scores of one image, the best first

_DOWNLOADS = 8  # at the same time


def classify_command(
    model: Model,
    images: Annotated[
        list[str],
        typer.Argument(
            help='The images to classify: files, URLs, patterns such as "photos/*.jpg", or folders, with all folders '
            "in them.",
            metavar="IMAGE",
        ),
    ],
    labels: Annotated[
        str | None,
        typer.Option(
            help='The labels to choose from, separated by commas: "a cat,a dog". A label with a comma stands in double '
            "quotes: 'a cat,\"a dog, asleep\"'.",
            metavar="TEXT,TEXT",
        ),
    ] = None,
    labels_file: Annotated[
        Path | None,
        typer.Option(help="A text file that has one label on each line. --labels @FILE is the same.", metavar="FILE"),
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
        Literal["sigmoid", "softmax", "cosine"] | None,
        typer.Option(help="The kind of scores; by default sigmoid or softmax, as MODEL was trained."),
    ] = None,
    top: Annotated[
        int | None, typer.Option(help="Show the best labels only, this many for each image.", min=1, metavar="N")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="The number of images that are computed together.", min=1, metavar="N")
    ] = 64,
    device: Annotated[
        str, typer.Option(help="Where the model computes: cpu, cuda, cuda:1, mps; or auto, the accelerator if any.")
    ] = "auto",
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(help="The dtype in which the model computes; by default that of its weights in the file."),
    ] = None,
    form: Annotated[
        Literal["text", "csv", "jsonl"],
        typer.Option(
            "--format",
            help="The form of the answer. text: for people. csv: a line for each image and label. jsonl: JSON, a line "
            "for each image. Both appear batch by batch, and --json, one list of all images, at the end.",
        ),
    ] = "text",
    as_json: AsJson = False,
) -> None:
    """Classify images by labels in words.

    SigLIP scores every label by itself, from 0% to 100%; the scores of CLIP add up to 100%. A label that is repeated
    counts once. Images that cannot be read do not end the run: they are listed at its end, and the exit code is 1.
    """
    from ..inference import check_labels, read_labels, read_templates

    if as_json and form != "text":
        raise typer.BadParameter(f"Pass either --json or --format {form}.")
    if labels is None and labels_file is None and not label:
        raise typer.BadParameter(
            'Pass --labels "a cat,a dog", --labels-file FILE, or --label "a cat" once for each label.'
        )
    listed = [*([] if labels is None else [labels]), *([] if labels_file is None else [f"@{labels_file}"])]
    given = [text for option in listed for text in read_labels(option)]
    given = check_labels([*given, *(text.strip() for text in label or ())])
    templates = read_templates(template)
    found = find_images(images)
    if repeated := [name for name, count in Counter(given).items() if count > 1]:
        names_of_some = ", ".join(map(repr, repeated[:5])) + (", ..." if len(repeated) > 5 else "")
        print_line(f"Repeated, and counted once: {names_of_some}.", error=True)
    _check_some(found)
    quiet_libraries()
    check_model(model)
    import torch

    from ..inference import ZeroShotClassifier, load_exact_model, load_processor
    from ..runtime import device_named

    place = device_named(None if device == "auto" else device)
    with show_progress(quiet=as_json) as progress:
        progress(f"loading {model}")
        loaded = load_exact_model(model, None if dtype is None else getattr(torch, dtype))
        loaded = loaded.to(place).optimize_for_inference()
        processor = load_processor(model, tokenizer)
        classifier = ZeroShotClassifier(loaded, processor, dict.fromkeys(given), templates, scores=scores)
    problems: dict[str, str] = {}
    entries: list[dict[str, Any]] = []
    for number, (image, answer) in enumerate(_answers(classifier, found, top, batch_size, quiet=as_json)):
        if isinstance(answer, Exception):
            problems[image] = one_line(str(answer))
            entry: dict[str, Any] = {"image": image, "error": problems[image]}
        else:
            entry = {"image": image, "scores": {line["label"]: line["score"] for line in answer}}
        if as_json:
            entries.append(entry)
        elif form == "jsonl":
            print_json_line(entry)
        elif form == "csv":
            _print_csv(entry, header=number == 0)
        elif "scores" in entry:
            _print_text(entry, is_share=classifier.scores != "cosine")
    if as_json:
        print_json(entries)
    if problems:
        _report(problems, len(found))
        raise typer.Exit(1)


def _check_some(images: Sequence[str]) -> None:
    """Raise the error of the first image if none of them is there, before the model is loaded."""
    from ..catalogue.addresses import is_address
    from ..processing.image_input import READ_ERRORS, local_path, open_image

    error = None
    for image in images:
        if is_address(image):  # these are downloaded once, by the processor
            return
        if os.path.isfile(path := local_path(image)) and os.access(path, os.R_OK):
            return
        try:
            open_image(image)  # of base64 and the like; or else it says what is wrong
        except READ_ERRORS as failure:
            error = error or failure
        else:
            return
    if error is not None and len(images) == 1:
        raise error
    if error is not None:
        raise FileNotFoundError(f"None of the {len(images)} images is there. The first one: {error}") from error


def _answers(
    classifier: "ZeroShotClassifier", images: Sequence[str], top: int | None, batch_size: int, *, quiet: bool
) -> Iterator[tuple[str, Answer | Exception]]:
    """Yield each image with its answer, or with the error of one that cannot be read; progress shows in between."""
    from ..processing.image_input import READ_ERRORS
    from ..processing.threads import thread_map

    def classify(some: Sequence[Any]) -> list[Answer]:
        answers: list[Answer] = classifier(list(some), top_k=top, batch_size=batch_size)
        return answers

    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        with show_progress(quiet=quiet) as progress:  # which is off the terminal again while answers are printed
            progress(f"{start:,} of {len(images):,} images")
            distinct = list(dict.fromkeys(batch))
            with thread_map(min(len(distinct), _DOWNLOADS)) as run:
                fetched = dict(zip(distinct, run(_fetch, distinct), strict=True))
            found = [fetched[image] for image in batch]
            answers: dict[int, Answer | Exception] = {
                place: image for place, image in enumerate(found) if isinstance(image, Exception)
            }
            there = [place for place in range(len(batch)) if place not in answers]
            try:
                answers |= zip(there, classify([found[place] for place in there]) if there else (), strict=True)
            except READ_ERRORS:
                for place in there:
                    try:
                        answers |= {place: classify([found[place]])[0]}
                    except READ_ERRORS as error:
                        answers[place] = error
        yield from ((image, answers[place]) for place, image in enumerate(batch))


def _fetch(image: str) -> str | dict[str, Any] | Exception:
    """Return an image as it is; of an address the file there, or why there is none: its server is asked once."""
    from ..catalogue.addresses import is_address
    from ..processing.image_download import download_image
    from ..processing.image_input import READ_ERRORS

    if not is_address(image):
        return image
    try:
        return {"bytes": download_image(image), "path": image}
    except READ_ERRORS as error:
        return error


def _print_text(entry: dict[str, Any], *, is_share: bool) -> None:
    """Print an image and under it its scores, in percent if they are shares, and its labels."""
    print_line(entry["image"])
    scores = [describe_share(score) if is_share else f"{score:.4f}" for score in entry["scores"].values()]
    for score, name in zip(align_points(scores), entry["scores"], strict=True):
        print_line(f"  {score}  {name}")


def describe_share(share: float) -> str:
    """Return a number from 0 to 1 in percent, with three significant digits: 53.0%, 0.00412%."""
    digits = f"{100 * share:#.3g}"
    return f"{'0' if share == 0 else digits.removesuffix('.')}%"


def _print_csv(entry: dict[str, Any], *, header: bool) -> None:
    """Print the scores of an image as lines of CSV: image, label, score."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if header:
        writer.writerow(["image", "label", "score"])
    writer.writerows([entry["image"], name, f"{score:.6g}"] for name, score in entry.get("scores", {}).items())


def _report(problems: dict[str, str], total: int) -> None:
    """Print the images that could not be classified, and why, to standard error."""
    if total == 1:
        (line,) = problems.values()
        print_line(f"twinlens: {line}", error=True)
        return
    print(f"twinlens: {len(problems):,} of {total:,} images could not be classified:", file=sys.stderr)
    for line in problems.values():
        print_line(f"  {line}", error=True)
