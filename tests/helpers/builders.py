"""Official-layout files with seeded random weights, at any size. Names are spelt out here, not taken from the tables.

No parameter is zero or one where training would have moved it, so that nothing can be left out unnoticed.
"""

import json
import math
import re
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from torch import Tensor

from twinlens.formats import write_archive, write_tensors

TINY_CLIP: dict[str, Any] = {
    "image_size": 32, "patch": 16, "width": 128, "layers": 3, "text_width": 64, "text_layers": 2, "text_length": 12,
    "vocabulary": 99, "embed": 48,
}  # fmt: skip
TINY_SIGLIP: dict[str, Any] = {
    "grid": 3, "patch": 16, "width": 48, "layers": 3, "heads": 3, "mlp": 72, "text_width": 48, "text_layers": 2,
    "text_heads": 2, "text_mlp": 80, "text_length": 16, "vocabulary": 101,
}  # fmt: skip
TINY_TRUNK: dict[str, Any] = {
    "grid": 3, "patch": 16, "width": 48, "layers": 3, "mlp": 72, "text_width": 64, "text_layers": 2,
    "text_length": 12, "vocabulary": 99,
}  # fmt: skip
TINY_CLIP_JSON: dict[str, Any] = {
    "embed_dim": 48,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 128, "layers": 3},
    "text_cfg": {"context_length": 12, "vocab_size": 99, "width": 64, "heads": 1, "layers": 2},
}
TINY_SIGLIP_JSON: dict[str, Any] = {
    "embed_dim": 48,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 48, "timm_model_name": "vit_tiny_patch16_siglip_test", "timm_model_pretrained": False,
        "timm_pool": "map", "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": 12, "vocab_size": 99, "width": 64, "heads": 4, "layers": 2, "mlp_ratio": 4.0,
        "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
    },
}  # fmt: skip
# The name of the tiny tower does not tell these.
TRUNK_OPTIONS: dict[str, Any] = {"vision_activation": "gelu", "vision_heads": 3}


class _Random:
    """Draws weights; small enough that activations stay of order one."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def weight(self, *shape: int, fan_in: int | None = None) -> Tensor:
        return torch.randn(shape, generator=self.generator) * (fan_in or shape[-1]) ** -0.5

    def bias(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator) * 0.1

    def scale(self, *shape: int) -> Tensor:
        return 1 + self.bias(*shape)


def openai_tensors(
    *,
    image_size: int,
    patch: int,
    width: int,
    layers: int,
    text_width: int,
    text_layers: int,
    text_length: int,
    vocabulary: int,
    embed: int,
    half: bool = True,
    integers: bool = True,
    seed: int = 0,
) -> dict[str, Tensor]:
    """OpenAI's CLIP with a ViT; `half`: mixed dtypes as in the released archives; `integers`: their three buffers."""
    random = _Random(seed)
    tensors = {
        "positional_embedding": random.bias(text_length, text_width),
        "text_projection": random.weight(text_width, embed, fan_in=text_width),
        "logit_scale": torch.tensor(math.log(60.0)),
        "visual.class_embedding": random.weight(width),
        "visual.positional_embedding": random.weight((image_size // patch) ** 2 + 1, width),
        "visual.proj": random.weight(width, embed, fan_in=width),
        "visual.conv1.weight": random.weight(width, 3, patch, patch, fan_in=3 * patch * patch),
        "token_embedding.weight": random.bias(vocabulary, text_width),
    }
    norms = {"visual.ln_pre": width, "visual.ln_post": width, "ln_final": text_width}
    for tower, depth, size in (("visual.", layers, width), ("", text_layers, text_width)):
        for n in range(depth):
            block = f"{tower}transformer.resblocks.{n}"
            norms |= {f"{block}.ln_1": size, f"{block}.ln_2": size}
            tensors |= {
                f"{block}.attn.in_proj_weight": random.weight(3 * size, size),
                f"{block}.attn.in_proj_bias": random.bias(3 * size),
                f"{block}.attn.out_proj.weight": random.weight(size, size),
                f"{block}.attn.out_proj.bias": random.bias(size),
                f"{block}.mlp.c_fc.weight": random.weight(4 * size, size),
                f"{block}.mlp.c_fc.bias": random.bias(4 * size),
                f"{block}.mlp.c_proj.weight": random.weight(size, 4 * size),
                f"{block}.mlp.c_proj.bias": random.bias(size),
            }
    for name, size in norms.items():
        tensors |= {f"{name}.weight": random.scale(size), f"{name}.bias": random.bias(size)}
    if half:  # clip/model.py, convert_weights
        halved = re.compile(r".*(conv1\.weight|attn\..*|mlp\..*|text_projection|visual\.proj)")
        tensors = {name: tensor.half() if halved.fullmatch(name) else tensor for name, tensor in tensors.items()}
    if integers:
        values = {"input_resolution": image_size, "context_length": text_length, "vocab_size": vocabulary}
        tensors |= {name: torch.tensor(value) for name, value in values.items()}
    return tensors


def write_openai(path: Path, container: str = "torchscript", **geometry: Any) -> dict[str, Tensor]:
    """Write and return `openai_tensors(**geometry)`; plain state dicts lack the integer buffers."""
    tensors = openai_tensors(**geometry, integers=container == "torchscript")
    if container == "torchscript":
        path.write_bytes(_archive(**geometry))
    elif container == "safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=container != "legacy")
    return tensors


@cache
def _archive(**geometry: Any) -> bytes:
    """Return the archive of `openai_tensors(**geometry)`, which takes torch.jit a quarter of a second to compile."""
    with tempfile.TemporaryDirectory() as folder:
        write_archive(openai_tensors(**geometry), Path(folder, "archive"))
        return Path(folder, "archive").read_bytes()


def big_vision_tensors(
    *,
    grid: int,
    patch: int,
    width: int,
    layers: int,
    heads: int,
    mlp: int,
    text_width: int,
    text_layers: int,
    text_heads: int,
    text_mlp: int,
    text_length: int,
    vocabulary: int,
    scan_image: bool = False,
    scan_text: bool = False,
    prefix: str = "params/",
    old_positions: bool = False,
    naflex: bool = False,
    head: bool = True,
    seed: int = 0,
) -> dict[str, Tensor]:
    """A SigLIP of big_vision; `old_positions`: the layout before 2022 in both towers, with the text table twice.

    `naflex`: its patches come ready-made, and its table of positions is a square.
    """
    random = _Random(seed)

    def norm(size: int) -> dict[str, Tensor]:
        return {"scale": random.scale(size), "bias": random.bias(size)}

    def attention(size: int, heads: int) -> dict[str, Tensor]:
        shape = (heads, size // heads)
        tensors: dict[str, Tensor] = {}
        for part in ("query", "key", "value"):
            tensors |= {f"{part}/kernel": random.weight(size, *shape, fan_in=size), f"{part}/bias": random.bias(*shape)}
        return tensors | {"out/kernel": random.weight(*shape, size, fan_in=size), "out/bias": random.bias(size)}

    def mlp_block(size: int, hidden: int) -> dict[str, Tensor]:
        return {
            "Dense_0/kernel": random.weight(size, hidden, fan_in=size),
            "Dense_0/bias": random.bias(hidden),
            "Dense_1/kernel": random.weight(hidden, size, fan_in=hidden),
            "Dense_1/bias": random.bias(size),
        }

    def under(folder: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"{folder}/{name}": tensor for name, tensor in tensors.items()}

    def encoder(depth: int, size: int, heads: int, hidden: int, scan: bool) -> dict[str, Tensor]:
        blocks = [
            under("LayerNorm_0", norm(size))
            | under("LayerNorm_1", norm(size))
            | under("MultiHeadDotProductAttention_0", attention(size, heads))
            | under("MlpBlock_0", mlp_block(size, hidden))
            for _ in range(depth)
        ]
        tensors = under("encoder_norm", norm(size))
        if scan:
            return tensors | {f"encoderblock/{name}": torch.stack([b[name] for b in blocks]) for name in blocks[0]}
        for n, block in enumerate(blocks):
            tensors |= under(f"encoderblock_{n}", block)
        return tensors

    tensors = {
        "t": torch.tensor([math.log(12.0)]),
        "b": torch.tensor([-9.5]),
        "img/embedding/kernel": random.weight(patch, patch, 3, width, fan_in=3 * patch * patch),
        "img/embedding/bias": random.bias(width),
        "img/pos_embedding": random.weight(1, grid * grid, width),
        **under("img/Transformer", encoder(layers, width, heads, mlp, scan_image)),
        "img/MAPHead_0/probe": random.weight(1, 1, width),
        **under("img/MAPHead_0/LayerNorm_0", norm(width)),
        **under("img/MAPHead_0/MultiHeadDotProductAttention_0", attention(width, heads)),
        **under("img/MAPHead_0/MlpBlock_0", mlp_block(width, mlp)),
        "txt/Embed_0/embedding": random.bias(vocabulary, text_width),
        "txt/pos_embedding": random.bias(1, text_length, text_width),
        **under("txt/Encoder_0", encoder(text_layers, text_width, text_heads, text_mlp, scan_text)),
    }
    if naflex:
        tensors["img/embedding/kernel"] = tensors["img/embedding/kernel"].flatten(0, 2)
        tensors["img/pos_embedding"] = tensors["img/pos_embedding"].unflatten(1, (grid, grid))[0]
    if head:
        tensors |= {"txt/head/kernel": random.weight(text_width, width, fan_in=text_width)}
        tensors |= {"txt/head/bias": random.bias(width)}
    if old_positions:
        tensors["img/Transformer/pos_embedding"] = tensors.pop("img/pos_embedding")
        tensors["txt/Encoder_0/pos_embedding"] = random.bias(1, text_length, text_width)
    return {prefix + name: tensor for name, tensor in tensors.items()}


def write_npz(path: Path, tensors: dict[str, Tensor]) -> None:
    """NumPy arrays as big_vision writes them."""
    write_tensors("npz", tensors, path)


def write_big_vision(path: Path, *, dtype: torch.dtype = torch.float32, **geometry: Any) -> dict[str, Tensor]:
    """Write and return `big_vision_tensors(**geometry)`."""
    tensors = {name: tensor.to(dtype) for name, tensor in big_vision_tensors(**geometry).items()}
    write_npz(path, tensors)
    return tensors


def open_clip_tensors(
    *,
    custom_text: bool = False,
    prefix: str = "",
    zero_bias: bool = False,
    dtype: torch.dtype = torch.float32,
    **geometry: int,
) -> dict[str, Tensor]:
    """A CLIP of open_clip: OpenAI's names without the integers; `custom_text`: the text tower apart."""
    tensors = openai_tensors(**geometry, half=False, integers=False)
    if custom_text:
        tensors = {re.sub(r"^(?!visual|logit)", "text.", name): tensor for name, tensor in tensors.items()}
    if zero_bias:
        tensors["logit_bias"] = torch.zeros(())
    return {prefix + name: tensor.to(dtype) for name, tensor in tensors.items()}


def timm_tensors(*, grid: int, patch: int, width: int, layers: int, mlp: int, seed: int = 0) -> dict[str, Tensor]:
    """SigLIP's image tower as timm names it."""
    random = _Random(seed)
    shapes = {
        "pos_embed": (1, grid * grid, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "attn_pool.latent": (1, 1, width),
    }
    norms = ["norm", "attn_pool.norm"]
    linears = {"attn_pool.q": (width, width), "attn_pool.kv": (2 * width, width), "attn_pool.proj": (width, width)}
    for n in range(layers):
        norms += [f"blocks.{n}.norm1", f"blocks.{n}.norm2"]
        linears |= {f"blocks.{n}.attn.qkv": (3 * width, width), f"blocks.{n}.attn.proj": (width, width)}
    for block in ("attn_pool", *(f"blocks.{n}" for n in range(layers))):
        linears |= {f"{block}.mlp.fc1": (mlp, width), f"{block}.mlp.fc2": (width, mlp)}
    tensors = {
        name: random.weight(*shape, fan_in=math.prod(shape[1:])) if len(shape) > 1 else random.bias(*shape)
        for name, shape in shapes.items()
    }
    for name in norms:
        tensors |= {f"{name}.weight": random.scale(width), f"{name}.bias": random.bias(width)}
    for name, shape in linears.items():
        tensors |= {f"{name}.weight": random.weight(*shape), f"{name}.bias": random.bias(shape[0])}
    return tensors


def trunk_tensors(
    *,
    text_width: int,
    text_layers: int,
    text_length: int,
    vocabulary: int,
    prefix: str = "",
    head: bool = True,
    **tower: int,
) -> dict[str, Tensor]:
    """A SigLIP of open_clip: timm's image tower, and a text tower under OpenAI's names."""
    sizes = {"text_width": text_width, "text_layers": text_layers, "text_length": text_length, "vocabulary": vocabulary}
    clip = openai_tensors(
        image_size=1, patch=1, width=64, layers=1, embed=tower["width"], half=False, integers=False, **sizes
    )
    tensors = {f"visual.trunk.{name}": tensor for name, tensor in timm_tensors(**tower).items()}
    tensors |= {f"text.{name}": tensor for name, tensor in clip.items() if not re.match("visual|logit", name)}
    projection = tensors.pop("text.text_projection")
    if head:
        tensors["text.text_projection.weight"] = projection.T.contiguous()
        tensors["text.text_projection.bias"] = _Random(1).bias(tower["width"])
    tensors |= {"logit_scale": torch.tensor(math.log(12.0)), "logit_bias": torch.tensor(-9.5)}
    return {prefix + name: tensor for name, tensor in tensors.items()}


def resnet_tensors(
    *, stem: int = 2, stages: Sequence[int] = (2, 1, 2, 1), grid: int = 2, counts: bool = True, seed: int = 0
) -> dict[str, Tensor]:
    """OpenAI's CLIP with a ResNet, in the dtypes of its releases; `counts`: of batches, which old files lack."""
    random = _Random(seed)
    clip = openai_tensors(**{**TINY_CLIP, "width": 64})
    tensors = {name: tensor for name, tensor in clip.items() if not name.startswith("visual.")}
    tensors["input_resolution"] = torch.tensor(32 * grid)
    width = 64 * stem  # of what comes out of the last stage

    def convolution(conv: str, norm: str, out: int, into: int, kernel: int) -> None:
        tensors[f"visual.{conv}.weight"] = random.weight(out, into, kernel, kernel, fan_in=into * kernel**2).half()
        for name in ("weight", "bias", "running_mean", "running_var"):
            draw = random.bias if name in ("bias", "running_mean") else random.scale
            tensors[f"visual.{norm}.{name}"] = draw(out)
        if counts:
            tensors[f"visual.{norm}.num_batches_tracked"] = torch.tensor(390_625)  # beyond float16

    convolution("conv1", "bn1", stem, 3, 3)
    convolution("conv2", "bn2", stem, stem, 3)
    convolution("conv3", "bn3", 2 * stem, stem, 3)
    into = 2 * stem
    for stage, blocks in enumerate(stages, 1):
        planes = 2**stage * stem
        for n in range(blocks):
            block = f"layer{stage}.{n}."
            convolution(f"{block}conv1", f"{block}bn1", planes, into, 1)
            convolution(f"{block}conv2", f"{block}bn2", planes, planes, 3)
            convolution(f"{block}conv3", f"{block}bn3", 4 * planes, planes, 1)
            if n == 0:
                convolution(f"{block}downsample.0", f"{block}downsample.1", 4 * planes, into, 1)
            into = 4 * planes
    tensors["visual.attnpool.positional_embedding"] = random.weight(grid**2 + 1, width)
    for name in ("q_proj", "k_proj", "v_proj", "c_proj"):
        out = 48 if name == "c_proj" else width
        tensors[f"visual.attnpool.{name}.weight"] = random.weight(out, width).half()
        tensors[f"visual.attnpool.{name}.bias"] = random.bias(out).half()
    return tensors


def write_beside(path: Path, tensors: dict[str, Tensor], container: str, name: str = "", content: Any = None) -> None:
    """Write weights and, if given, the JSON called `name` that lies beside them."""
    write_tensors(container, tensors, path)
    if name:
        (path.parent / name).write_text(json.dumps(content))


def write_transformers(path: Path, family: str, *, old: bool = False) -> dict[str, Tensor]:
    """Weights and config.json of transformers' own model; `old`: as the first folders were, with a pickle."""
    towers = {
        "vision_config": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4},
        "text_config": {"hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 2},
    }
    towers["vision_config"] |= {"num_patches": 9} if family == "siglip2" else {"image_size": 32}
    towers["vision_config"] |= {"patch_size": 16}
    towers["text_config"] |= {"vocab_size": 99, "max_position_embeddings": 12, "eos_token_id": 2 if old else 98}
    towers["text_config"] |= {"bos_token_id": 97, "pad_token_id": 1}
    config = transformers.AutoConfig.for_model(family, **towers, **({"projection_dim": 48} if family == "clip" else {}))
    random, tensors = _Random(3), {}
    for name, tensor in transformers.AutoModel.from_config(config).state_dict().items():
        draw = random.scale if "norm" in name and name.endswith("weight") else random.bias
        tensors[name] = draw(*tensor.shape) if tensor.ndim < 2 else random.weight(*tensor.shape)
    tensors["logit_scale"] = torch.full_like(tensors["logit_scale"], 2.5)
    values = config.to_dict()
    if old:
        tensors["text_model.embeddings.position_ids"] = torch.arange(12)[None]
        tensors["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
        values["torch_dtype"] = values.pop("dtype", None) or "float32"
    write_beside(path, tensors, "torch" if old else "safetensors", "config.json", values)
    return tensors
