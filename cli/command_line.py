"""The command line. Commands stay thin: what they do lives in the packages they import when they run."""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .train_command import train_command

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="CLIP, SigLIP and SigLIP 2: read official checkpoints safely, convert them with proof, use them.",
)

VisionActivation = Annotated[
    Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"] | None,
    typer.Option(help="Of the image tower, where a file of open_clip or timm does not say it."),
]
VisionHeads = Annotated[int | None, typer.Option(help="Of the image tower, where the file does not say it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]
ImageSize = Annotated[
    int | None,
    typer.Option(help="Pixels a side, where patches do not fill the image: patch 14 at 384 shows as 27x27 patches."),
]


@app.command("list")
def list_command(as_json: Json = False) -> None:
    """Show the published checkpoints that `convert` knows by name; --json adds geometry, licence and sources."""
    from ..catalogue import BUNDLED, CATALOGUE

    if as_json:
        print(json.dumps([asdict(row) | {"parameters": row.parameters} for row in CATALOGUE.values()], indent=2))
        return
    print(f"{'name':<41}{'family':<9}{'parameters':>13}{'pixels':>8}{'tokens':>8}  {'sha256':<10}address")
    for row in CATALOGUE.values():
        pixels, digest = row.image_size or "any", (row.sha256 or "-")[:8]
        size = f"{row.parameters:>13,}{pixels:>8}{row.text_length:>8}"
        print(f"{row.name:<41}{row.family:<9}{size}  {digest:<10}{row.address}")
    print(f"Trained on drawings of shapes, and part of this package: {', '.join(BUNDLED)}.")


@app.command("inspect")
def inspect_command(
    source: Annotated[str, typer.Argument(help="What `convert` takes, or a transformers folder.")],
    image_size: ImageSize = None,
    vision_activation: VisionActivation = None,
    vision_heads: VisionHeads = None,
    as_json: Json = False,
) -> None:
    """Say what a checkpoint is: family, geometry, dtypes, parameters, hash. Runs nothing in it."""
    from ..formats import inspect_source

    description = inspect_source(
        source, image_size=image_size, vision_activation=vision_activation, vision_heads=vision_heads
    )
    print(json.dumps(description, indent=2)) if as_json else print_description(description)


@app.command("convert")
def convert_command(
    source: Annotated[
        str,
        typer.Argument(
            help="A file of OpenAI, big_vision, open_clip or timm, a folder of open_clip or transformers, or a name of "
            "`twinlens list`, which is downloaded."
        ),
    ],
    folder: Annotated[Path, typer.Argument(help="The folder to write. Plain transformers loads it too.")],
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="A SentencePiece .model, a tokenizer.json, a folder, or OpenAI's vocabulary. "
            "CLIP needs none; SigLIP without one converts for images only."
        ),
    ] = None,
    text_cleanup: Annotated[
        Literal["none", "lower", "canonicalize"] | None,
        typer.Option(help="What SigLIP's tokenizer does to text first; lower: A-Z, as official."),
    ] = None,
    preprocessing: Annotated[
        Literal["official", "hub"],
        typer.Option(help="Pixels as the official code makes them, or as the Hub's folders and transformers do."),
    ] = "official",
    image_size: ImageSize = None,
    vision_activation: VisionActivation = None,
    vision_heads: VisionHeads = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16", "keep"],
        typer.Option(help="Of the weights written; keep: the file's own."),
    ] = "float32",
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Measure parity; fail if an error is above its tolerance.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing folder.")] = False,
    as_json: Json = False,
) -> None:
    """Convert an official checkpoint to a Hugging Face folder and prove, number by number, that nothing changed."""
    from ..conversion import convert

    with progress_line(as_json) as progress:
        certificate = convert(
            source,
            folder,
            tokenizer=tokenizer,
            text_cleanup=text_cleanup,
            preprocessing=preprocessing,
            image_size=image_size,
            vision_activation=vision_activation,
            vision_heads=vision_heads,
            dtype=dtype,
            verify=verify,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        print(json.dumps({"folder": str(folder), "parity": certificate.to_dict() if certificate else None}, indent=2))
        return
    if certificate:
        console().print(certificate.table())
    print(f"Wrote {folder}")


@app.command()
def verify(
    source: Annotated[str, typer.Argument(help="What the folder was converted from: a file, a folder or a name.")],
    folder: Annotated[Path, typer.Argument(help="What convert wrote.")],
    reference: Annotated[
        Literal["independent", "original"],
        typer.Option(
            help="independent: float64 NumPy and transformers. original: the official code too; without openai-clip "
            "installed that EXECUTES code from a TorchScript archive."
        ),
    ] = "independent",
    plot: Annotated[Path | None, typer.Option(help="Draw the error by layer to a .png, .svg or .pdf file.")] = None,
    image_size: ImageSize = None,
    vision_activation: VisionActivation = None,
    vision_heads: VisionHeads = None,
    as_json: Json = False,
) -> None:
    """Measure a converted folder against its source again. Exits with 1 where an error is above its tolerance."""
    from ..parity import plot_certificate
    from ..parity import verify as measure

    with progress_line(as_json) as progress:
        certificate = measure(
            source,
            folder,
            reference=reference,
            image_size=image_size,
            vision_activation=vision_activation,
            vision_heads=vision_heads,
            progress=progress,
        )
    if plot:
        plot_certificate(certificate.to_dict(), plot)
    if as_json:
        print(json.dumps(certificate.to_dict(), indent=2))
    else:
        console().print(certificate.table())
        print("\n".join(certificate.notes), end="\n" if certificate.notes else "")
    if not certificate.passed:
        raise typer.Exit(1)


@app.command("export")
def export_command(
    folder: Annotated[Path, typer.Argument(help="A converted folder, or any folder of transformers.")],
    file: Annotated[Path, typer.Argument(help="What to write: .pt, .safetensors or .npz, as the format has it.")],
    format: Annotated[
        Literal["openai", "big_vision", "open_clip", "transformers"], typer.Option(help="Whose code is to read it.")
    ],
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(help="Of all weights; by default those of the source, or of the official release."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    as_json: Json = False,
) -> None:
    """Write a folder's weights as an official file, bit by bit as they were where it was converted from one."""
    from ..conversion import export

    files = [str(written) for written in export(folder, file, format=format, overwrite=overwrite, dtype=dtype)]
    print(json.dumps({"files": files}, indent=2) if as_json else "\n".join(f"Wrote {written}" for written in files))


@app.command("push")
def push_command(
    folder: Annotated[Path, typer.Argument(help="What convert wrote.")],
    repository: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub; created if need be.", metavar="REPO")],
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Of a new repository; its owner's settings decide otherwise."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="The branch, created if need be; main by default.")] = None,
    commit_message: Annotated[str | None, typer.Option(help="The first line of the commit.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be uploaded, and upload nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Upload a converted folder to the Hub in one commit, with the token of `hf auth login` or HF_TOKEN."""
    from huggingface_hub.utils import enable_progress_bars

    from ..conversion import push

    if sys.stderr.isatty():
        enable_progress_bars()  # of uploads
    result = push(
        folder,
        repository,
        private=private,
        revision=revision,
        commit_message=commit_message,
        dry_run=dry_run,
    )
    if as_json:
        print(json.dumps(asdict(result), indent=2))
        return
    print(result.describe())
    print("Nothing was sent: this was a dry run." if dry_run else f"Pushed to {result.url}")


@app.command()
def classify(
    model: Annotated[str, typer.Argument(help="A converted folder, an official checkpoint file, or a Hub id.")],
    images: Annotated[list[Path], typer.Argument(help="Photographs.", metavar="IMAGE...")],
    labels: Annotated[str, typer.Option(help='What to choose from, separated by commas: "a cat,a dog".')],
    template: Annotated[
        str, typer.Option(help="The sentence around a label, the pipeline's own by default; {} is the label.")
    ] = "This is a photo of {}.",
    tokenizer: Annotated[Path | None, typer.Option(help="As for convert, where MODEL has none.")] = None,
    as_json: Json = False,
) -> None:
    """Classify photographs by labels given in words: independent probabilities for SigLIP, shares of one for CLIP."""
    names = [label.strip() for label in labels.split(",") if label.strip()]
    if not names:
        raise ValueError(f'Expected labels such as --labels "a cat,a dog", got {labels!r}.')
    if "{}" not in template:
        raise ValueError(f"Expected a template with {{}} where the label goes, got {template!r}.")
    if missing := [str(image) for image in images if not image.is_file()]:
        raise FileNotFoundError(f"No such image: {', '.join(missing)}.")
    from ..inference.zero_shot import classify_images

    scores = classify_images(model, images, [template.replace("{}", name) for name in names], tokenizer=tokenizer)
    results: list[dict[str, Any]] = [
        {"image": str(image), "scores": dict(sorted(zip(names, row, strict=True), key=lambda pair: -pair[1]))}
        for image, row in zip(images, scores, strict=True)
    ]
    if as_json:
        print(json.dumps(results, indent=2))
        return
    for result in results:
        print(result["image"])
        for name, score in result["scores"].items():
            print(f"  {score:8.2%}  {name}")


app.command("train")(train_command)


@app.command()
def demo(
    folder: Annotated[
        Path | None, typer.Option(help="Keep what the demo writes in this new folder; a temporary one otherwise.")
    ] = None,
) -> None:
    """The whole tour without a network: write an OpenAI archive, convert it, see the proof, ask a pipeline."""
    from .demonstration import demonstrate

    if folder is not None:
        if folder.exists():
            raise FileExistsError(f"Expected a folder that does not exist yet, got {folder}. Choose another --folder.")
        folder.mkdir(parents=True)
        demonstrate(folder, console())
        return
    with tempfile.TemporaryDirectory() as temporary:
        demonstrate(Path(temporary), console())


def show_version(asked: bool) -> None:
    if asked:
        from .._version import __version__

        print(f"twinlens {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    quiet_libraries()


def quiet_libraries() -> None:
    """Leave the terminal to twinlens: its errors say what transformers' reports and progress bars would."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def console() -> Any:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


@contextmanager
def progress_line(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show the current step on a terminal; nothing in a pipe."""
    if quiet or not sys.stderr.isatty():
        yield lambda step: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield lambda step: status.update(step)


def print_description(description: dict[str, Any]) -> None:
    """Print `inspect_source`'s answer as a column of names and a column of values."""
    vision, text = description["geometry"]["vision"], description["geometry"].get("text")
    tower = "{hidden_size} wide, {num_hidden_layers} layers, {num_attention_heads} heads, MLP {intermediate_size}"
    rows = {
        "family": description["family"],
        "format": f"{description['format']}, {description['layout']}",
        "image": f"{vision['image_size']} pixels, patch {vision['patch_size']}; {tower.format(**vision)}",
        **(
            {"text": f"{text['max_position_embeddings']} tokens of {text['vocab_size']}; {tower.format(**text)}"}
            if text
            else {}
        ),
        "parameters": f"{description['parameters']:,}",
        "values": ", ".join(f"{count:,} {dtype}" for dtype, count in description["dtypes"].items()),
    }
    for name, value in rows.items():
        print(f"{name:<11}{value}")
    for file in description["files"]:
        print(f"{'file':<11}{file['name']}, {file['bytes']:,} bytes, sha256 {file['sha256']}")


def main() -> None:
    """Run the command line: exit code 0, 1 with one line on stderr (something failed), 2 (a wrong option)."""
    try:
        app()
    except (OSError, ValueError, ImportError) as error:
        print("twinlens: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(1)
