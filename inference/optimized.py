"""A model's faster form for inference on the CPU: the same modules, some of them with another way through them.

PyTorch's default matrix product uses part of some processors only. oneDNN uses all of them, if weights are in its own
layout, and applies an activation or adds a residual while the result is in registers. So linear layers give their
weights away to a `Product`, and modules become instances of subclasses that call it. Whoever watches a module by hooks,
or wants hidden states, attention maps or gradients, gets the way of the plain class.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ..modeling.attention import Attention, PoolingAttention
from ..modeling.embeddings import VisionEmbeddings
from ..modeling.encoder import Encoder, EncoderLayer
from ..modeling.pretrained import LoadableModel
from ..runtime.pickling import has_hooks

logger = logging.getLogger(__name__)

ROWS = 1024  # tokens that go through the layers together: their activations, four times as wide, fit into the cache
SECONDS = 0.03  # for the measurement of one choice
CLEARLY_FASTER = 0.85  # of the time of the usual choice
MEASURED_FROM = 2**18  # weights of the largest layer; below, the usual choices make every run the same
CHOICES = {"linear": ("onednn", "default"), "attention": ("products", "kernel")}
# How oneDNN calls the activations that it applies itself. Quick GELU is SiLU of 1.702 times its input, over 1.702.
QUICK_GELU_SCALE = 1.702
FUSED = {
    "gelu": ("gelu", "none", 1.0),
    "gelu_pytorch_tanh": ("gelu", "tanh", 1.0),
    "quick_gelu": ("swish", "", QUICK_GELU_SCALE),
    "silu": ("swish", "", 1.0),
    "relu": ("relu", "", 1.0),
}


class Product:
    """The product with the weights (outputs, inputs) of one linear layer, or of several, in oneDNN's layout."""

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        weight = torch.cat([*weights])
        self.rows, self.inputs = weight.shape
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        zeros = [weight.new_zeros(len(part)) for part in weights]
        parts = [zero if bias is None else bias for zero, bias in zip(zeros, biases, strict=True)]
        self.bias = None if all(bias is None for bias in biases) else torch.cat(parts)

    def __reduce__(self) -> Any:
        """Pickle and copy weights in their usual layout, since oneDNN's is that of a processor."""
        return Product, ([self.dense()], [self.bias])

    def dense(self) -> Tensor:
        """Return the weights in their usual layout, exactly."""
        return self.weight.to_dense()

    def __call__(self, x: Tensor, activation: str = "none", algorithm: str = "", scale: float = 1.0) -> Tensor:
        """Return the activation of `scale` times the layers' output for `x` (..., inputs), which has been scaled."""
        bias = self.bias if self.bias is None or scale == 1 else self.bias * scale
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, bias, activation, [], algorithm)

    def added_to(self, residual: Tensor, x: Tensor, scale: float = 1.0) -> Tensor:
        """Return `residual` (..., outputs) plus the layer's output for `x` (..., inputs) over `scale`."""
        if scale == 1:
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")
        return torch.add(residual, self(x, scale=scale), alpha=1 / scale)


@dataclass
class Slot:
    """Where the values of a parameter are: in rows of products, one after the other."""

    parameter: nn.Parameter
    places: list[tuple[Product, slice]]
    shape: torch.Size

    def dense(self) -> Tensor:
        return torch.cat([product.dense()[rows] for product, rows in self.places]).view(self.shape)


@dataclass(eq=False)
class Optimization:
    """What `optimize_for_inference` chose and did; its text says it in words."""

    choices: dict[str, dict[str, str]] = field(default_factory=dict)  # by tower
    milliseconds: dict[str, dict[str, float]] = field(default_factory=dict)  # of what was measured for them
    slots: list[Slot] = field(default_factory=list, repr=False)
    modules: list[tuple[nn.Module, type]] = field(default_factory=list, repr=False)  # and their former classes
    frozen: list[nn.Parameter] = field(default_factory=list, repr=False)
    compiled: list[nn.Module] = field(default_factory=list, repr=False)
    owner: Any = field(default=None, repr=False)

    def __str__(self) -> str:
        lines = []
        for tower, chosen in self.choices.items():
            measured = ", ".join(f"{name} {value:.2f} ms" for name, value in self.milliseconds.get(tower, {}).items())
            lines.append(
                f"{tower}: {', '.join(f'{what} {how}' for what, how in chosen.items())} ({measured or 'fixed'})"
            )
        return "\n".join(lines)

    def attach(self) -> None:
        """Show it as `model.optimization`, not as a part of the model."""
        vars(self.owner)["optimization"] = self

    def become(self, module: nn.Module, new_class: type, **values: Any) -> None:
        """Make a module an instance of a subclass of its class."""
        self.modules.append((module, module.__class__))
        module.__class__ = new_class
        vars(module).update(values, optimization=self)

    def give_away(self, parameter: Any, *places: tuple[Product, slice]) -> None:
        """Free the memory of a parameter, of which shape, dtype and device stay; its values are NaN."""
        self.slots.append(Slot(parameter, [*places], parameter.shape))
        parameter.data = torch.full((1,), torch.nan, dtype=parameter.dtype).expand(parameter.shape)

    def restore(self) -> None:
        for module, former in reversed(self.modules):
            for name in set(vars(module)) & {"products", "rows", "optimization", "attention_choice"}:
                delattr(module, name)
            module.__class__ = former
        for slot in self.slots:
            slot.parameter.data = slot.dense()
        for layer in self.compiled:
            layer._compiled_call_impl = None
        for parameter in self.frozen:
            parameter.requires_grad_(True)
        vars(self.owner).pop("optimization", None)


class WithoutWeights(nn.Module):
    """Mixin of modules that gave weights away: what needs these undoes the optimisation of the whole model."""

    optimization: Optimization

    def _undo(self, cause: str) -> None:
        logger.warning("%s undoes optimize_for_inference(). Call it again afterwards.", cause)
        self.optimization.restore()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        one = torch.ones(1, dtype=next(self.parameters()).dtype)
        new = fn(one)
        if new.dtype == one.dtype and new.device == one.device and new.item() == 1:
            return self
        self._undo("A change of device, dtype or weights")
        return self._apply(fn, recurse)

    def train(self, mode: bool = True) -> Any:
        if not mode:
            return super().train(mode)
        self._undo("train()")
        return self.train(mode)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, parameter in self._parameters.items():
            for slot in self.optimization.slots:
                if slot.parameter is parameter:
                    destination[prefix + name] = slot.dense()

    def _load_from_state_dict(self, *args: Any) -> None:
        self._undo("load_state_dict()")
        self._load_from_state_dict(*args)


class OptimizedLinear(WithoutWeights, nn.Linear):
    """A linear layer with its weights among the `rows` of a product."""

    products: Product
    rows: slice

    def forward(self, x: Tensor) -> Tensor:
        product, rows = self.products, self.rows
        if rows == slice(0, product.rows) and is_plain(self, x):
            return product(x)
        return nn.functional.linear(x, product.dense()[rows], self.bias)


class OptimizedPatches(WithoutWeights, nn.Conv2d):
    """The convolution to patches, which do not overlap, as a product."""

    products: Product

    def forward(self, x: Tensor) -> Tensor:
        size = self.kernel_size[0]
        rows, columns = (side // size for side in x.shape[-2:])
        if not is_plain(self, x):
            weight = self.products.dense().view(self.weight.shape)
            return nn.functional.conv2d(x, weight, self.bias, self.stride)
        x = x[..., : rows * size, : columns * size].unflatten(3, (columns, size)).unflatten(2, (rows, size))
        patches = x.permute(0, 2, 4, 1, 3, 5).reshape(-1, rows * columns, self.products.inputs)
        return self.products(patches).mT.unflatten(2, (rows, columns))


class OptimizedPoolingAttention(WithoutWeights, PoolingAttention):
    """The pooling head's attention, with keys and values in one product."""

    products: tuple[Product, Product]  # for the query, and for keys and values

    def forward(self, probe: Tensor, x: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        for_query, for_key_value = self.products
        if is_plain(self, x):
            query, key_value = for_query(probe), for_key_value(x)
        else:
            biases = self.in_proj_bias.tensor_split([self.config.hidden_size])
            query = nn.functional.linear(probe, for_query.dense(), biases[0])
            key_value = nn.functional.linear(x, for_key_value.dense(), biases[1])
        key, value = key_value.chunk(2, dim=-1)
        return self.multi_head_attention(query.expand(x.shape[0], -1, -1), key, value, is_causal=False, **kwargs)


class OptimizedLayer(EncoderLayer):
    """A block with one product for q, k and v, the activation and the residuals inside products."""

    products: tuple[Product, Product, Product, Product]  # q, k and v together, out_proj, fc1, fc2
    attention_choice: str

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        x = hidden_states  # (batch, length, width)
        if not is_plain(self, x) or kwargs.get("output_attentions") or has_hooks(self):
            return super().forward(x, **kwargs)
        qkv, out_proj, fc1, fc2 = self.products
        query, key, value = qkv(self.layer_norm1(x)).chunk(3, dim=-1)
        if self.attention_choice == "products" and kwargs.get("attention_mask") is None:
            attended = attend_by_products(query, key, value, self.self_attn.head_dim, bool(kwargs.get("is_causal")))
        else:
            attended, _ = self.self_attn.attend(query, key, value, **kwargs)
        x = out_proj.added_to(x, attended)
        activation, algorithm, scale = FUSED[self.self_attn.config.hidden_act]
        norm = self.layer_norm2
        weight, bias = (norm.weight, norm.bias) if scale == 1 else (norm.weight * scale, norm.bias * scale)
        normed = nn.functional.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)
        return fc2.added_to(x, fc1(normed, activation, algorithm, scale), scale)


class OptimizedEncoder(Encoder):
    """A stack of blocks through which a batch goes in parts that stay in the cache."""

    def forward(self, hidden_states: Tensor, depth: int | None = None, **kwargs: Any) -> Tensor:
        x, mask = hidden_states, kwargs.get("attention_mask")
        size = max(1, ROWS // x.shape[1])
        is_watched = any(kwargs.get(name) for name in ("output_hidden_states", "output_attentions"))
        first: Any = self.layers[0] if len(self.layers) else None
        is_watched = is_watched or bool(first and first.self_attn.config.output_hidden_states)
        takes_parts = mask is None or (isinstance(mask, Tensor) and mask.shape[0] == x.shape[0])
        if x.shape[0] <= size or is_watched or not takes_parts or not is_plain(self, x) or has_hooks(self):
            return super().forward(x, depth, **kwargs)
        output = torch.empty_like(x)
        for start in range(0, x.shape[0], size):
            part = slice(start, start + size)
            if mask is not None:
                kwargs["attention_mask"] = mask[part]
            output[part] = super().forward(x[part], depth, **kwargs)
        return output


def is_plain(module: nn.Module, x: Tensor) -> bool:
    """Return whether oneDNN's products take `x` (..., inputs): on the CPU, of the weights' dtype, without gradients."""
    if (torch.is_grad_enabled() and x.requires_grad) or torch.is_autocast_enabled("cpu"):
        return False
    return x.device.type == "cpu" and x.numel() > 0 and not torch.compiler.is_compiling()


def attend_by_products(query: Tensor, key: Tensor, value: Tensor, head_dim: int, is_causal: bool) -> Tensor:
    """Return the attention of query to key and value (batch, length, width): matrix products and a softmax."""
    batch, length, width = query.shape
    q, k, v = (
        x.unflatten(-1, (-1, head_dim)).transpose(1, 2).reshape(-1, length, head_dim) for x in (query, key, value)
    )
    if is_causal:
        bias = torch.full((length, length), -torch.inf, dtype=q.dtype).triu(1).expand(len(q), -1, -1)
        scores = torch.baddbmm(bias, q, k.mT, alpha=head_dim**-0.5)
    else:
        scores = torch.baddbmm(q.new_empty(()), q, k.mT, beta=0, alpha=head_dim**-0.5)
    attended = torch.bmm(scores.softmax(dim=-1), v)  # (batch * heads, length, head_dim)
    return attended.view(batch, -1, length, head_dim).transpose(1, 2).reshape(batch, length, width)


def optimize(model: LoadableModel, *, linear: str = "auto", attention: str = "auto", compile: bool = False) -> Any:
    """Optimise a model in place: see `LoadableModel.optimize_for_inference`."""
    for name, value in {"linear": linear, "attention": attention}.items():
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
                _optimize_tower(optimization, name, tower, linear, attention)
    return model


def _towers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return what is optimised as one: a tower, or what stands beside the towers."""
    children = list(model.named_children())
    is_tower = any(isinstance(child, Encoder) for _, child in children)
    return [("model", model)] if is_tower or not children else children


def _optimize_tower(optimization: Optimization, name: str, tower: nn.Module, linear: str, attention: str) -> None:
    modules: list[Any] = list(tower.modules())
    owners: dict[int, int] = {}  # how many modules have a parameter
    for module in modules:
        for parameter in module._parameters.values():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    free = [m for m in modules if type(m) is nn.Linear and owners[id(m.weight)] == 1]
    if not free:
        return
    milliseconds = optimization.milliseconds.setdefault(name, {})
    largest = max(free, key=lambda layer: layer.weight.numel())
    if largest.weight.numel() < MEASURED_FROM:
        usual = CHOICES["linear"][0], CHOICES["attention"][1]
        linear, attention = (
            way if given == "auto" else given for given, way in zip((linear, attention), usual, strict=True)
        )
    if linear == "auto":
        milliseconds |= _time_linear(largest)
        linear = _faster(milliseconds, *CHOICES["linear"])
    optimization.choices[name] = {"linear": linear}
    encoders = [module for module in modules if type(module) is Encoder]
    for encoder in encoders:
        optimization.become(encoder, OptimizedEncoder)
    if linear == "default":
        return
    layers: list[Any] = [layer for encoder in encoders for layer in encoder.layers if _is_whole(layer, free)]
    if layers:
        if attention == "auto":
            milliseconds |= _time_attention(layers[0].self_attn, _tokens(tower))
            attention = _faster(milliseconds, *reversed(CHOICES["attention"]))
        optimization.choices[name]["attention"] = attention
    for layer in layers:
        own, mlp = layer.self_attn, layer.mlp
        groups = [(own.q_proj, own.k_proj, own.v_proj), (own.out_proj,), (mlp.fc1,), (mlp.fc2,)]
        products = tuple(_pack(optimization, group) for group in groups)
        optimization.become(layer, OptimizedLayer, products=products, attention_choice=attention)
    for module in free:
        if type(module) is nn.Linear:
            _pack(optimization, [module])
    for module in modules:
        if type(module) is PoolingAttention:
            width = module.config.hidden_size
            weight, bias = module.in_proj_weight, module.in_proj_bias
            pair = Product([weight[:width]], [bias[:width]]), Product([weight[width:]], [bias[width:]])
            optimization.give_away(weight, *((product, slice(0, product.rows)) for product in pair))
            optimization.become(module, OptimizedPoolingAttention, products=pair)
        elif type(module) is VisionEmbeddings and type(patches := module.patch_embedding) is nn.Conv2d:
            product = Product([patches.weight.flatten(1)], [patches.bias])
            optimization.give_away(patches.weight, (product, slice(0, product.rows)))
            optimization.become(patches, OptimizedPatches, products=product)


def _is_whole(layer: Any, free: Sequence[nn.Linear]) -> bool:
    """Return whether a block is of plain modules, whose work the products can do."""
    if type(layer) is not EncoderLayer or type(layer.self_attn) is not Attention:
        return False
    own, mlp = layer.self_attn, layer.mlp
    linear = (own.q_proj, own.k_proj, own.v_proj, own.out_proj, mlp.fc1, mlp.fc2)
    return own.config.hidden_act in FUSED and {*map(id, linear)} <= {*map(id, free)}


def _pack(optimization: Optimization, layers: Sequence[nn.Linear]) -> Product:
    product, start = Product([layer.weight for layer in layers], [layer.bias for layer in layers]), 0
    for layer in layers:
        rows = slice(start, start + layer.out_features)
        optimization.give_away(layer.weight, (product, rows))
        optimization.become(layer, OptimizedLinear, products=product, rows=rows)
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


def _faster(milliseconds: dict[str, float], usual: str, other: str) -> str:
    """Return the other choice where it is clearly faster, so that runs on one machine mostly choose the same."""
    return other if milliseconds[other] < CLEARLY_FASTER * milliseconds[usual] else usual


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
