"""Where the weights come from that a training starts from: their licence, and their repository on the Hub."""

import re
from pathlib import Path
from typing import NamedTuple

import yaml
from huggingface_hub import hf_hub_download

from ..catalogue import BUNDLED, BUNDLED_LICENSE, official_checkpoint
from ..catalogue.download import is_name

_CARD_BEGINNING = 1 << 16  # bytes of a card that are read; its metadata come first
_LONGEST = 100  # characters of a licence, or of a repository
_METADATA = re.compile(r"---\r?\n(.*?)\r?\n---", re.DOTALL)


class Origin(NamedTuple):
    """What is known about the weights of a model."""

    license: str | None
    repository: str | None


def origin_of(model: str) -> Origin:
    """Return what the catalogue, or the card of a folder or a repository, states about a model; None is not known."""
    if model in BUNDLED and is_name(model):
        return Origin(BUNDLED_LICENSE, None)
    if is_name(model):
        entry = official_checkpoint(model)
        return Origin(entry.license, entry.hub_repository)
    path = Path(model)
    if not path.exists():
        return Origin(_metadata(_downloaded_card(model)).get("license"), model)
    stated = _metadata(path / "README.md")
    return Origin(stated.get("license"), stated.get("base_model"))


def _downloaded_card(repository: str) -> Path | None:
    try:
        return Path(hf_hub_download(repository, "README.md"))
    except (OSError, ValueError):  # there is no card, no network, or no such repository
        return None


def _metadata(card: Path | None) -> dict[str, str]:
    """Return those of the metadata of a card that are a short text; nothing for one that is missing or not sound."""
    if card is None or not card.is_file():
        return {}
    with card.open("rb") as file:
        match = _METADATA.match(file.read(_CARD_BEGINNING).decode("utf-8", errors="replace"))
    try:
        stated = yaml.safe_load(match[1]) if match else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    values = stated.items() if isinstance(stated, dict) else ()
    return {
        name: value
        for name, value in values
        if isinstance(value, str) and value.isprintable() and 0 < len(value) <= _LONGEST
    }
