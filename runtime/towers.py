"""The towers in a model, whatever its class."""

from collections.abc import Collection

from transformers import PreTrainedModel


def absent_towers(model: PreTrainedModel, missing: Collection[str]) -> list[str]:
    """Return the names of the towers in a model, or of a tower itself, of which all weights are among the missing."""
    towers = [(f"{name}.", child) for name, child in model.named_children() if isinstance(child, PreTrainedModel)]
    return [
        prefix.rstrip(".") or type(tower).__name__
        for prefix, tower in towers or [("", model)]
        if all(prefix + name in missing for name in tower.state_dict())
    ]
