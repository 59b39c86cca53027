"""The float64 reference: the official forward pass of any official file, which every conversion is compared with.

It is written in NumPy from the official code, by the official names of the weights. It shares no code with `modeling`
or with the tables of `formats`, so that a mistake there cannot hide here.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .reference_clip import openai_forward, transformers_clip_forward, twinlens_resnet_forward
from .reference_layers import Images, Reference, TowerReference
from .reference_siglip import big_vision_forward, open_clip_siglip_forward, timm_forward, transformers_siglip_forward
from .reference_weights import FileFacts

__all__ = ["Reference", "TowerReference", "reference_forward"]

_FORWARDS = {  # by a weight that only files of this format have
    "visual.proj": openai_forward,
    "visual.attnpool.c_proj.weight": openai_forward,
    "visual.trunk.pos_embed": open_clip_siglip_forward,
    "attn_pool.latent": timm_forward,
    "img/MAPHead_0/probe": big_vision_forward,
    "vision_model.embeddings.class_embedding": transformers_clip_forward,
    "vision_model.head.position_embedding.weight": twinlens_resnet_forward,
    "vision_model.head.probe": transformers_siglip_forward,
}


def reference_forward(
    tensors: Mapping[str, Any],
    pixel_values: npt.ArrayLike,
    input_ids: npt.ArrayLike,
    *,
    spatial_shapes: npt.ArrayLike | None = None,
    sidecar_json: Mapping[str, Any] | None = None,
    vision_activation: str | None = None,
    vision_heads: int | None = None,
    eos_token_id: int | None = None,
) -> Reference:
    """Run official weights on (images, 3, height, width) normalised pixels and (texts, length) ids.

    A NaFlex model takes patches (images, length, values of a patch) in place of pixels, and `spatial_shapes` (images,
    2), the patches down and across; what follows these in `pixel_values` is padding, and meaningless in the outputs.
    `tensors` maps official names to torch tensors or NumPy arrays of any float type (bfloat16 as `|V2` included); each
    weight is cast to float64 when it is used, so that a full-size model needs no second copy. `sidecar_json` is the
    JSON beside the weights: open_clip_config.json, or config.json of timm or transformers. `vision_activation`,
    `vision_heads` and `eos_token_id` are used where neither says them. Raises ValueError for weights of another format.
    """
    tensors = _WithoutPrefix(tensors)
    facts = FileFacts(sidecar_json or {}, vision_activation, vision_heads, eos_token_id)
    for name, forward in _FORWARDS.items():
        if name in tensors:
            grids = None if spatial_shapes is None else np.asarray(spatial_shapes, np.int64)
            images = Images(np.asarray(pixel_values, np.float64), grids)
            return forward(tensors, images, np.asarray(input_ids, np.int64), facts)
    raise ValueError(
        "Expected weights under OpenAI's names (visual.proj, ...), open_clip's, timm's, transformers' or big_vision's "
        f"(img/MAPHead_0/probe, ...). Got {sorted(tensors)[:3]}."
    )


class _WithoutPrefix(Mapping[str, Any]):
    """The same tensors without what stands before all of their names; each is read only when it is used."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self._tensors = tensors
        prefixes = (name.removesuffix(known) for known in _FORWARDS for name in tensors if name.endswith(known))
        prefix = min(prefixes, key=len, default="")
        self._names = {name.removeprefix(prefix): name for name in tensors}

    def __getitem__(self, name: str) -> Any:
        return self._tensors[self._names[name]]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
