"""A page of images with their scores: one HTML file that holds all it shows, and asks no other for anything."""

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from ..messages import printable
from .originals import Thumbnail, split_member

# What is inside cannot run, and loads nothing, even where a name were not escaped.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --card: #f4f4f5; --text: #18181b; --quiet: #5f5f69; }
@media (prefers-color-scheme: dark) { :root { --ground: #111113; --card: #1e1e21; --text: #ededf0; --quiet: #a3a3ad; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 100rem; padding: 1rem; background: var(--ground); color: var(--text);
  font: 1rem/1.4 system-ui, sans-serif; overflow-wrap: anywhere; }
header { display: flex; gap: 1rem; align-items: center; margin-bottom: 1rem; }
header img { max-width: 8rem; max-height: 8rem; border-radius: .5rem; }
h1 { margin: 0; font-size: 1.4rem; white-space: pre-wrap; }
p { margin: .25rem 0 0; color: var(--quiet); font-size: .875rem; }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .75rem; margin: 0; padding: 0;
  list-style: none; }
figure { margin: 0; height: 100%; background: var(--card); border-radius: .5rem; overflow: hidden; }
figure img, .problem { display: block; width: 100%; height: auto; aspect-ratio: 1; object-fit: contain; }
.problem { display: grid; place-content: center; padding: 1rem; text-align: center; color: var(--quiet);
  font-size: .875rem; overflow: hidden; }
figcaption { padding: .5rem .625rem .625rem; font-size: .875rem; }
.score { font-variant-numeric: tabular-nums; font-weight: 600; }
.rank { float: right; color: var(--quiet); }
.name, .place { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden; }
.name, .place, .caption { white-space: pre-wrap; }
.caption { display: block; }
.place { color: var(--quiet); font-size: .75rem; }
a { color: inherit; }
a:focus-visible { outline: 2px solid; outline-offset: 2px; }
"""


@dataclass(frozen=True)
class PageItem:
    """An image of a page: its path in the index, its score, its thumbnail, and text below it if there is any."""

    path: str
    score: float
    thumbnail: Thumbnail
    caption: str = ""


def make_page(title: str, items: Sequence[PageItem], note: str = "", query_image: Thumbnail | None = None) -> str:
    """Return an HTML page with images in the order given.

    Names, captions, `title` and `note` are shown as they are, whatever they contain; characters that cannot be shown
    appear as Python escapes them. An image leads to its file on this machine, unless it lies in an archive.
    """
    shown = show_picture(query_image, "The image that was searched for") if query_image else ""
    body = "\n".join(show_item(rank, item) for rank, item in enumerate(items, 1))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{to_html(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
{shown}<div>
<h1>{to_html(title)}</h1>
<p>{to_html(note)}</p>
</div>
</header>
<main>
<ol>
{body}
</ol>
</main>
</body>
</html>
"""


def show_item(rank: int, item: PageItem) -> str:
    """Return the list item of one image: its thumbnail, its rank and score, its name and where it lies."""
    file, member = split_member(item.path)
    name = Path(member or file).name or item.path
    place = item.path.removesuffix(name)
    picture = show_picture(item.thumbnail, name)
    if not member and os.path.isfile(file):
        picture = f'<a href="{escape(Path(file).absolute().as_uri())}">{picture}</a>'
    caption = f'<span class="caption">{to_html(item.caption)}</span>' if item.caption else ""
    return (
        f'<li><figure title="{to_html(item.path)}">{picture}<figcaption><span class="rank">{rank}</span> '
        f'<span class="score">{item.score:.3f}</span> <span class="name">{to_html(name)}</span> '
        f'{caption} <span class="place">{to_html(place)}</span></figcaption></figure></li>'
    )


def show_picture(thumbnail: Thumbnail, alternative: str) -> str:
    """Return a thumbnail as an element with its data inside, or in its place why there is none."""
    if not thumbnail.jpeg:
        return f'<span class="problem">{to_html(thumbnail.problem)}</span>'
    width, height = thumbnail.size
    data = base64.b64encode(thumbnail.jpeg).decode()
    return f'<img src="data:image/jpeg;base64,{data}" width="{width}" height="{height}" alt="{to_html(alternative)}">'


def to_html(text: str) -> str:
    """Return a text for any place between tags or in quotes; what cannot be printed appears as Python escapes it."""
    return escape(printable(text))
