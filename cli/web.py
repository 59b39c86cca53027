"""`twinlens app`: a page in the browser to try a model with."""

from pathlib import Path
from threading import Event
from typing import Annotated

import typer

from .models import check_model
from .options import Model
from .terminal import quiet_libraries, show_progress


def app_command(
    model: Model,
    index: Annotated[
        Path | None,
        typer.Option(help="A folder that `twinlens embed` wrote with MODEL, to search in.", metavar="DIR"),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="The vocabulary, if MODEL has none: a file or folder as for `convert`.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen at; 0.0.0.0 for other machines of the network too.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="The port; by default the first free one from 7860.", show_default=False),
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Also make a public address for a week, through a server of Gradio.")
    ] = False,
) -> None:
    """Try a model in the browser: classify, compare images with texts, search an index. Ctrl-C ends it.

    Whoever can reach the page can use the model and sees the images of the index.
    """
    from ..web.interface import build_app, import_gradio

    import_gradio()
    quiet_libraries()
    check_model(model)
    with show_progress(quiet=False) as progress:
        progress("reading the model")
        page = build_app(model, index, tokenizer=tokenizer)
    try:
        _, address, public = page.launch(
            server_name=host, server_port=port, share=share, quiet=True, prevent_thread_lock=True
        )
    except OSError as error:
        where = host if port is None else f"{host}, port {port}"
        raise OSError(
            f"Expected an address to listen at, got {where}, which is not ours or in use: choose another --port or "
            "--host."
        ) from error
    print(f"{public or address}  (Ctrl-C ends it)", flush=True)
    try:
        Event().wait()
    except KeyboardInterrupt:
        page.close()
