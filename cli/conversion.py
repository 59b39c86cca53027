"""`twinlens convert`, `verify`, `export` and `push`: from official files to the Hub, and back."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .options import AsJson, Overwrite, with_load_options
from .terminal import console, print_json, print_line, quiet_libraries, show_progress


@with_load_options
def convert_command(
    source: Annotated[
        str,
        typer.Argument(
            help="A checkpoint file of OpenAI, big_vision, open_clip or timm; a folder of open_clip or transformers; "
            "or a name from `twinlens list`, which is downloaded.",
            metavar="SOURCE",
        ),
    ],
    folder: Annotated[
        Path, typer.Argument(help="The folder to write, which plain transformers loads too.", metavar="FOLDER")
    ],
    *,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="The vocabulary: a SentencePiece .model, a tokenizer.json, a folder, or OpenAI's .txt.gz file. "
            "CLIP needs none. Without one a SigLIP file is converted for images and token ids only."
        ),
    ] = None,
    text_cleanup: Annotated[
        Literal["none", "lower", "canonicalize"] | None,
        typer.Option(
            help="How SigLIP's tokenizer cleans a text. The default is that of the training: lower, which changes A-Z "
            "to a-z. canonicalize also removes punctuation and repeated spaces."
        ),
    ] = None,
    preprocessing: Annotated[
        Literal["official", "hub"],
        typer.Option(
            help="How the image processor computes pixels: exactly as the official code, or as the folders on the Hub "
            "do in transformers. A transformers folder keeps its own settings."
        ),
    ] = "official",
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16", "keep"],
        typer.Option(help="The dtype of the weights to write; keep is the dtype of the file."),
    ] = "float32",
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Compare the model and its preprocessing with independent references; write nothing if an error is "
            "above its tolerance.",
        ),
    ] = True,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    **load_options: Any,
) -> None:
    """Convert an official checkpoint to a Hugging Face folder and prove, number by number, that nothing changed."""
    quiet_libraries()
    from ..conversion import convert

    with show_progress(quiet=as_json) as progress:
        certificate = convert(
            source,
            folder,
            tokenizer=tokenizer,
            text_cleanup=text_cleanup,
            preprocessing=preprocessing,
            dtype=dtype,
            verify=verify,
            overwrite=overwrite,
            progress=progress,
            **load_options,
        )
    if as_json:
        print_json({"folder": str(folder), "parity": certificate.to_dict() if certificate else None})
        return
    if certificate:
        console().print(certificate.table())
        for sentence in certificate.sentences():
            print(sentence)
        if (entry := _entry_without_hash(source)) is not None:
            (digest, *_) = (file["sha256"] for file in certificate.source["files"])
            print(f"No hash of {entry} is published; its geometry is as published. The file has the sha256 {digest}.")
    print_line(f"Wrote {folder}")


def _entry_without_hash(source: str) -> str | None:
    """Return the name of a published checkpoint of which no hash is published; None for anything else."""
    from ..catalogue import CATALOGUE
    from ..catalogue.published import ALIASES

    entry = None if Path(source).exists() else CATALOGUE.get(source) or ALIASES.get(source)
    return entry.name if entry is not None and entry.sha256 is None else None


@with_load_options
def verify_command(
    source: Annotated[
        str,
        typer.Argument(
            help="The checkpoint that the folder was converted from: a file, a folder, or a name from `twinlens list`. "
            "With --quick it may be left out.",
            metavar="SOURCE",
        ),
    ],
    folder: Annotated[
        Path | None,
        typer.Argument(help="The folder that `twinlens convert` wrote.", metavar="FOLDER", show_default=False),
    ] = None,
    *,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Compute nothing: compare the hashes of the files, and of the source, with those in parity.json.",
        ),
    ] = False,
    reference: Annotated[
        Literal["independent", "original"],
        typer.Option(
            help="The references. independent: a float64 NumPy implementation, and transformers. original: the "
            "official code too; without openai-clip installed, this EXECUTES the code in a TorchScript archive."
        ),
    ] = "independent",
    plot: Annotated[
        Path | None, typer.Option(help="Draw the error of every layer to this .png, .svg or .pdf file.")
    ] = None,
    as_json: AsJson = False,
    **load_options: Any,
) -> None:
    """Measure a converted folder against its source again. The exit code is 1 if an error is above its tolerance."""
    if quick and (plot or reference == "original" or any(value is not None for value in load_options.values())):
        raise typer.BadParameter("--quick computes nothing, and goes with --json alone.")
    if folder is None and not quick:
        raise typer.BadParameter("Pass both SOURCE and FOLDER, or FOLDER alone with --quick.")
    quiet_libraries()
    if folder is None or quick:
        _verify_files(source, folder, as_json=as_json)
        return
    from ..parity import check_plot, plot_certificate, verify

    if plot:
        check_plot(plot)
    with show_progress(quiet=as_json) as progress:
        certificate = verify(source, folder, reference=reference, progress=progress, **load_options)
    if plot:
        plot_certificate(certificate.to_dict(), plot)
    if as_json:
        print_json(certificate.to_dict())
    else:
        console().print(certificate.table())
        for sentence in (*certificate.sentences(), *certificate.notes):
            print(sentence)
        if plot:
            print_line(f"Wrote {plot}")
    if not certificate.passed:
        raise typer.Exit(1)


def _verify_files(source: str, folder: Path | None, *, as_json: bool) -> None:
    """Do what `verify --quick` does; without a folder, `source` is the folder."""
    from ..parity import verify_files

    with show_progress(quiet=as_json) as progress:
        check = verify_files(folder or source, source if folder else None, progress=progress)
    if as_json:
        print_json(check.to_dict())
    elif check.passed:
        print(check.describe())
    else:
        raise ValueError(check.describe())
    if not check.passed:
        raise typer.Exit(1)


def export_command(
    folder: Annotated[
        Path, typer.Argument(help="A converted folder, or any transformers folder of a known family.", metavar="FOLDER")
    ],
    file: Annotated[
        Path,
        typer.Argument(
            help="The file to write. Its suffix (.pt, .safetensors, .npz) chooses one of the containers of the format.",
            metavar="FILE",
        ),
    ],
    format: Annotated[
        Literal["openai", "big_vision", "open_clip", "transformers"],
        typer.Option(help="The format of the file: the library whose code is going to read it."),
    ],
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(help="The dtype of all weights. By default as in the source, or as in the official releases."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write the weights of a folder as an official file. One that was converted gives the same tensors, bit for bit."""
    quiet_libraries()
    from ..conversion import export

    written = export(folder, file, format=format, overwrite=overwrite, dtype=dtype)
    files = [str(file.with_name(path.name)) for path in written]  # as FILE was given, not as absolute paths
    if as_json:
        print_json({"files": files})
        return
    for name in files:
        print_line(f"Wrote {name}")


def push_command(
    folder: Annotated[Path, typer.Argument(help="The folder that `twinlens convert` wrote.", metavar="FOLDER")],
    repository: Annotated[
        str,
        typer.Argument(help="The repository on the Hub, as OWNER/NAME. It is created if it is new.", metavar="REPO"),
    ],
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public", help="Who sees a new repository. By default the settings of its owner decide."
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="The branch, which is created if it is new. By default main.")
    ] = None,
    commit_message: Annotated[
        str | None, typer.Option(help="The first line of the commit message. By default it names the folder.")
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            help="Upload these files of FOLDER too, which are no part of a model folder: a name, a folder or a pattern "
            'such as "examples/*.png". Repeat the option for more.',
            metavar="NAME",
        ),
    ] = None,
    include_code: Annotated[
        bool,
        typer.Option(
            "--include-code",
            help="Upload the code that config.json names (auto_map), which others run with trust_remote_code.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be uploaded, and upload nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Upload a converted folder to the Hub in one commit, with the token of `hf auth login` or HF_TOKEN.

    Only files that belong to a model folder are uploaded; the others are listed as left out. Nothing is uploaded if a
    text file holds a token or a private key, or if the folder is not as it was when its parity was measured.
    """
    quiet_libraries()
    from huggingface_hub.utils import enable_progress_bars  # type: ignore[attr-defined]

    from ..conversion import push

    if sys.stderr.isatty():
        enable_progress_bars()  # an upload takes long
    result = push(
        folder,
        repository,
        private=private,
        revision=revision,
        commit_message=commit_message,
        include=include or (),
        include_code=include_code,
        dry_run=dry_run,
    )
    if as_json:
        print_json(asdict(result))
        return
    print(result.describe())
    print("Nothing was sent: this was a dry run." if dry_run else f"Pushed to {result.url}")
