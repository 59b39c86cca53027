"""Nested settings as one dictionary, in which two of them can be compared."""

from collections.abc import Mapping
from typing import Any


def flattened(settings: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one dictionary, with names like `vision_config.hidden_size`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= flattened(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
