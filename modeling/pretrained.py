"""The base of all models: transformers' switches, its decorators with types, and first weights."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, generic, output_capturing
from typing_extensions import Self

from ..configuration.known_names import POSITION_IDS_BUFFERS
from ..formats.positions import RESAMPLING_METHODS, resize_positions
from ..runtime import PickledWithoutHooks, UnsplitModules
from .attention import Attention
from .encoder import LAYERS, EncoderLayer
from .initialization import initialize
from .loading import LoadsOfficialFiles

if TYPE_CHECKING:
    ModelKwargs: TypeAlias = Any
else:  # transformers' common tests expect this of every forward, although it names only some of the keywords
    ModelKwargs = Unpack[TransformersKwargs]
Method = TypeVar("Method", bound=Callable[..., Any])


def typed(decorator: Any) -> Callable[[Method], Method]:
    """Declare that an untyped decorator of transformers keeps the type of the method under it."""
    return decorator


can_return_tuple = typed(generic.can_return_tuple)  # a tuple for `return_dict=False`
capture_outputs = typed(output_capturing.capture_outputs(tie_last_hidden_states=False))  # hidden states, attention maps


class LoadableModel(LoadsOfficialFiles, PickledWithoutHooks, PreTrainedModel):
    """A model that `from_pretrained` loads from any source, and that can always be pickled."""

    if TYPE_CHECKING:  # methods that transformers leaves without types, or hides behind a decorator

        def eval(self) -> Self: ...

        def to(self, *args: Any, **kwargs: Any) -> Self: ...

    def optimize_for_inference(self, **options: Any) -> Self:
        """Make inference faster, in place; return the model. `restore` undoes it, bit for bit.

        On the CPU, linear layers get their weights in oneDNN's own layout and their activations with them, unless a
        measurement finds PyTorch's default to be faster; batches go through the encoder in parts that stay in the
        cache. Where one token is pooled, the last layer computes no other. Pooling by attention makes no keys and
        values. There is no second copy of these weights. A ResNet has its batch norm in a second copy of its
        convolutions. What was chosen is in `model.optimization`, which can be printed.

        `last_hidden_state` is then completed when it is read, by the last layer as it is at that time.
        Saving, copying, pickling, hooks, hidden states and attention maps work as before. What needs the plain model
        undoes the optimisation, and logs that: `train()`, another device or dtype, `load_state_dict`, inputs that
        require gradients, and replaced modules, parameters, methods and adapters when the model is next called.
        Meanwhile results have no gradients, although parameters keep `requires_grad`; packed weights have no values:
        computing with them raises RuntimeError, also in another model that shares them, and so do compiling, exporting
        and tracing. Towers that models share are optimised for the last one, and `restore` of either undoes it.

        Not noticed: a method replaced in a class, and a ResNet's weights written through `.data`. `restore` may be
        called while other threads use the model, this method may not: optimise before they start.

        Options:

        - `linear`: "onednn" or "default" fixes the choice for linear layers; "auto" measures.
        - `attention`: "products" or "kernel" fixes it for attention that has no mask; "auto" measures.
        - `convolution`: "folded" or "separate" fixes it for a ResNet's convolutions and batch norms; "auto" measures.
        - `compile`: compile the encoder's layers instead (`torch.compile`), as is best on a GPU; not those of a copy.

        Raises ValueError for another option or value, and for weights that are not all in memory.
        """
        from ..inference.optimized import optimize

        return optimize(self, **options)

    def restore(self) -> Self:
        """Undo `optimize_for_inference`; return the model."""
        for optimization in {vars(module).get("optimization") for module in self.modules()} - {None}:
            optimization.restore()
        return self


class EncoderPreTrainedModel(UnsplitModules, LoadableModel):
    """The base of towers, heads and dual encoders that have the encoder of this package."""

    supports_gradient_checkpointing = True
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["VisionEmbeddings", "PatchEmbeddings", "TextEmbeddings", *LAYERS, "AttentionPoolingHead"]
    _input_embed_layer = "token_embedding"
    _can_record_outputs = {"hidden_states": EncoderLayer, "attentions": Attention}
    _keys_to_ignore_on_load_unexpected = {POSITION_IDS_BUFFERS}

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        # transformers' own configuration of the same model is accepted, e.g. inside a vision-language model.
        super().__init__(self.config_class.from_config(config), *args, **kwargs)

    def resize_positions(self, image_size: int, method: str | None = None) -> Self:
        """Make the image tower one for squares of `image_size` pixels, in weights and configuration; return the model.

        The position table is resized as by the official code of the family, or as by `method`: "big_vision",
        "open_clip", or "transformers", which is what `interpolate_pos_encoding` does for one call. It is computed in
        float32 and keeps its dtype; positions of class tokens stay. Call this before an optimizer is made.

        The processor for it is that of the same source with other sizes: `DualEncoderProcessor.from_pretrained(source,
        size={"height": 384, "width": 384})`, for CLIP with `size={"shortest_edge": 384}, crop_size={"height": 384,
        "width": 384}`. Raises ValueError for less than a patch, another method, or a tower that takes images of any
        size.
        """
        model: Any = self
        tower = model.vision_model
        config, table = tower.config, [m for name, m in tower.named_modules() if name.endswith("position_embedding")]
        if config.flexible_size:
            raise ValueError(f"A {type(tower).__name__} takes images of any size: it has no resolution to change.")
        if not isinstance(image_size, int) or image_size < config.patch_size:
            raise ValueError(
                f"image_size must be a whole number of at least {config.patch_size} (one patch), got {image_size!r}."
            )
        if (method := method or config.position_resampling) not in RESAMPLING_METHODS:
            raise ValueError(f"method must be one of {', '.join(RESAMPLING_METHODS)}, got {method!r}.")
        for changed in (config, getattr(model.config, "vision_config", model.config)):
            changed.image_size = image_size
        for embedding in table:  # of a ResNet without its pooling, there is none
            resize_positions(embedding, config.grid_size, method)
        return self

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        initialize(module, self.config)
