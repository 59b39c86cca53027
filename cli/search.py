"""`twinlens search`: find images of an index by a text or by another image."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .models import check_model
from .options import AsJson
from .terminal import print_json, print_line, quiet_libraries, show_progress

if TYPE_CHECKING:
    from ..index import SearchResult

PAGE_SUFFIXES = (".html", ".htm")


def search_command(
    index: Annotated[str, typer.Argument(help="The folder that `twinlens embed` wrote.", metavar="DIR")],
    text: Annotated[
        str | None,
        typer.Argument(help='The thing to find, in words: "a red bicycle".', metavar="TEXT", show_default=False),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(help="An image file or URL to find similar ones of, in place of TEXT.", metavar="IMAGE"),
    ] = None,
    top: Annotated[int, typer.Option(min=1, metavar="N", help="The number of images to find.")] = 20,
    html: Annotated[
        Path | None, typer.Option(help="The page with thumbnails to write: one file, which needs no other.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The model, if it is no longer where the index says: a folder, an official file, or a Hub id. Its "
            "weights have to be those that embedded the images, in whatever format and dtype.",
            show_default=False,
        ),
    ] = None,
    where: Annotated[
        str,
        typer.Option(
            help="A condition in SQL on the columns row, path, hash and size: \"path LIKE '%/2024/%'\". Needs lancedb.",
            show_default=False,
        ),
    ] = "",
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate",
            help="Let LanceDB's own index choose what is compared, for many millions of images: it may miss some. "
            "It is made at the first time. Needs lancedb.",
        ),
    ] = False,
    tokenizer: Annotated[
        Path | None, typer.Option(help="The vocabulary, if the model has none: a file or folder as for `convert`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find images by words, or by another image.

    The score is the cosine of the vectors of image and query. Scores of texts and of images are not comparable: those
    of texts are lower. Without --approximate the answer is exact.
    """
    if (text is None) == (image is None):
        raise typer.BadParameter('Pass either a text, such as "a red bicycle", or --image FILE.')
    if html is not None and (html.suffix.lower() not in PAGE_SUFFIXES or html.is_dir()):
        raise ValueError(f"Expected the name of a page to write, such as out.html, got {html}.")
    quiet_libraries()
    from ..index import Index, Searcher
    from ..index.lance import import_lancedb, open_table
    from ..processing.image_input import open_image

    if where or approximate:
        import_lancedb()
    opened = Index.open(index)
    _check_model_of(opened, model)
    picture = None if image is None else open_image(image)  # before the model is loaded
    searcher = Searcher.open(opened, model, tokenizer, reads_texts=text is not None)
    embed = searcher.embed_image(picture) if text is None else searcher.embed_text(text)
    if where or approximate:
        with show_progress(quiet=as_json) as report:
            open_table(opened, report)
    results = searcher.nearest(embed, top, where=where, approximate=approximate)
    if html is not None:
        _write_page(html, f"Images like {image}" if text is None else text, picture, results, opened)
    if as_json:
        listed = [{"row": result.row, "path": result.path, "score": result.score} for result in results]
        asked = {"text": text} if image is None else {"image": image}
        print_json({"query": asked, "images": opened.rows, "page": html and str(html), "results": listed})
        return
    if not results:
        print("No image fulfils the condition.", file=sys.stderr)
    for result in results:
        print_line(f"{result.score:7.4f}  {result.path}")
    if html is not None:
        print_line(f"Wrote {html}")


def _check_model_of(index: Any, model: str | None) -> None:
    """Raise OSError where neither the model that was given, nor else that of the index, is within reach."""
    if model is not None:
        check_model(model)
        return
    try:
        check_model(str(index.metadata["model"]))
    except OSError as error:
        message = f"The model that embedded {index.folder} is not within reach, pass it with --model: {error}"
        raise FileNotFoundError(message) from error


def _write_page(html: Path, title: str, picture: Any, results: "list[SearchResult]", index: Any) -> None:
    from ..formats.atomic import complete_or_absent
    from ..index import PageItem, make_page, make_thumbnail, make_thumbnails

    thumbnails = make_thumbnails([result.path for result in results])
    items = [
        PageItem(result.path, result.score, thumbnail) for result, thumbnail in zip(results, thumbnails, strict=True)
    ]
    note = f"{len(results)} of {index.rows:,} images, embedded by {index.metadata['model']}"
    page = make_page(title, items, note, None if picture is None else make_thumbnail(picture))
    with complete_or_absent(html, overwrite=True) as (partial,):
        partial.write_text(page, encoding="utf-8")
