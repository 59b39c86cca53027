"""A model's faster form for inference on the CPU: the same modules, some of them with another way through them.

Linear layers and convolutions give work to products with weights in oneDNN's layout (`products.py`), the last attention
does without what only other positions need (`optimized_pooling.py`). Modules become instances of subclasses that do so.
Which way is taken is measured.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from ..modeling.attention import Attention, PoolingAttention
from ..modeling.clip_resnet import AttentionPooling, Bottleneck, Convolution
from ..modeling.embeddings import VisionEmbeddings
from ..modeling.encoder import LAYERS, MLP, Encoder
from ..modeling.pretrained import LoadableModel
from ..modeling.towers import ImageTower
from .optimization import LOCK, Optimization, WithoutGradients, is_usual
from .optimized_layers import OptimizedEncoder, OptimizedLayer, OptimizedLinear, OptimizedPatches, WatchedLayer
from .optimized_pooling import OptimizedAttentionPooling, OptimizedPoolingAttention, PooledPosition
from .optimized_resnet import FoldedConvolution, OptimizedBottleneck, OptimizedConvolution, can_be_folded, versions
from .products import FUSED, ROWS, Product, attend_by_products

SECONDS = 0.03  # for the measurement of one choice
CLEARLY_FASTER = 0.85  # of the time of the usual choice
ACTIVATIONS = {type(ACT2FN[name]): how for name, how in FUSED.items()}
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
    with LOCK:
        _optimize(model.restore().eval(), given, compile)
    return model


def _optimize(model: LoadableModel, given: dict[str, str], compile: bool) -> None:
    optimization = Optimization(owner=model)
    optimization.attach()
    if compile:
        for layer in model.modules():
            if type(layer) in LAYERS.values():
                optimization.become(layer, WatchedLayer)
                optimization.compiled.append(layer)
                layer.compile()
        return
    dtypes = [torch.float32] + [torch.bfloat16] * torch.ops.mkldnn._is_mkldnn_bf16_supported()
    shared = _shared_parameters(model)
    try:
        with torch.inference_mode(False), torch.no_grad():
            for name, tower in _towers(model):
                parameter = next(tower.parameters(), None)
                if parameter is not None and parameter.device.type == "cpu" and parameter.dtype in dtypes:
                    _Tower(optimization, name, tower, given, shared).optimize()
            if optimization.changes:
                _without_gradients(optimization, model, "forward", "logits", "loss")
    except BaseException:
        optimization.restore()
        raise
    optimization.finish()


def _shared_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Return the parameters that the model has more than once."""
    counts = Counter(parameter for module in model.modules() for parameter in module._parameters.values())
    return {parameter for parameter, count in counts.items() if count > 1 and parameter is not None}


def _without_gradients(optimization: Optimization, module: nn.Module, *names: str) -> None:
    for name in names:
        if callable(getattr(type(module), name, None)) and name not in vars(module):
            optimization.become(module, type(module), **{name: WithoutGradients(module, name)})


def _towers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return what is optimised as one: a tower, or what stands beside the towers."""
    children = list(model.named_children())
    is_tower = isinstance(model, ImageTower) or any(isinstance(child, Encoder) for _, child in children)
    return [("model", model)] if is_tower or not children else children


class _Tower:
    """What is optimised as one, and what of it can be."""

    def __init__(
        self, optimization: Optimization, name: str, tower: Any, given: dict[str, str], shared: set[nn.Parameter]
    ) -> None:
        self.optimization, self.name, self.tower, self.given = optimization, name, tower, given
        self.modules: list[Any] = list(tower.modules())
        self.shared = shared  # parameters that stay where they are
        self.linear = [m for m in self.modules if is_usual(m, nn.Linear) and self._can_give_away(m)]
        self.blocks = [m for m in self.modules if is_usual(m, *LAYERS.values()) and self._is_whole(m)]
        self.convolutions = [m for m in self.modules if is_usual(m, Convolution) and can_be_folded(m)]
        self.bottlenecks = [m for m in self.modules if is_usual(m, Bottleneck) and self._has_usual_convolutions(m)]
        self.kept: set[nn.Module] = set()  # linear layers whose weights are used as they are

    def optimize(self) -> None:
        """Give every module of a kind that is known its other way."""
        for module in self.modules:
            if is_usual(module, Encoder):
                self.optimization.become(module, OptimizedEncoder)
        self._attend_from_one()
        if self.bottlenecks and self._choose("convolution", lambda: _time_bottleneck(self.bottlenecks)) == "folded":
            self._fold()
        largest = max(self.linear, key=lambda layer: layer.weight.numel(), default=None)
        if largest is not None and self._choose("linear", lambda: _time_linear(largest)) == "onednn":
            self._pack_all()
        if any(change.module in self.modules for change in self.optimization.changes):
            _without_gradients(self.optimization, self.tower, "forward")

    def _can_give_away(self, module: nn.Module) -> bool:
        """Return whether the weight of a module is a plain parameter that nothing else has."""
        weight = module._parameters.get("weight")
        return type(weight) is nn.Parameter and weight not in self.shared and "bias" in module._parameters

    def _is_whole(self, block: Any) -> bool:
        """Return whether a block is of the usual modules, whose work the products can do."""
        own, mlp = block.self_attn, block.mlp
        if not is_usual(own, Attention) or not is_usual(mlp, MLP):
            return False
        for norm in (block.layer_norm1, block.layer_norm2):
            if not is_usual(norm, nn.LayerNorm) or None in (norm._parameters.get(name) for name in ("weight", "bias")):
                return False
        activation = mlp.activation_fn
        if type(activation) not in ACTIVATIONS or not is_usual(activation, type(activation)):
            return False
        return {own.q_proj, own.k_proj, own.v_proj, own.out_proj, mlp.fc1, mlp.fc2} <= {*self.linear}

    def _has_usual_convolutions(self, block: Any) -> bool:
        return {m for m in block.children() if isinstance(m, Convolution)} <= {*self.convolutions}

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
            if PooledPosition.fits(module) and (last := [*module.encoder.layers][-1:]) and last[0] in self.blocks:
                self.optimization.become(module, type(module), encode_tokens=PooledPosition(module))
                self.optimization.become(last[0], WatchedLayer)
                self.blocks.remove(last[0])
                self.kept |= {last[0].self_attn.k_proj, last[0].self_attn.v_proj}
            elif is_usual(module, PoolingAttention):
                self.optimization.become(module, OptimizedPoolingAttention)
            elif is_usual(module, AttentionPooling) and {module.k_proj, module.v_proj} <= {*self.linear}:
                self.optimization.become(module, OptimizedAttentionPooling)
                self.kept |= {module.k_proj, module.v_proj}

    def _fold(self) -> None:
        for module in self.convolutions:
            attributes = {"products": FoldedConvolution.of(module), "versions": versions(module)}
            self.optimization.become(module, OptimizedConvolution, **attributes)
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
            ways = (attention, ACTIVATIONS[type(mlp.activation_fn)])
            products = (*(self._pack(group) for group in groups), *ways)
            self.optimization.become(block, OptimizedLayer, products=products)
        for layer in self.linear:
            if type(layer) is nn.Linear and layer not in self.kept:
                self._pack([layer])
        for module in self.modules:
            if type(module) is VisionEmbeddings and self._are_patches(patches := module.patch_embedding):
                product = Product([patches.weight.flatten(1)], [patches.bias])
                self.optimization.give_away(patches.weight, product, slice(0, product.rows))
                self.optimization.become(patches, OptimizedPatches, products=product)

    def _are_patches(self, conv: Any) -> bool:
        """Return whether a convolution takes square patches that do not overlap."""
        if not is_usual(conv, nn.Conv2d) or not self._can_give_away(conv):
            return False
        usual = ((conv.kernel_size[0],) * 2, (0, 0), (1, 1), 1)
        return (conv.stride, conv.padding, conv.dilation, conv.groups) == usual and conv.kernel_size == conv.stride

    def _pack(self, layers: Sequence[nn.Linear]) -> Product:
        product, start = Product([layer.weight for layer in layers], [layer.bias for layer in layers]), 0
        for layer in layers:
            rows = slice(start, start + layer.out_features)
            self.optimization.give_away(layer.weight, product, rows)
            self.optimization.become(layer, OptimizedLinear, products=(product, rows))
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
