"""`twinlens list` and `twinlens inspect`: which checkpoints there are, and what is in one."""

import textwrap
from dataclasses import asdict
from typing import Annotated, Any

import typer

from .options import AsJson, with_load_options
from .terminal import print_json, print_line, quiet_libraries


def list_command(
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show the address and the published hash of each, on lines of their own.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the published checkpoints that `convert` downloads by name; --json adds geometry, address and sources."""
    from ..catalogue import BUNDLED, CATALOGUE

    entries = CATALOGUE.values()
    if as_json:
        print_json([asdict(entry) | {"parameters": entry.parameters} for entry in entries])
        return
    width = max(len(entry.name) for entry in entries)
    print(f"{'name':<{width}} {'family':<11}{'size':>6} {'pixels':>6} {'text':>4} licence")
    for entry in entries:
        size = f"{_millions(entry.parameters):>6} {entry.image_size or 'any':>6} {entry.text_length:>4}"
        print(f"{entry.name:<{width}} {entry.family:<11}{size} {entry.license}")
        if verbose:
            print(f"    {entry.address}")
            print(f"    sha256 {entry.sha256 or 'not published'}")
    published = sum(entry.sha256 is not None for entry in entries)
    notes = [
        "size: parameters; pixels: per side of an image; text: tokens, padding included.",
        f"Of {published} of these {len(entries)} files a hash is published, with which a download is compared. Of the "
        "others the geometry is compared, and `convert` shows the hash that it computed. --verbose shows addresses and "
        "hashes.",
        f"Part of this package, and trained on drawings of coloured shapes: {', '.join(BUNDLED)}.",
    ]
    for note in notes:
        print(textwrap.fill(note, 80))


def _millions(number: int) -> str:
    """Return a number of parameters in three digits or so: 102M, 1.87B."""
    return f"{number / 1e6:.0f}M" if number < 999.5e6 else f"{number / 1e9:.2f}B"


@with_load_options
def inspect_command(
    source: Annotated[
        str,
        typer.Argument(
            help="A checkpoint file, a folder, or a name from `twinlens list`, which is downloaded.", metavar="SOURCE"
        ),
    ],
    *,
    as_json: AsJson = False,
    **load_options: Any,
) -> None:
    """Show what a checkpoint is: family, geometry, dtypes, parameters and hash. No code in the file is executed."""
    quiet_libraries()
    from ..formats import inspect_source

    description = inspect_source(source, **load_options)
    if as_json:
        print_json(description)
    else:
        print_description(description)


def print_description(description: dict[str, Any]) -> None:
    """Print the answer of `inspect_source` as a column of names and a column of values."""
    vision, text = (description["geometry"].get(part) for part in ("vision", "text"))
    facts = {
        "family": description["family"],
        "format": f"{description['format']}, {description['layout']}",
    }
    if vision:
        pixels = f"{vision['image_size']} pixels" if "image_size" in vision else "any aspect"
        facts["image"] = f"{pixels}, patch {vision['patch_size']}; {describe_tower(vision)}"
    if text:
        facts["text"] = f"{text['max_position_embeddings']} tokens of {text['vocab_size']}; {describe_tower(text)}"
    facts["parameters"] = f"{description['parameters']:,}"
    facts["values"] = ", ".join(f"{count:,} {dtype}" for dtype, count in description["dtypes"].items())
    for name, value in facts.items():
        print_line(f"{name:<11}{value}")
    for file in description["files"]:
        print_line(f"{'file':<11}{file['name']}, {file['bytes']:,} bytes, sha256 {file['sha256']}")


def describe_tower(tower: dict[str, Any]) -> str:
    """Return the geometry of a tower in words: "64 wide, 2 layers, 1 head, MLP 128"."""
    layers, heads = tower["num_hidden_layers"], tower["num_attention_heads"]
    counts = ", ".join(f"{n} {noun}{'' if n == 1 else 's'}" for n, noun in ((layers, "layer"), (heads, "head")))
    if depths := tower.get("depths"):
        counts = f"ResNet of {', '.join(map(str, depths))} blocks, {heads} head{'' if heads == 1 else 's'}"
    return f"{tower['hidden_size']} wide, {counts}" + (
        f", MLP {tower['intermediate_size']}" if "intermediate_size" in tower else ""
    )
