"""Official-layout files with seeded random weights, at any size. Names are spelt out here, not taken from the tables.

No parameter is zero or one where training would have moved it, so that nothing can be left out unnoticed.
"""

import math
import re
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from twinlens.formats import write_archive

TINY_CLIP = {
    "image_size": 32, "patch": 16, "width": 128, "layers": 3, "text_width": 64, "text_layers": 2, "text_length": 12,
    "vocabulary": 99, "embed": 48,
}  # fmt: skip
VIT_B_32 = {
    "image_size": 224, "patch": 32, "width": 768, "layers": 12, "text_width": 512, "text_layers": 12,
    "text_length": 77, "vocabulary": 49408, "embed": 512,
}  # fmt: skip
TINY_SIGLIP = {
    "grid": 3, "patch": 16, "width": 48, "layers": 3, "heads": 3, "mlp": 72, "text_width": 48, "text_layers": 2,
    "text_heads": 2, "text_mlp": 80, "text_length": 16, "vocabulary": 101,
}  # fmt: skip
SIGLIP_B_16_224 = {
    "grid": 14, "patch": 16, "width": 768, "layers": 12, "heads": 12, "mlp": 3072, "text_width": 768,
    "text_layers": 12, "text_heads": 12, "text_mlp": 3072, "text_length": 64, "vocabulary": 32000,
}  # fmt: skip


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


def write_openai(path: Path, container: str = "torchscript", **geometry: int) -> dict[str, Tensor]:
    """Write and return `openai_tensors(**geometry)`; plain state dicts lack the integer buffers."""
    tensors = openai_tensors(**geometry, integers=container == "torchscript")
    if container == "torchscript":
        write_archive(tensors, path)
    elif container == "safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=container != "legacy")
    return tensors


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
    head: bool = True,
    seed: int = 0,
) -> dict[str, Tensor]:
    """A SigLIP of big_vision; `old_positions`: the layout before 2022 in both towers, with the text table twice."""
    random = _Random(seed)

    def norm(size: int) -> dict[str, Tensor]:
        return {"scale": random.scale(size), "bias": random.bias(size)}

    def attention(size: int, heads: int) -> dict[str, Tensor]:
        shape = (heads, size // heads)
        tensors = {}
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
    if head:
        tensors |= {"txt/head/kernel": random.weight(text_width, width, fan_in=text_width)}
        tensors |= {"txt/head/bias": random.bias(width)}
    if old_positions:
        tensors["img/Transformer/pos_embedding"] = tensors.pop("img/pos_embedding")
        tensors["txt/Encoder_0/pos_embedding"] = random.bias(1, text_length, text_width)
    return {prefix + name: tensor for name, tensor in tensors.items()}


def write_npz(path: Path, tensors: dict[str, Tensor]) -> None:
    """NumPy arrays as big_vision writes them: bfloat16 becomes the void type `|V2`."""
    arrays = {
        name: tensor.view(torch.int16).numpy().view("V2") if tensor.dtype == torch.bfloat16 else tensor.numpy()
        for name, tensor in tensors.items()
    }
    with path.open("wb") as file:  # given a name, NumPy would append a suffix to it
        np.savez(file, **arrays)


def write_big_vision(path: Path, *, dtype: torch.dtype = torch.float32, **geometry: int) -> dict[str, Tensor]:
    """Write and return `big_vision_tensors(**geometry)`."""
    tensors = {name: tensor.to(dtype) for name, tensor in big_vision_tensors(**geometry).items()}
    write_npz(path, tensors)
    return tensors
