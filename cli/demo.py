"""`twinlens demo`: a tour of the package on the small SigLIP that is part of it."""

import shlex
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from .terminal import console, quiet_libraries


def demo_command(
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Keep the converted model and the pictures in this new folder. By default they are deleted at the end."
        ),
    ] = None,
) -> None:
    """Show the package at work on a small SigLIP that is part of it, without a network, in under a minute.

    1. Convert the model from big_vision's format, and print the proof.
    2. Ask the zero-shot pipeline of transformers about new drawings.
    3. Search 200 drawings for a caption.
    4. Draw where the model looks.
    """
    if folder is not None and folder.exists():
        raise FileExistsError(f"Expected a folder that does not exist yet, got {folder}. Choose another --folder.")
    quiet_libraries()
    from .tour import run_tour

    if folder is not None:
        folder.mkdir(parents=True)
        run_tour(folder, console())
        model, picture = (shlex.quote(str(folder / name)) for name in ("siglip-shapes", "pictures/red-star.png"))
        print(f"\nThe model and the pictures are in {folder}. A next command to try:")
        print(f'twinlens classify {model} {picture} --labels "a red star,a blue ring"')
        return
    with tempfile.TemporaryDirectory() as temporary:
        run_tour(Path(temporary), console())
    print("\nThe model and the pictures were deleted. To keep them: twinlens demo --folder tour")
