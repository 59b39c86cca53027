"""Dual encoders whose `get_image_features` and `get_text_features` return tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import transformers

from .. import modeling


class TensorFeatures:
    """Mixin of dual encoders: features are tensors, unless `return_dict=True` asks for all outputs of the tower."""

    def get_image_features(self, *args: Any, **kwargs: Any) -> Any:
        """Return projected features of images (images, dim), not normalised."""
        return _features(super().get_image_features, args, kwargs)  # type: ignore[misc]

    def get_text_features(self, *args: Any, **kwargs: Any) -> Any:
        """Return projected features of texts (texts, dim), not normalised."""
        return _features(super().get_text_features, args, kwargs)  # type: ignore[misc]


def _features(get: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    outputs = get(*args, **{**kwargs, "return_dict": True})
    return outputs if kwargs.get("return_dict") else outputs.pooler_output


class CLIPModel(TensorFeatures, modeling.CLIPModel):
    """CLIP whose features are tensors."""


class CLIPResNetModel(TensorFeatures, modeling.CLIPResNetModel):
    """CLIP with a ResNet, whose features are tensors."""


class SiglipModel(TensorFeatures, modeling.SiglipModel):
    """SigLIP whose features are tensors."""


class Siglip2Model(TensorFeatures, modeling.Siglip2Model):
    """SigLIP 2 NaFlex whose features are tensors."""


@contextmanager
def in_place_of_transformers() -> Iterator[None]:
    """Let `from_pretrained` of transformers' CLIPModel, SiglipModel and Siglip2Model load ours inside the block.

    It is for clients that name transformers' class themselves. Models that they load in the block keep returning
    tensors after it.
    """
    natives: dict[Any, Any] = {
        getattr(transformers, own.__name__): own for own in (CLIPModel, SiglipModel, Siglip2Model)
    }
    try:
        for native, own in natives.items():
            native.from_pretrained = _loading(native, own)
        yield
    finally:
        for native in natives:
            if "from_pretrained" in vars(native):
                del native.from_pretrained


def _loading(native: Any, own: Any) -> Any:
    inherited = native.from_pretrained.__func__

    @wraps(inherited)
    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return own.from_pretrained(*args, **kwargs) if cls is native else inherited(cls, *args, **kwargs)

    return classmethod(from_pretrained)
