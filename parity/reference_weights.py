"""The float64 reference's reading of official files: weights by their official names, and the settings of towers."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from .reference_layers import MLP, Array, Attention, Block, PoolingHead, Settings, WeightAndBias

GetWeight = Callable[[str], Array]  # official name below some prefix -> float64 array


class FileFacts(NamedTuple):
    """The facts about a file that its tensors do not show: the JSON beside it, and the options of the caller."""

    sidecar_json: Mapping[str, Any]
    vision_activation: str | None
    vision_heads: int | None
    eos_token_id: int | None = None

    def open_clip(self, part: str) -> Mapping[str, Any]:
        """Return `vision_cfg` or `text_cfg`; empty without open_clip's JSON."""
        return self.sidecar_json.get("model_cfg", {}).get(part, {})

    def open_clip_activation(self, part: str) -> str | None:
        """Return the activation of a tower that is open_clip's own; None without its JSON."""
        if not self.sidecar_json:
            return None
        if self.sidecar_json["model_cfg"].get("quick_gelu"):
            return "quick_gelu"
        return "gelu_pytorch_tanh" if self.open_clip(part).get("act_kwargs") else "gelu"

    def open_clip_eps(self, part: str) -> float:
        """Return the epsilon of a tower that is open_clip's own."""
        return (self.open_clip(part).get("norm_kwargs") or {}).get("eps", 1e-5)

    def timm_settings(self, model_name: str | None) -> Settings:
        """Return the settings that timm's name of a SigLIP implies; those of the caller for another model."""
        match = re.match(r"vit_(base|large|so400m|giantopt)_(patch\d+_siglip_\d+)$", model_name or "")
        if match is None:
            assert self.vision_heads is not None
            assert self.vision_activation is not None
            return Settings(self.vision_heads, self.vision_activation, 1e-6)
        tanh = "patch32|giantopt|so400m_patch16|large_patch16_siglip_512"
        activation = "gelu_pytorch_tanh" if re.search(tanh, match[0]) else "gelu"
        return Settings(12 if match[1] == "base" else 16, activation, 1e-6)


def weights_below(tensors: Mapping[str, Any], prefix: str = "") -> GetWeight:
    """Return a function from names below a prefix to float64 arrays."""
    return lambda name: to_float64(tensors[prefix + name])


def transformers_config(values: Mapping[str, Any]) -> Any:
    """Return the configuration that a `config.json` states, in transformers' class, whatever is registered for it."""
    values = dict(values)
    return getattr(transformers, CONFIG_MAPPING_NAMES[values.pop("model_type")])(**values)


def to_float64(tensor: torch.Tensor | npt.NDArray[Any]) -> Array:
    """Convert a torch tensor or a NumPy array of any float type."""
    if isinstance(tensor, torch.Tensor):
        return tensor.detach().cpu().to(torch.float64).numpy()
    if tensor.dtype == np.dtype("V2"):  # NumPy's name for bfloat16 in a file: the upper half of a float32
        tensor = (np.asarray(tensor).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.asarray(tensor, np.float64)


# PyTorch: matrices are (out, in); OpenAI, open_clip and timm stack those of query, key and value.


def torch_pair(weight: GetWeight, name: str) -> WeightAndBias:
    """Read a linear map or a norm of PyTorch."""
    return weight(f"{name}.weight").T, weight(f"{name}.bias")


def torch_stacked(weight: GetWeight, name: str, count: int = 3) -> list[WeightAndBias]:
    """Read linear maps that are stored as one: query, key and value, or key and value."""
    parts = (np.split(weight(f"{name}{part}"), count) for part in ("weight", "bias"))
    return [(matrix.T, bias) for matrix, bias in zip(*parts, strict=True)]


def torch_blocks(tensors: Mapping[str, Any], prefix: str) -> Iterable[Block]:
    """Read the layers of OpenAI, open_clip, timm or transformers one at a time; the names of their norms differ."""
    for index in range(_depth(tensors, prefix)):
        weight = weights_below(tensors, f"{prefix}{index}.")
        if f"{prefix}0.ln_1.weight" in tensors:  # OpenAI, open_clip
            query_key_value = torch_stacked(weight, "attn.in_proj_")
            names = ("ln_1", "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
        elif f"{prefix}0.norm1.weight" in tensors:  # timm
            query_key_value = torch_stacked(weight, "attn.qkv.")
            names = ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        else:  # transformers
            query_key_value = [torch_pair(weight, f"self_attn.{part}_proj") for part in "qkv"]
            names = ("layer_norm1", "self_attn.out_proj", "layer_norm2", "mlp.fc1", "mlp.fc2")
        query, key, value = query_key_value
        norm_1, out, norm_2, fc1, fc2 = (torch_pair(weight, name) for name in names)
        yield Block(norm_1, Attention(query, key, value, out), norm_2, MLP(fc1, fc2))


# Flax: matrices are (in, out), with heads on axes of their own; blocks may be stacked on a leading axis ("scanned").


def flax_linear(weight: GetWeight, name: str) -> WeightAndBias:
    """Read a linear map of Flax."""
    return weight(f"{name}/kernel"), weight(f"{name}/bias")


def flax_norm(weight: GetWeight, name: str) -> WeightAndBias:
    """Read a norm of Flax."""
    return weight(f"{name}/scale"), weight(f"{name}/bias")


def flax_blocks(tensors: Mapping[str, Any], tower: str) -> Iterable[Block]:
    """Read the layers of a tower of big_vision one at a time."""
    scanned = f"{tower}encoderblock/LayerNorm_0/scale" in tensors
    if scanned:
        depth = len(tensors[f"{tower}encoderblock/LayerNorm_0/scale"])
    else:
        depth = _depth(tensors, f"{tower}encoderblock_")
    for index in range(depth):

        def weight(name: str, index: int = index) -> Array:
            if scanned:
                return to_float64(tensors[f"{tower}encoderblock/{name}"][index])
            return to_float64(tensors[f"{tower}encoderblock_{index}/{name}"])

        norm_1, norm_2 = flax_norm(weight, "LayerNorm_0"), flax_norm(weight, "LayerNorm_1")
        yield Block(norm_1, _flax_attention(weight), norm_2, _flax_mlp(weight))


def flax_pooling_head(tensors: Mapping[str, Any], prefix: str) -> PoolingHead:
    """Read big_vision's `MAPHead`."""
    weight = weights_below(tensors, prefix)
    return PoolingHead(weight("probe"), _flax_attention(weight), flax_norm(weight, "LayerNorm_0"), _flax_mlp(weight))


def flax_settings(tensors: Mapping[str, Any], tower: str) -> Settings:
    """Read the number of heads from the shape of a query; the rest is the same in all of big_vision."""
    query = next(tensor for name, tensor in tensors.items() if name.startswith(tower) and name.endswith("query/kernel"))
    return Settings(query.shape[-2], "gelu_pytorch_tanh", 1e-6)


def _flax_attention(weight: GetWeight) -> Attention:
    name = "MultiHeadDotProductAttention_0"
    query, key, value = (  # kernels (width, heads, head_dim), biases (heads, head_dim)
        (kernel.reshape(len(kernel), -1), bias.reshape(-1))
        for kernel, bias in (flax_linear(weight, f"{name}/{part}") for part in ("query", "key", "value"))
    )
    kernel, bias = flax_linear(weight, f"{name}/out")  # (heads, head_dim, width), (width,)
    return Attention(query, key, value, (kernel.reshape(-1, kernel.shape[-1]), bias))


def _flax_mlp(weight: GetWeight) -> MLP:
    return MLP(flax_linear(weight, "MlpBlock_0/Dense_0"), flax_linear(weight, "MlpBlock_0/Dense_1"))


def _depth(tensors: Mapping[str, Any], prefix: str) -> int:
    """Count the layers by their names, which are `<prefix><index>.` or `<prefix><index>/` and more."""
    return len({re.split("[./]", name[len(prefix) :])[0] for name in tensors if name.startswith(prefix)})
