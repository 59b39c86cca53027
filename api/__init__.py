"""twinlens: CLIP, SigLIP and SigLIP 2 on one encoder. Public names are imported when they are first used (PEP 562)."""

from importlib import import_module
from typing import Any

from ._version import __version__

_CLASSES = {
    "configuration": (
        *("CLIPConfig", "CLIPTextConfig", "CLIPVisionConfig", "DualEncoderConfig"),
        *("SiglipConfig", "SiglipTextConfig", "SiglipVisionConfig"),
    ),
    "modeling": (
        *("CLIPForImageClassification", "CLIPModel", "CLIPTextModel", "CLIPTextModelWithProjection"),
        *("CLIPVisionModel", "CLIPVisionModelWithProjection", "DualEncoderModel"),
        *("SiglipForImageClassification", "SiglipModel", "SiglipTextModel", "SiglipVisionModel"),
    ),
    "processing": (
        *("CLIPImageProcessor", "CLIPProcessor", "CLIPTokenizer", "DualEncoderProcessor"),
        *("Siglip2ImageProcessor", "Siglip2Processor"),
        *("SiglipImageProcessor", "SiglipProcessor", "SiglipTokenizer"),
    ),
}
_PACKAGE_OF = {name: package for package, names in _CLASSES.items() for name in names}

__all__ = ["__version__", *sorted(_PACKAGE_OF)]


def __getattr__(name: str) -> Any:
    if name not in _PACKAGE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PACKAGE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
