"""The texts that a dual encoder encoded last, so that labels which come with each image again are encoded once."""

from collections.abc import Iterator, Sequence
from functools import partial
from threading import Lock
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput
from transformers.utils.import_utils import is_tracing

from .outputs import deferred, later, names_in, plain_class
from .packed import Packed
from .pickling import has_hooks

ENTRIES = 4  # batches of texts that are remembered
_SAMPLES = 16  # values of each weight that are looked at
_LIBRARIES = {"torch", "transformers", "transformers_modules", __name__.partition(".")[0]}  # whose modules are known
_OUTPUTS = {"last_hidden_state", "pooler_output"}
_SETTINGS = {bool, int, float, str, FunctionType}  # types of the attributes that decide what a module does


class _Entry(NamedTuple):
    inputs: Sequence[Tensor | None]
    output_class: type[ModelOutput]
    pooled: Tensor


class _Weights(NamedTuple):
    """What tells weights from others: where they are, how often they were changed, and some of their values.

    The values are looked at because changes through `.data`, as of a moving average, are not counted. `state` also has
    the settings of modules and configurations.
    """

    state: tuple[object, ...]
    samples: Tensor

    def are(self, others: "_Weights | None") -> bool:
        return others is not None and self.state == others.state and torch.equal(self.samples, others.samples)


class TextCache:
    """The pooled outputs of the last batches of texts, by token ids and mask, without gradients and in evaluation mode.

    It is used by `DualEncoderModel.forward` where nobody can see a difference, and emptied as soon as a weight or a
    setting of the text encoder has changed. Hooks, adapters, quantised or off-loaded weights, a `get_text_features` of
    somebody else, autocast and whatever asks for hidden states or attention maps go past it. Threads may share it. A
    copy or pickle of it is empty.

    `enabled` switches it, `hits` and `misses` count, `clear` empties it. One value of a weight changed through `.data`
    may go unnoticed; call `clear` then.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.hits = self.misses = 0
        self._lock = Lock()
        self._weights: _Weights | None = None
        self._entries: list[_Entry] = []  # the last one used is the last one

    def __repr__(self) -> str:
        state = f"{len(self)} of {ENTRIES} batches" if self.enabled else "disabled"
        return f"TextCache({state}, {self.hits} hits, {self.misses} misses)"

    def __len__(self) -> int:
        return len(self._entries)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.enabled,)

    def clear(self) -> None:
        """Forget all texts."""
        with self._lock:
            self._weights, self._entries = None, []

    def features(
        self, model: Any, input_ids: Tensor | None, attention_mask: Tensor | None = None, **options: Any
    ) -> ModelOutput:
        """Return `model.get_text_features` of these inputs, perhaps as it was remembered.

        Its `last_hidden_state` is then computed when somebody reads it.
        """
        encode = partial(model.get_text_features, return_dict=True, **options)
        is_plain = not any(value is not None for value in options.values())
        weights = _weights_of(model) if self.enabled and is_plain and _are_values(input_ids, attention_mask) else None
        if weights is None:
            return encode(input_ids, attention_mask)
        inputs = tuple(value if value is None else value.clone() for value in (input_ids, attention_mask))
        with self._lock:
            found = self._find(weights, inputs)
        if found is None:
            output = encode(input_ids, attention_mask)
            if names_in(output) == _OUTPUTS:
                self._add(weights, _Entry(inputs, plain_class(output), output.pooler_output.clone()))
            return output
        states = later(found.pooled.device.type, partial(encode, *inputs))
        return deferred(found.output_class, last_hidden_state=states, pooler_output=found.pooled.clone())

    def _find(self, weights: _Weights, inputs: Sequence[Tensor | None]) -> _Entry | None:
        """Return what is remembered of these inputs; forget all that other weights made."""
        if not weights.are(self._weights):
            self._weights, self._entries = weights, []
        for place, entry in enumerate(self._entries):
            if all(map(_equal, entry.inputs, inputs)):
                self._entries.append(self._entries.pop(place))
                self.hits += 1
                return entry
        self.misses += 1
        return None

    def _add(self, weights: _Weights, entry: _Entry) -> None:
        with self._lock:
            if weights.are(self._weights):  # another thread may have met changed ones in the meantime
                self._entries = [*self._entries[1 - ENTRIES :], entry]


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.device == other.device and one.dtype == other.dtype and torch.equal(one, other)


def _are_values(input_ids: Tensor | None, attention_mask: Tensor | None) -> bool:
    """Return whether inputs can be remembered: plain tensors with values, outside of training, tracing and autocast."""
    if input_ids is None or torch.is_grad_enabled() or is_tracing(input_ids) or input_ids.is_meta:
        return False
    if any(type(value) is not Tensor for value in (input_ids, attention_mask) if value is not None):
        return False
    if torch.is_autocast_enabled(input_ids.device.type):
        return False
    try:
        return torch.equal(input_ids, input_ids)
    except RuntimeError:  # inside torch.func.vmap there are no values
        return False


def _weights_of(model: Any) -> _Weights | None:
    """Return the state of all that encodes texts; None where more than weights may decide on the result."""
    config = model.config.get_text_config()
    if any(getattr(config, name, False) for name in ("output_hidden_states", "output_attentions")):
        return None
    parts = [module for name, module in model.named_children() if name not in ("vision_model", "visual_projection")]
    modules = [module for part in parts for module in part.modules()]
    if not _is_encoded_by_a_library(model) or any(map(has_hooks, parts)) or not all(map(_is_plain, modules)):
        return None
    # What is packed keeps its values until the optimisation, which is part of the settings, is undone.
    tensors = [value for module in modules for value in _tensors_of(module) if not isinstance(value, Packed)]
    if not all(map(_is_followed, tensors)):
        return None
    settings = (_settings_of(model, *modules), [module.__dict__.get("optimization") for module in (model, *modules)])
    places = [(value.data_ptr(), value._version, value.dtype, value.device, value.shape) for value in tensors]
    samples = [value.detach().flatten()[:: max(1, value.numel() // _SAMPLES)].float() for value in tensors]
    return _Weights((*settings, *places), torch.cat(samples).nan_to_num(7.0))


def _is_encoded_by_a_library(model: Any) -> bool:
    """Return whether texts are encoded as the libraries do it, so by nothing but the parts and weights they know."""
    library = type(model).get_text_features.__module__.partition(".")[0]
    return library in _LIBRARIES and "get_text_features" not in model.__dict__


def _settings_of(*modules: nn.Module) -> list[object]:
    """Return types and attributes of modules and of their configurations, by which they would be told apart."""
    configs = {id(config): config for module in modules if (config := module.__dict__.get("config")) is not None}
    attributes = [
        (type(module), [value for value in module.__dict__.values() if type(value) in _SETTINGS]) for module in modules
    ]
    return [*attributes, *(dict(vars(config)) for config in configs.values())]


def _is_plain(module: nn.Module) -> bool:
    """Return whether a module is what its library made it: in evaluation, with its own `forward`."""
    methods = (type(module), type(module.__dict__.get("forward", module)))  # of an optimised one, this package's
    is_known = all(method.__module__.partition(".")[0] in _LIBRARIES for method in methods)
    return is_known and not module.training


def _tensors_of(module: nn.Module) -> Iterator[Tensor]:
    for value in (*module._parameters.values(), *module._buffers.values()):
        if value is not None:
            yield value


def _is_followed(value: Tensor) -> bool:
    """Return whether changes of a tensor can be seen: it is no other kind of tensor, and counts its versions."""
    return type(value) in (Tensor, nn.Parameter) and not (value.is_meta or value.is_inference())
