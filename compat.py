"""Our models as transformers 4 had them, for clients written before transformers 5: features are tensors.

`get_image_features` and `get_text_features` return (images, dim) and (texts, dim), projected and not normalised, in
place of the outputs of a tower. All else is the model of the same name.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers

from . import modeling
from .integration import substituted


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
    with substituted({getattr(transformers, own.__name__): own for own in (CLIPModel, SiglipModel, Siglip2Model)}):
        yield
