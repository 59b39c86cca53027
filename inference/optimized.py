"""A model's faster form for inference on the CPU: the same modules, some of them with another way through them.

Linear layers and convolutions give work to products with weights in oneDNN's layout (`products.py`), the last attention
does without what only other positions need (`optimized_pooling.py`). Modules become instances of subclasses that do so.
Which way is taken is measured.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

from ..modeling.attention import Attention, PoolingAttention
from ..modeling.clip_resnet import AttentionPooling, Bottleneck, Convolution
from ..modeling.embeddings import VisionEmbeddings
from ..modeling.encoder import Encoder, EncoderLayer
from ..modeling.pretrained import LoadableModel
from ..modeling.towers import ImageTower, TextTower, VisionTower
from .optimization import Optimization
from .optimized_layers import OptimizedEncoder, OptimizedLayer, OptimizedLinear, OptimizedPatches
from .optimized_pooling import ONE_POSITION, OptimizedAttentionPooling, OptimizedPoolingAttention, PooledPosition
from .optimized_resnet import FoldedConvolution, OptimizedBottleneck, OptimizedConvolution
from .products import FUSED, ROWS, Product, attend_by_products

SECONDS = 0.03  # for the measurement of one choice
CLEARLY_FASTER = 0.85  # of the time of the usual choice
MEASURED_FROM = 2**18  # weights of the largest layer; below, the usual choices make every run the same
# The usual choice first.
CHOICES = {"linear": ("onednn", "default"), "attention": ("kernel", "products"), "convolution": ("folded", "separate")}


def optimize(
    model: LoadableModel,
    *,
    linear: str = "auto",
    attention: str = "auto",
    convolution: str = "auto",
    compile: bool = False,
) -> Any:
    """Optimise a model in place: see `LoadableModel.optimize_for_inference`."""
    given = {"linear": linear, "attention": attention, "convolution": convolution}
    for name, value in given.items():
        if value not in (allowed := ("auto", *CHOICES[name])):
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")
    if any(parameter.is_meta for parameter in model.parameters()) or getattr(model, "hf_device_map", None):
        raise ValueError("Expected all weights in memory, got some off-loaded by accelerate: load without device_map.")
    model.restore().eval()
    optimization = Optimization(owner=model)
    optimization.frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    optimization.attach()
    if compile:
        optimization.compiled = [module for module in model.modules() if isinstance(module, EncoderLayer)]
        for layer in optimization.compiled:
            layer.compile()
        return model
    dtypes = [torch.float32] + [torch.bfloat16] * torch.ops.mkldnn._is_mkldnn_bf16_supported()
    with torch.inference_mode(False), torch.no_grad():
        for name, tower in _towers(model):
            parameter = next(tower.parameters(), None)
            if parameter is not None and parameter.device.type == "cpu" and parameter.dtype in dtypes:
                _Tower(optimization, name, tower, given).optimize()
    return model


def _towers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return what is optimised as one: a tower, or what stands beside the towers."""
    children = list(model.named_children())
    is_tower = isinstance(model, ImageTower) or any(isinstance(child, Encoder) for _, child in children)
    return [("model", model)] if is_tower or not children else children


class _Tower:
    """What is optimised as one, and what of it can be."""

    def __init__(self, optimization: Optimization, name: str, tower: Any, given: dict[str, str]) -> None:
        self.optimization, self.name, self.tower, self.given = optimization, name, tower, given
        self.modules: list[Any] = list(tower.modules())
        owners: dict[int, int] = {}  # how many modules have a parameter
        for module in self.modules:
            for parameter in module._parameters.values():
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
        self.linear = [m for m in self.modules if type(m) is nn.Linear and owners[id(m.weight)] == 1]
        self.blocks = [m for m in self.modules if isinstance(m, EncoderLayer) and self._is_whole(m)]
        self.bottlenecks = [m for m in self.modules if type(m) is Bottleneck]
        self.kept: set[nn.Module] = set()  # linear layers whose weights are used as they are

    def optimize(self) -> None:
        """Give every module of a kind that is known its other way."""
        for module in self.modules:
            if type(module) is Encoder:
                self.optimization.become(module, OptimizedEncoder)
        self._attend_from_one()
        if self.bottlenecks and self._choose("convolution", lambda: _time_bottleneck(self.bottlenecks)) == "folded":
            self._fold()
        largest = max(self.linear, key=lambda layer: layer.weight.numel(), default=None)
        if largest is not None and self._choose("linear", lambda: _time_linear(largest)) == "onednn":
            self._pack_all()

    def _is_whole(self, block: Any) -> bool:
        """Return whether a block is of plain modules, whose work the products can do."""
        own, mlp = block.self_attn, block.mlp
        if type(own) is not Attention or own.config.hidden_act not in FUSED:
            return False
        linear = (own.q_proj, own.k_proj, own.v_proj, own.out_proj, mlp.fc1, mlp.fc2)
        return {*linear} <= {*self.linear}

    def _choose(self, what: str, measure: Callable[[], dict[str, float]]) -> str:
        """Return how something is done: as asked for, or the faster way, in a tower that is large enough to measure."""
        chosen, (usual, other) = self.given[what], CHOICES[what]
        if chosen == "auto":
            chosen = usual
            modules: list[nn.Module] = [*self.linear, *self.bottlenecks]
            if max(parameter.numel() for module in modules for parameter in module.parameters()) >= MEASURED_FROM:
                measured = measure()
                self.optimization.milliseconds.setdefault(self.name, {}).update(measured)
                # Clearly, so that runs on one machine mostly choose the same.
                chosen = other if measured[other] < CLEARLY_FASTER * measured[usual] else usual
        self.optimization.choices.setdefault(self.name, {})[what] = chosen
        return chosen

    def _attend_from_one(self) -> None:
        """Spare the tokens keys and values, and more in the last block, where only one of them is pooled."""
        for module in self.modules:
            pools_one = isinstance(module, VisionTower | TextTower) and module.config.pooling in ONE_POSITION
            if (
                pools_one
                and getattr(module, "pooled", True)
                and (last := [*module.encoder.layers][-1:])
                and last[0] in self.blocks
            ):
                self.optimization.become(module, type(module), encode_tokens=PooledPosition(module))
                self.blocks.remove(last[0])
                self.kept |= {last[0].self_attn.k_proj, last[0].self_attn.v_proj}
            elif type(module) is PoolingAttention:
                self.optimization.become(module, OptimizedPoolingAttention)
            elif type(module) is AttentionPooling and {module.k_proj, module.v_proj} <= {*self.linear}:
                self.optimization.become(module, OptimizedAttentionPooling)
                self.kept |= {module.k_proj, module.v_proj}

    def _fold(self) -> None:
        for module in self.modules:
            if type(module) is Convolution:
                self.optimization.become(module, OptimizedConvolution, products=FoldedConvolution.of(module))
        for module in self.bottlenecks:
            self.optimization.become(module, OptimizedBottleneck)

    def _pack_all(self) -> None:
        """Give the weights of linear layers, and of patches, to products."""
        if self.blocks:
            time_attention = partial(_time_attention, self.blocks[0].self_attn, _tokens(self.tower))
            attention = self._choose("attention", time_attention)
        for block in self.blocks:
            own, mlp = block.self_attn, block.mlp
            groups = [(own.q_proj, own.k_proj, own.v_proj), (own.out_proj,), (mlp.fc1,), (mlp.fc2,)]
            products = tuple(self._pack(group) for group in groups)
            self.optimization.become(block, OptimizedLayer, products=products, attention_choice=attention)
        for layer in self.linear:
            if type(layer) is nn.Linear and layer not in self.kept:
                self._pack([layer])
        for module in self.modules:
            if type(module) is VisionEmbeddings and type(patches := module.patch_embedding) is nn.Conv2d:
                product = Product([patches.weight.flatten(1)], [patches.bias])
                self.optimization.give_away(patches.weight, (product, slice(0, product.rows)))
                self.optimization.become(patches, OptimizedPatches, products=product)

    def _pack(self, layers: Sequence[nn.Linear]) -> Product:
        product, start = Product([layer.weight for layer in layers], [layer.bias for layer in layers]), 0
        for layer in layers:
            rows = slice(start, start + layer.out_features)
            self.optimization.give_away(layer.weight, (product, rows))
            self.optimization.become(layer, OptimizedLinear, products=product, rows=rows)
            start = rows.stop
        return product


def _tokens(tower: Any) -> int:
    """Return how many tokens an image has, or about how many a text without padding."""
    config = tower.config
    return 16 if getattr(config, "causal", False) else int(tower.embeddings.position_embedding.num_embeddings)


def _time_linear(layer: nn.Linear) -> dict[str, float]:
    """Return the milliseconds of a linear layer for some hundred tokens."""
    x = torch.randn(ROWS // 4, layer.in_features).to(layer.weight.dtype)
    product = Product([layer.weight], [layer.bias])
    return _milliseconds({"onednn": lambda: product(x), "default": lambda: layer(x)})


def _time_attention(module: Attention, tokens: int) -> dict[str, float]:
    """Return the milliseconds of attention for as many images or texts as go through the layers together."""
    config, causal = module.config, bool(getattr(module.config, "causal", False))
    qkv = torch.randn(max(1, ROWS // tokens), tokens, 3 * config.hidden_size).to(module.out_proj.weight.dtype)
    heads = qkv.chunk(3, dim=-1)
    query, key, value = heads
    return _milliseconds(
        {
            "products": lambda: attend_by_products(query, key, value, module.head_dim, causal),
            "kernel": lambda: module.attend(query, key, value, is_causal=causal),
        }
    )


def _time_bottleneck(bottlenecks: Sequence[Bottleneck]) -> dict[str, float]:
    """Return the milliseconds of a block in the middle of a ResNet for a few maps."""
    block = bottlenecks[len(bottlenecks) // 2]
    conv = block.conv1.conv
    x = torch.randn(4, conv.in_channels, 14, 14).to(conv.weight.dtype)
    channels_last = x.contiguous(memory_format=torch.channels_last)
    folded = [FoldedConvolution.of(module) for module in (block.conv1, block.conv2, block.conv3)]
    return _milliseconds(
        {
            "folded": lambda: folded[2](folded[1](folded[0](channels_last, "relu"), "relu"), "none"),
            "separate": lambda: block.conv3(block.conv2(block.conv1(x))),
        }
    )


def _milliseconds(variants: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median time of each, in turns; the first turn does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(next(iter(seconds.values()))) < 4:
        for name, variant in variants.items():
            start = time.perf_counter()
            variant()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * median(measured[1:]) for name, measured in seconds.items()}
