"""The official forward passes in float64 NumPy, by the official weight names: what every conversion is held against.

Nothing here is shared with `modeling` or with the tables of `formats`, so that a mistake there cannot hide here.
Sources: openai/CLIP `clip/model.py@d05afc4`; google-research/big_vision@0127fb6 `models/vit.py`,
`models/proj/image_text/{two_towers,text_transformer}.py`, and the Flax layers these call; open_clip 3.3.0 `model.py`,
`transformer.py`; timm 1.0.31 `models/vision_transformer.py`, `layers/attention_pool.py`; transformers 5.23.0
`models/{clip,siglip}/modeling_*.py`.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import transformers

Array = npt.NDArray[np.float64]
Weight = Callable[[str], Array]  # official name below some prefix -> float64 array
Pair = tuple[Array, Array]  # scale and bias of a norm, or matrix (in, out) and bias of a linear map


@dataclass(frozen=True)
class TowerReference:
    """What one tower computes, named and indexed as in transformers' outputs."""

    hidden_states: list[Array]  # [embeddings, after block 1, ..., after the last block], each (batch, length, width)
    last_hidden_state: Array  # after the final norm; CLIP's image tower: before it
    pooler_output: Array  # (batch, dim), projected
    embeds: Array  # (batch, dim), unit length


@dataclass(frozen=True)
class Reference:
    """Both towers and logits_per_image (images, texts); without texts, of an image tower alone, None for these."""

    image: TowerReference
    text: TowerReference | None
    logits_per_image: Array | None


class _Kind(NamedTuple):
    """What tells one tower's arithmetic from another's."""

    heads: int
    activation: str
    eps: float
    causal: bool = False


class _Block(NamedTuple):
    """The weights of one layer, or those of attention pooling, whose `norm_1` is none."""

    norm_1: Pair | None
    query: Pair
    key: Pair
    value: Pair
    out: Pair
    norm_2: Pair
    fc1: Pair
    fc2: Pair


def reference_forward(
    tensors: Mapping[str, Any],
    pixel_values: npt.ArrayLike,
    input_ids: npt.ArrayLike,
    *,
    beside: Mapping[str, Any] | None = None,
    vision_activation: str | None = None,
    vision_heads: int | None = None,
) -> Reference:
    """Run official weights on (images, 3, height, width) normalised pixels and (texts, length) ids.

    `tensors` maps official names to torch tensors or NumPy arrays of any float type (bfloat16 as `|V2` included); each
    weight is cast to float64 when used, so a full-size model needs no second copy. `beside` is the JSON that lies
    beside the file: open_clip_config.json, or config.json of timm or transformers. `vision_activation` and
    `vision_heads` are the caller's where nothing says them.
    """
    pixels, ids = np.asarray(pixel_values, np.float64), np.asarray(input_ids, np.int64)
    tensors = _Unprefixed(tensors)
    said = _Said(beside or {}, vision_activation, vision_heads)
    for name, run in (
        ("visual.proj", _clip),
        ("visual.trunk.pos_embed", _open_clip_siglip),
        ("attn_pool.latent", _timm),
        ("img/MAPHead_0/probe", _big_vision),
        ("vision_model.embeddings.class_embedding", _transformers_clip),
        ("vision_model.head.probe", _transformers_siglip),
    ):
        if name in tensors:
            return run(tensors, pixels, ids, said)
    raise ValueError(
        "Expected weights under OpenAI's names (visual.proj, ...), open_clip's, timm's, transformers' or big_vision's "
        f"(img/MAPHead_0/probe, ...). Got {sorted(tensors)[:3]}."
    )


class _Unprefixed(Mapping[str, Any]):
    """The same tensors without the prefix of their names; none is read before it is asked for."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self._tensors = tensors
        self._names = {name.removeprefix("params/").removeprefix("module."): name for name in tensors}

    def __getitem__(self, name: str) -> Any:
        return self._tensors[self._names[name]]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _Said(NamedTuple):
    """What is known about a file beside its tensors."""

    beside: Mapping[str, Any]
    vision_activation: str | None
    vision_heads: int | None

    def open_clip(self, part: str) -> Mapping[str, Any]:
        return self.beside.get("model_cfg", {}).get(part, {})

    def open_clip_activation(self, part: str) -> str | None:
        """That of a tower of open_clip's own; None without its JSON."""
        if not self.beside:
            return None
        if self.beside["model_cfg"].get("quick_gelu"):
            return "quick_gelu"
        return "gelu_pytorch_tanh" if self.open_clip(part).get("act_kwargs") else "gelu"

    def open_clip_eps(self, part: str) -> float:
        return (self.open_clip(part).get("norm_kwargs") or {}).get("eps", 1e-5)

    def timm(self, name: str | None) -> _Kind:
        """By timm's name of the model, which decides its activation, or as the caller says."""
        if (match := re.match(r"vit_(base|large|so400m|giantopt)_(patch\d+_siglip_\d+)$", name or "")) is None:
            assert self.vision_heads is not None
            assert self.vision_activation is not None
            return _Kind(self.vision_heads, self.vision_activation, 1e-6)
        tanh = "patch32|giantopt|so400m_patch16|large_patch16_siglip_512"
        activation = "gelu_pytorch_tanh" if re.search(tanh, match[0]) else "gelu"
        return _Kind(12 if match[1] == "base" else 16, activation, 1e-6)


def _clip(tensors: Mapping[str, Any], pixels: Array, ids: npt.NDArray[np.int64], said: _Said) -> Reference:
    """OpenAI's, and open_clip's own towers, which differ in activation and heads."""
    weight, width = _reader(tensors), len(tensors["visual.ln_post.bias"])
    image = _clip_image(
        weight,
        pixels,
        _torch_blocks(tensors, "visual.transformer.resblocks."),
        _Kind(
            said.vision_heads or width // said.open_clip("vision_cfg").get("head_width", 64),
            said.open_clip_activation("vision_cfg") or said.vision_activation or "quick_gelu",
            said.open_clip_eps("vision_cfg"),
        ),
        names=("visual.", "conv1.weight", "class_embedding", "positional_embedding", "ln_pre", "ln_post"),
        projection=weight("visual.proj"),
    )
    custom = "text." if "text.ln_final.weight" in tensors else ""
    x = _float64(tensors[f"{custom}token_embedding.weight"][ids])
    x = x + weight(f"{custom}positional_embedding")[: ids.shape[1]]
    kind = _Kind(
        said.open_clip("text_cfg").get("heads", x.shape[-1] // 64),
        said.open_clip_activation("text_cfg") or said.vision_activation or "quick_gelu",
        said.open_clip_eps("text_cfg"),
        causal=True,
    )
    states = _encode(x, _torch_blocks(tensors, f"{custom}transformer.resblocks."), kind)
    last = _layer_norm(states[-1], _pair(weight, f"{custom}ln_final"), kind.eps)
    pooled = last[np.arange(len(ids)), ids.argmax(-1)]  # the end of text has the highest id
    text = _tower(states, last, pooled @ weight(f"{custom}text_projection"))
    return Reference(image, text, np.exp(weight("logit_scale")) * image.embeds @ text.embeds.T)


def _clip_image(
    weight: Weight, pixels: Array, blocks: Iterable[_Block], kind: _Kind, names: tuple[str, ...], projection: Array
) -> TowerReference:
    prefix, conv, class_token, positions, norm_before, norm_after = names
    x = _embed(pixels, weight(prefix + conv))
    token = np.broadcast_to(weight(prefix + class_token), (len(x), 1, x.shape[-1]))
    x = np.concatenate([token, x], axis=1) + weight(prefix + positions)
    states = _encode(_layer_norm(x, _pair(weight, prefix + norm_before), kind.eps), blocks, kind)
    pooled = _layer_norm(states[-1][:, 0], _pair(weight, prefix + norm_after), kind.eps)
    return _tower(states, states[-1], pooled @ projection)


def _transformers_clip(tensors: Mapping[str, Any], pixels: Array, ids: npt.NDArray[np.int64], said: _Said) -> Reference:
    weight, config = _reader(tensors), transformers.AutoConfig.for_model(**said.beside)
    names = ("patch_embedding.weight", "class_embedding", "position_embedding.weight")
    image = _clip_image(
        weight,
        pixels,
        _torch_blocks(tensors, "vision_model.encoder.layers."),
        _kind(config.vision_config),
        names=("vision_model.", *(f"embeddings.{name}" for name in names), "pre_layrnorm", "post_layernorm"),
        projection=weight("visual_projection.weight").T,
    )
    states, last = _transformers_text(tensors, ids, _kind(config.text_config, causal=True))
    # Ids of 2 come from old folders, whose end of text is the highest id all the same.
    end = (
        ids.argmax(-1) if config.text_config.eos_token_id == 2 else (ids == config.text_config.eos_token_id).argmax(-1)
    )
    text = _tower(states, last, last[np.arange(len(ids)), end] @ weight("text_projection.weight").T)
    return Reference(image, text, np.exp(weight("logit_scale")) * image.embeds @ text.embeds.T)


def _transformers_siglip(
    tensors: Mapping[str, Any], pixels: Array, ids: npt.NDArray[np.int64], said: _Said
) -> Reference:
    weight, config = _reader(tensors), transformers.AutoConfig.for_model(**said.beside)
    kind = _kind(config.vision_config)
    x = _embed(pixels, weight("vision_model.embeddings.patch_embedding.weight"))
    x = x + weight("vision_model.embeddings.patch_embedding.bias")
    states = _encode(
        x + weight("vision_model.embeddings.position_embedding.weight"),
        _torch_blocks(tensors, "vision_model.encoder.layers."),
        kind,
    )
    last = _layer_norm(states[-1], _pair(weight, "vision_model.post_layernorm"), kind.eps)
    pool = _Block(
        None,
        *_fused(weight, "vision_model.head.attention.in_proj_"),
        *(
            _pair(weight, f"vision_model.head.{name}")
            for name in ("attention.out_proj", "layernorm", "mlp.fc1", "mlp.fc2")
        ),
    )
    image = _tower(states, last, _attention_pool(weight("vision_model.head.probe"), last, pool, kind))
    text_states, text_last = _transformers_text(tensors, ids, _kind(config.text_config))
    text = _tower(text_states, text_last, _linear(text_last[:, -1], _pair(weight, "text_model.head")))
    logits = np.exp(weight("logit_scale")) * image.embeds @ text.embeds.T + weight("logit_bias")
    return Reference(image, text, logits)


def _transformers_text(
    tensors: Mapping[str, Any], ids: npt.NDArray[np.int64], kind: _Kind
) -> tuple[list[Array], Array]:
    weight = _reader(tensors)
    x = _float64(tensors["text_model.embeddings.token_embedding.weight"][ids])
    x = x + weight("text_model.embeddings.position_embedding.weight")[: ids.shape[1]]
    states = _encode(x, _torch_blocks(tensors, "text_model.encoder.layers."), kind)
    return states, _layer_norm(states[-1], _pair(weight, "text_model.final_layer_norm"), kind.eps)


def _kind(config: Any, causal: bool = False) -> _Kind:
    return _Kind(config.num_attention_heads, config.hidden_act, config.layer_norm_eps, causal)


def _open_clip_siglip(tensors: Mapping[str, Any], pixels: Array, ids: npt.NDArray[np.int64], said: _Said) -> Reference:
    weight = _reader(tensors)
    image = _timm_image(
        tensors, "visual.trunk.", pixels, said.timm(said.open_clip("vision_cfg").get("timm_model_name"))
    )
    tokens = tensors["text.token_embedding.weight"]
    width = tokens.shape[1]
    # Without the JSON, what those of all published models say: So400m's heads, SigLIP 2's activation.
    kind = _Kind(
        said.open_clip("text_cfg").get("heads", 16 if width == 1152 else width // 64),
        said.open_clip_activation("text_cfg") or ("gelu_pytorch_tanh" if len(tokens) == 256_000 else "gelu"),
        said.open_clip_eps("text_cfg") if said.beside else 1e-6,
    )
    x = _float64(tokens[ids]) + weight("text.positional_embedding")
    states = _encode(x, _torch_blocks(tensors, "text.transformer.resblocks."), kind)
    last = _layer_norm(states[-1], _pair(weight, "text.ln_final"), kind.eps)
    pooled = last[:, -1]
    if "text.text_projection.weight" in tensors:
        pooled = _linear(pooled, _pair(weight, "text.text_projection"))
    text = _tower(states, last, pooled)
    logits = np.exp(weight("logit_scale")) * image.embeds @ text.embeds.T + weight("logit_bias")
    return Reference(image, text, logits)


def _timm(tensors: Mapping[str, Any], pixels: Array, ids: npt.NDArray[np.int64], said: _Said) -> Reference:
    return Reference(_timm_image(tensors, "", pixels, said.timm(said.beside.get("architecture"))), None, None)


def _timm_image(tensors: Mapping[str, Any], prefix: str, pixels: Array, kind: _Kind) -> TowerReference:
    weight = _reader(tensors, prefix)
    x = _embed(pixels, weight("patch_embed.proj.weight")) + weight("patch_embed.proj.bias") + weight("pos_embed")
    states = _encode(x, _torch_blocks(tensors, f"{prefix}blocks."), kind)
    last = _layer_norm(states[-1], _pair(weight, "norm"), kind.eps)
    key_value = [np.split(weight(f"attn_pool.kv.{part}"), 2) for part in ("weight", "bias")]
    pool = _Block(
        None,
        _pair(weight, "attn_pool.q"),
        *((matrix.T, bias) for matrix, bias in zip(*key_value, strict=True)),
        *(_pair(weight, f"attn_pool.{name}") for name in ("proj", "norm", "mlp.fc1", "mlp.fc2")),
    )
    return _tower(states, last, _attention_pool(weight("attn_pool.latent"), last, pool, kind))


def _big_vision(tensors: Mapping[str, Any], pixels: Array, ids: npt.NDArray[np.int64], said: _Said) -> Reference:
    weight = _reader(tensors)
    x = _embed(pixels, weight("img/embedding/kernel").transpose(3, 2, 0, 1)) + weight("img/embedding/bias")
    old_layout = "img/Transformer/pos_embedding" in tensors
    x = x + weight("img/Transformer/pos_embedding" if old_layout else "img/pos_embedding")
    kind = _flax_kind(tensors, "img/Transformer/")
    states = _encode(x, _flax_blocks(tensors, "img/Transformer/"), kind)
    last = _layer_norm(states[-1], _flax_norm(weight, "img/Transformer/encoder_norm/"), kind.eps)
    pool = _flax_block(weight, "img/MAPHead_0/")
    pooled = _attention_pool(weight("img/MAPHead_0/probe"), last, pool, kind)
    image = _tower(states, last, pooled, norm_floor=1e-8)

    positions = weight("txt/pos_embedding")
    if "txt/Encoder_0/pos_embedding" in tensors:
        positions = positions + weight("txt/Encoder_0/pos_embedding")
    x = _float64(tensors["txt/Embed_0/embedding"][ids]) + positions
    states = _encode(x, _flax_blocks(tensors, "txt/Encoder_0/"), _flax_kind(tensors, "txt/Encoder_0/"))
    last = _layer_norm(states[-1], _flax_norm(weight, "txt/Encoder_0/encoder_norm/"), kind.eps)
    pooled = last[:, -1]
    if "txt/head/kernel" in tensors:
        pooled = _linear(pooled, _flax_pair(weight, "txt/head"))
    text = _tower(states, last, pooled, norm_floor=1e-8)
    return Reference(image, text, np.exp(weight("t")) * image.embeds @ text.embeds.T + weight("b"))


def _reader(tensors: Mapping[str, Any], prefix: str = "") -> Weight:
    return lambda name: _float64(tensors[prefix + name])


def _pair(weight: Weight, name: str) -> Pair:
    return weight(f"{name}.weight").T, weight(f"{name}.bias")


def _fused(weight: Weight, name: str) -> Iterable[Pair]:
    """Query, key and value that are stored as one."""
    parts = (np.split(weight(f"{name}{part}"), 3) for part in ("weight", "bias"))
    return [(matrix.T, bias) for matrix, bias in zip(*parts, strict=True)]


def _torch_blocks(tensors: Mapping[str, Any], prefix: str) -> Iterable[_Block]:
    """The layers of OpenAI, open_clip, timm or transformers, told by their own names."""
    for index in range(_depth(tensors, prefix)):
        weight = _reader(tensors, f"{prefix}{index}.")
        if f"{prefix}0.ln_1.weight" in tensors:
            attention = _fused(weight, "attn.in_proj_")
            first, *others = ("ln_1", "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
        elif f"{prefix}0.norm1.weight" in tensors:
            attention = _fused(weight, "attn.qkv.")
            first, *others = ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        else:
            attention = [_pair(weight, f"self_attn.{part}_proj") for part in "qkv"]
            first, *others = ("layer_norm1", "self_attn.out_proj", "layer_norm2", "mlp.fc1", "mlp.fc2")
        yield _Block(_pair(weight, first), *attention, *(_pair(weight, name) for name in others))


def _flax_blocks(tensors: Mapping[str, Any], tower: str) -> Iterable[_Block]:
    scanned = f"{tower}encoderblock/LayerNorm_0/scale" in tensors  # one entry with a leading layer axis for all blocks
    if scanned:
        depth = len(tensors[f"{tower}encoderblock/LayerNorm_0/scale"])
    else:
        depth = _depth(tensors, f"{tower}encoderblock_")
    for index in range(depth):

        def weight(name: str, index: int = index) -> Array:
            if scanned:
                return _float64(tensors[f"{tower}encoderblock/{name}"][index])
            return _float64(tensors[f"{tower}encoderblock_{index}/{name}"])

        yield _flax_block(weight, "", norm=1)._replace(norm_1=_flax_norm(weight, "LayerNorm_0/"))


def _flax_block(weight: Weight, prefix: str, norm: int = 0) -> _Block:
    """Attention and MLP; of a layer, the norm between them is its second."""
    attention, mlp = f"{prefix}MultiHeadDotProductAttention_0/", f"{prefix}MlpBlock_0/"
    query, key, value = (  # of (width, heads, head_dim)
        (kernel.reshape(len(kernel), -1), bias.reshape(-1))
        for kernel, bias in (_flax_pair(weight, f"{attention}{part}") for part in ("query", "key", "value"))
    )
    kernel, bias = _flax_pair(weight, f"{attention}out")  # of (heads, head_dim, width)
    out = kernel.reshape(-1, kernel.shape[-1]), bias
    fc1, fc2 = (_flax_pair(weight, f"{mlp}Dense_{n}") for n in (0, 1))
    return _Block(None, query, key, value, out, _flax_norm(weight, f"{prefix}LayerNorm_{norm}/"), fc1, fc2)


def _flax_pair(weight: Weight, name: str) -> Pair:
    return weight(f"{name}/kernel"), weight(f"{name}/bias")


def _flax_norm(weight: Weight, name: str) -> Pair:
    return weight(f"{name}scale"), weight(f"{name}bias")


def _flax_kind(tensors: Mapping[str, Any], tower: str) -> _Kind:
    query = next(tensor for name, tensor in tensors.items() if name.startswith(tower) and name.endswith("query/kernel"))
    return _Kind(query.shape[-2], "gelu_pytorch_tanh", 1e-6)


def _encode(x: Array, blocks: Iterable[_Block], kind: _Kind) -> list[Array]:
    states = [x]
    for block in blocks:
        y = _layer_norm(x, block.norm_1, kind.eps)
        x = x + _attention(y, y, block, kind)
        x = x + _mlp(_layer_norm(x, block.norm_2, kind.eps), block, kind)
        states.append(x)
    return states


def _attention_pool(probe: Array, x: Array, block: _Block, kind: _Kind) -> Array:
    pooled = _attention(np.broadcast_to(probe, (len(x), 1, x.shape[-1])), x, block, kind)
    return (pooled + _mlp(_layer_norm(pooled, block.norm_2, kind.eps), block, kind))[:, 0]


def _mlp(x: Array, block: _Block, kind: _Kind) -> Array:
    return _linear(_ACTIVATIONS[kind.activation](_linear(x, block.fc1)), block.fc2)


def _linear(x: Array, pair: Pair) -> Array:
    return x @ pair[0] + pair[1]


def _attention(query_input: Array, key_input: Array, block: _Block, kind: _Kind) -> Array:
    def split(x: Array) -> Array:
        return x.reshape(*x.shape[:2], kind.heads, -1).transpose(0, 2, 1, 3)  # (batch, heads, length, head_dim)

    queries, keys, values = (
        split(_linear(x, pair))
        for x, pair in ((query_input, block.query), (key_input, block.key), (key_input, block.value))
    )
    scores = queries @ keys.swapaxes(-1, -2) / math.sqrt(queries.shape[-1])
    if kind.causal:
        scores += np.triu(np.full(scores.shape[-2:], -np.inf), 1)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    out = (scores / scores.sum(-1, keepdims=True)) @ values
    return _linear(out.transpose(0, 2, 1, 3).reshape(query_input.shape), block.out)


def _embed(pixels: Array, kernel: Array) -> Array:
    """Apply a patch convolution (width, 3, size, size); what is left at the edges is dropped."""
    size = kernel.shape[-1]
    rows, columns = pixels.shape[2] // size, pixels.shape[3] // size
    grid = pixels[:, :, : rows * size, : columns * size].reshape(-1, 3, rows, size, columns, size)
    patches = grid.transpose(0, 2, 4, 1, 3, 5).reshape(len(pixels), rows * columns, -1)
    return patches @ kernel.reshape(len(kernel), -1).T


def _layer_norm(x: Array, pair: Pair | None, eps: float) -> Array:
    assert pair is not None
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * pair[0] + pair[1]


def _quick_gelu(x: Array) -> Array:
    return x * 0.5 * (1 + np.tanh(0.851 * x))  # x * sigmoid(1.702 x), without overflow


def _exact_gelu(x: Array) -> Array:
    return x * torch.special.ndtr(torch.from_numpy(x)).numpy()  # NumPy has no error function


def _tanh_gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


_ACTIVATIONS = {"quick_gelu": _quick_gelu, "gelu": _exact_gelu, "gelu_pytorch_tanh": _tanh_gelu}


def _tower(states: list[Array], last: Array, pooled: Array, norm_floor: float = 0.0) -> TowerReference:
    # big_vision adds 1e-8 to the norm; CLIP divides by it as it is.
    norm = np.linalg.norm(pooled, axis=-1, keepdims=True) + norm_floor
    return TowerReference(states, last, pooled, pooled / norm)


def _depth(tensors: Mapping[str, Any], prefix: str) -> int:
    """The number of blocks whose names go `<prefix><index><. or />...`."""
    indices = {name[len(prefix) :].replace("/", ".").split(".")[0] for name in tensors if name.startswith(prefix)}
    return len(indices)


def _float64(tensor: Any) -> Array:
    if isinstance(tensor, torch.Tensor):
        return tensor.detach().cpu().to(torch.float64).numpy()
    if tensor.dtype == np.dtype("V2"):  # NumPy's name for bfloat16 in a file: the upper half of a float32
        tensor = (np.asarray(tensor).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.asarray(tensor, np.float64)
