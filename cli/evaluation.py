"""`twinlens evaluate`: a model's accuracy on labelled images, average precision, and recall on pairs."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .evaluation_data import CaptionedImages, Labelled, Task, check_examples, find_task, read_labelled
from .evaluation_index import KnownEmbeddings
from .evaluation_measures import (
    EmbeddingJob,
    Learning,
    measure_classes,
    measure_labels,
    measure_pairs,
)
from .evaluation_tables import print_result
from .models import check_model
from .options import AsJson, Model
from .terminal import print_json, print_line, quiet_libraries

DEFAULT_TEMPLATES = "siglip"


def evaluate_command(
    model: Model,
    data: Annotated[
        str,
        typer.Argument(
            help="A folder with a folder of images for each class; a .csv, .tsv or .jsonl file of images with their "
            "classes; or pairs of images and captions in any form that `twinlens train` takes.",
            metavar="DATA",
        ),
    ],
    task: Annotated[
        Task | None,
        typer.Option(
            help="The kind of DATA: a class for each image, several labels, or captions. DATA decides by default."
        ),
    ] = None,
    templates: Annotated[
        str | None,
        typer.Option(
            help='The words around a class: openai80, siglip, a sentence such as "a photo of a {}.", or a text file '
            "with one on each line. Embeddings of several are averaged. The default is siglip.",
            metavar="NAME|TEXT|FILE",
        ),
    ] = None,
    labels_file: Annotated[
        Path | None,
        typer.Option(
            help="Other names for the classes: an object in .json, lines of class, tab and name, or lines of names "
            "alone, in the order of the sorted classes."
        ),
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Also fit a linear probe: logistic regression on the embeddings.")
    ] = False,
    shots: Annotated[
        str | None,
        typer.Option(help="Also learn from so many images of each class; several numbers: 1,4,16.", metavar="NUMBERS"),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="How often the images of --shots are drawn.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="The seed of the draws, and of the split of a single folder.")] = 0,
    test_share: Annotated[
        float,
        typer.Option(
            help="The share of each class to test on, if DATA has no folders train and test, and something is learnt."
        ),
    ] = 0.2,
    alpha: Annotated[float, typer.Option(min=0, help="The weight of the examples of --shots beside the names.")] = 1.0,
    beta: Annotated[
        float, typer.Option(min=0, help="The larger, the more similar an example of --shots has to be to count.")
    ] = 5.5,
    own_images_only: Annotated[
        bool,
        typer.Option(
            "--own-images-only",
            help="Count only a caption's own image as right, and not others with an equal caption, as CLIP_benchmark.",
        ),
    ] = False,
    index: Annotated[
        Path | None,
        typer.Option(help="A folder that `twinlens embed` wrote: images in it, by path, are not embedded again."),
    ] = None,
    image_column: Annotated[
        str | None, typer.Option(help="The column that holds the images, if its name is not a usual one.")
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="The column that holds the captions, if its name is not a usual one.")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="The column that holds the classes, if its name is not a usual one.")
    ] = None,
    split: Annotated[str, typer.Option(help="The split to measure on, if DATA is a data set.")] = "test",
    batch_size: Annotated[int, typer.Option(min=1, help="The number of images that are embedded together.")] = 64,
    tokenizer: Annotated[
        Path | None, typer.Option(help="The vocabulary, if MODEL has none: a file or folder as for `convert`.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A file to write the results to, as JSON.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model: zero-shot accuracy, linear probe and few-shot accuracy, average precision, or recall.

    One class an image gives top-1 and top-5 accuracy by the names of the classes; --probe and --shots learn from
    DATA/train, or from a seeded part, and test on the rest. Several labels an image give mean average precision,
    captions give recall at 1, 5 and 10 both ways. Images that cannot be read are listed and left out.
    """
    shot_numbers = _read_shots(shots)
    if not 0 < test_share < 1:
        raise typer.BadParameter("Expected a share between 0 and 1.", param_hint="--test-share")
    if out is not None and out.is_dir():
        raise IsADirectoryError(f"Expected the name of a file to write, got the folder {out}.")
    quiet_libraries()
    check_model(model)
    found = task or find_task(data, image_column, text_column, label_column)
    given = {"--templates": templates, "--labels-file": labels_file, "--probe": probe, "--shots": shots}
    source: Labelled | CaptionedImages
    if found == "pairs":
        if wrong := [name for name, value in given.items() if value]:
            raise ValueError(f"{wrong[0]} is for images with classes, and {data} has captions: see --task.")
        source = CaptionedImages.read(data, image_column, text_column, split)
    else:
        from ..inference import read_templates

        words = read_templates(templates or DEFAULT_TEMPLATES)
        source = read_labelled(data, image_column, label_column, labels_file)
        # A table may turn out to have one class an image, as a folder has.
        found = task or ("classes" if source.has_one_label_each else "labels")
        if found == "classes" and not source.has_one_label_each:
            raise ValueError(f"Expected one class an image, {data} has images with several or none: see --task.")
        if found == "labels" and (probe or shots):
            raise ValueError(f"--probe and --shots are for one class an image, {data} has several labels an image.")
        if probe or shots:
            source = source.divide(test_share, seed)
        if shots and source.train is not None:  # before anything takes time
            check_examples(source.train.labels, source.classes, max(shot_numbers))

    from ..inference import class_embeddings, load_exact_model, load_processor

    loaded = load_exact_model(model)
    known = None if index is None else KnownEmbeddings(index, loaded)
    loaded.optimize_for_inference()
    processor = load_processor(model, tokenizer)
    job = EmbeddingJob(loaded, processor, known, batch_size)
    result: dict[str, Any] = {"model": model, "data": data, "task": found}
    if isinstance(source, CaptionedImages):
        result |= measure_pairs(job, source, own_images_only)
    else:
        class_embeds = class_embeddings(loaded, processor, source.classes, words)
        result |= {"classes": source.classes, "templates": list(words)}
        if found == "labels":
            result |= measure_labels(job, source, class_embeds)
        else:
            learning = Learning(probe, shot_numbers, draws, seed, alpha, beta)
            result |= measure_classes(job, source, class_embeds, learning)
    result["skipped"] = [{"image": image, "reason": reason} for image, reason in job.skipped]
    if index is not None:
        result["index"] = {"folder": str(index), "images": job.reused}
    if out is not None:
        from ..formats.atomic import complete_or_absent

        with complete_or_absent(out, overwrite=True) as (partial,):
            partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if as_json:
        print_json(result)
        return
    print_result(result)
    if out is not None:
        print_line(f"Wrote {out}")


def _read_shots(option: str | None) -> list[int]:
    """Return the numbers in "1,4,16", in rising order."""
    try:
        numbers = sorted({int(part) for part in (option or "").split(",") if part.strip()})
    except ValueError:
        numbers = [0]
    if (option is not None and not numbers) or any(number < 1 for number in numbers):
        raise typer.BadParameter(f"Expected numbers of images such as 1,4,16, got {option!r}.", param_hint="--shots")
    return numbers
