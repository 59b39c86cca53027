"""`twinlens list` and `twinlens inspect`: which checkpoints there are, and what is in one."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from .options import AsJson, with_load_options
from .terminal import print_json, quiet_libraries


def list_command(as_json: AsJson = False) -> None:
    """List the published checkpoints that `convert` downloads by name; --json adds geometry, licence and sources."""
    from ..catalogue import BUNDLED, CATALOGUE

    if as_json:
        print_json([asdict(entry) | {"parameters": entry.parameters} for entry in CATALOGUE.values()])
        return
    print(f"{'name':<41}{'family':<9}{'parameters':>13}{'pixels':>8}{'tokens':>8}  {'sha256':<10}address")
    for entry in CATALOGUE.values():
        pixels, digest = entry.image_size or "any", (entry.sha256 or "-")[:8]
        size = f"{entry.parameters:>13,}{pixels:>8}{entry.text_length:>8}"
        print(f"{entry.name:<41}{entry.family:<9}{size}  {digest:<10}{entry.address}")
    print(f"Part of this package, and trained on drawings of coloured shapes: {', '.join(BUNDLED)}.")


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
        print(f"{name:<11}{value}")
    for file in description["files"]:
        print(f"{'file':<11}{file['name']}, {file['bytes']:,} bytes, sha256 {file['sha256']}")


def describe_tower(tower: dict[str, Any]) -> str:
    """Return the geometry of a tower in words: "64 wide, 2 layers, 1 head, MLP 128"."""
    layers, heads = tower["num_hidden_layers"], tower["num_attention_heads"]
    counts = ", ".join(f"{n} {noun}{'' if n == 1 else 's'}" for n, noun in ((layers, "layer"), (heads, "head")))
    if depths := tower.get("depths"):
        counts = f"ResNet of {', '.join(map(str, depths))} blocks, {heads} head{'' if heads == 1 else 's'}"
    return f"{tower['hidden_size']} wide, {counts}" + (
        f", MLP {tower['intermediate_size']}" if "intermediate_size" in tower else ""
    )
