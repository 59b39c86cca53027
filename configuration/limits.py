"""What a configuration may claim: sizes of models that there are, and no more than the weights beside it can hold."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_MAX_SIZE = 1 << 24  # of a width, a vocabulary, a table; the largest published one is 256,000
MAX_LAYERS = 1000
_MAX_LABELS = 1_000_000
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # not adapters, nor the state of a training
_PARAMETERS_PER_BYTE = 2  # of weights in four bits
_UNCHECKED_PARAMETERS = 128_000_000  # 512 MB: what is missing, such as a tower of the default size, may be made new


def check_sizes(config: object, names: Iterable[str], least: int = 1, most: int = _MAX_SIZE) -> None:
    """Raise ValueError for a field that is not between `least` and `most`; the configuration may lack the field."""
    for name in names:
        value = getattr(config, name, None)
        if value is not None and not least <= value <= most:
            wording = f"at least {least}" if value < least else f"at most {most:,}"
            raise ValueError(f"{name} must be {wording}, got {_short(value)}.")


def check_numbers(config: object, names: Iterable[str]) -> None:
    """Raise ValueError for a field that is NaN, infinite or negative; the configuration may lack the field."""
    for name in names:
        value = getattr(config, name, None)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a number of at least 0, got {value}.")


def check_labels(values: dict[str, Any]) -> None:
    """Raise ValueError for a number of labels that no classifier has; transformers would make a name for each."""
    count = values.get("num_labels")
    if count is not None and (type(count) is not int or not 0 <= count <= _MAX_LABELS):
        raise ValueError(f"num_labels must be a whole number of at most {_MAX_LABELS:,}, got {_short(count)}.")


def check_weights(config: object, folder: Path) -> None:
    """Raise ValueError where a model would be far larger than the weights in its folder, before it is built."""
    size = sum(file.stat().st_size for pattern in _WEIGHTS for file in folder.glob(pattern) if file.is_file())
    parameters = sum(_least_parameters(tower) for tower in _towers(config))
    if size and parameters > _UNCHECKED_PARAMETERS + _PARAMETERS_PER_BYTE * size:
        raise ValueError(
            f"{folder} has {size:,} bytes of weights, but its config.json describes a model of at least {parameters:,} "
            "parameters: one of them belongs to another model."
        )


def _towers(config: object) -> list[Any]:
    return [tower for name in ("vision_config", "text_config") if (tower := getattr(config, name, None))] or [config]


def _least_parameters(tower: Any) -> int:
    """Return how many parameters the large matrices of a tower have; a size that it does not have counts as none."""
    width, layers, mlp = (getattr(tower, n, 0) for n in ("hidden_size", "num_hidden_layers", "intermediate_size"))
    rows = sum(getattr(tower, name, 0) for name in ("vocab_size", "max_position_embeddings", "num_positions"))
    patch: int = 3 * getattr(tower, "patch_size", 0) ** 2
    return width * (layers * (4 * width + 2 * mlp) + rows + patch)


def _short(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and abs(value) < 10**20 else f"a {type(value).__name__}"
