"""`twinlens embed`: the embeddings of many images, as an index."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .models import check_model
from .options import AsJson, Model
from .terminal import print_json, print_line, quiet_libraries, show_progress

if TYPE_CHECKING:
    from ..index.job import Progress

SECONDS_BETWEEN_LINES = 60  # in a pipe


def embed_command(
    model: Model,
    sources: Annotated[
        list[str],
        typer.Argument(
            help="A folder of images with all folders in it; or a text file with the path of an image on each line, "
            "relative to the file; or one or more tars of images.",
            metavar="FOLDER|LIST|TAR...",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder of the index: a new one, or that of an interrupted job.")],
    dtype: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(help="The dtype of the model: bfloat16 is faster on CPUs and GPUs that compute in it."),
    ] = "float32",
    vectors: Annotated[
        Literal["float32", "float16"], typer.Option(help="The dtype of the embeddings in the index.")
    ] = "float32",
    batch_size: Annotated[
        str, typer.Option(help="The number of images that are embedded together, or auto.", metavar="auto|N")
    ] = "auto",
    shard_size: Annotated[
        str,
        typer.Option(
            help="The number of images in a file of the index, or auto: 1,024 on the CPU, 16,384 on an accelerator. "
            "An interrupted job does the last file again.",
            metavar="auto|N",
        ),
    ] = "auto",
    device: Annotated[
        str, typer.Option(help="Where the model computes: cpu, cuda, cuda:1, mps; or auto, the accelerator if any.")
    ] = "auto",
    workers: Annotated[
        str,
        typer.Option(
            help="The number of threads that read and decode images, and on the CPU embed them; with --engine ray, of "
            "actors. Auto is one a core, or one a GPU.",
            metavar="auto|N",
        ),
    ] = "auto",
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Run the job in this process, or on a cluster of Ray.")
    ] = "local",
    as_json: AsJson = False,
) -> None:
    """Embed many images, and write an index of their embeddings that `twinlens search` reads.

    Started again after an interruption, it goes on where it was. Images that cannot be read are listed in
    skipped.jsonl. It runs in one process, or in several with `accelerate launch -m twinlens embed ...`.
    """
    numbers = {"batch_size": batch_size, "shard_size": shard_size, "workers": workers}
    chosen = {name: _number(name, text) for name, text in numbers.items()}
    quiet_libraries()
    check_model(model)
    from ..index import EmbedPlan, embed

    plan = EmbedPlan(
        model,
        sources,
        out,
        dtype=dtype,
        vectors=vectors,
        device=None if device == "auto" else device,
        engine=engine,
        **chosen,
    )
    with _reporting() as report:
        result = embed(plan, report)
    if not result.metadata:  # another process has them
        return
    if as_json:
        print_json(
            {
                "folder": str(out),
                "rows": result.rows,
                "dim": result.metadata["dim"],
                "skipped": result.skipped,
                "embedded_now": result.embedded,
                "seconds": round(result.seconds, 3),
            }
        )
        return
    if result.embedded:
        print(f"Read {result.embedded:,} images in {_duration(result.seconds)}.")
    if result.skipped:
        print_line(f"Skipped {result.skipped:,} that could not be read: {out / 'skipped.jsonl'}")
    print_line(f"{out} has {result.rows:,} embeddings of {result.metadata['dim']} numbers.")


def _number(name: str, text: str) -> int | None:
    """Return the number in an option, and None for auto."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"--{name.replace('_', '-')} must be auto or a number from 1 on, got {text!r}.")
    return int(text)


@contextmanager
def _reporting() -> "Iterator[Callable[[Progress], None]]":
    """Yield a function that shows the progress: on a terminal always, in a pipe a line every minute."""
    if sys.stderr.isatty():
        with show_progress(quiet=False) as show:
            show("loading the model")
            yield lambda progress: show(describe(progress))
        return
    last = time.monotonic()

    def print_now_and_then(progress: "Progress") -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(describe(progress), file=sys.stderr, flush=True)

    yield print_now_and_then


def describe(progress: "Progress") -> str:
    """Return the progress in words."""
    left = "" if progress.seconds_left == float("inf") else f", {_duration(progress.seconds_left)} left"
    return f"{progress.images:,} images, {progress.images_per_second:,.1f} images/s, {progress.share:.1%}{left}"


def _duration(seconds: float) -> str:
    """Return a time in words: 1:02:03, 2:03, or 3.4 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
