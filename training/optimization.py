"""Which parameters are trained, at which learning rate, and with how much weight decay."""

import re
import warnings
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from ..modeling import DualEncoderModel

if TYPE_CHECKING:
    from peft import PeftModel

TowerName = Literal["image", "text"]
_TOWERS = {"image": ("vision_model", "visual_projection"), "text": ("text_model", "text_projection")}
_LAYER = re.compile(r"(vision|text)_model\.(?:\w+\.)*?(?:layers?|blocks)\.(\d+)\.")
_EMBEDDINGS = re.compile(r"(vision|text)_model\.(?:\w+\.)?(embeddings|pre_layrnorm)\.")
# The names of linear layers in the encoders and heads of this package, then in those of transformers' other families.
_LINEAR = r".*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2|o_proj|query|key|value|dense)"


def freeze(model: DualEncoderModel, tower: TowerName, *, unlocked_layers: int = 0) -> None:
    """Freeze a tower and its projection, so that its embeddings do not change (LiT, arXiv:2111.07991).

    The last `unlocked_layers` layers of it, and what follows them, stay as trainable as they were. All else in the
    tower runs in evaluation mode from now on: without dropout, and with the statistics of its batch norms as they are.
    """
    if tower not in _TOWERS:
        raise ValueError(f"Expected a tower to freeze out of {', '.join(_TOWERS)}, got {tower!r}.")
    depth = _count_layers(model)
    if unlocked_layers > (layers := depth[_TOWERS[tower][0].removesuffix("_model")]):
        raise ValueError(f"The {tower} tower has {layers} layers, so {unlocked_layers} of them cannot be unlocked.")
    for name, parameter in model.named_parameters():
        is_locked = not unlocked_layers or _steps_below_the_head(name, depth) > unlocked_layers
        if is_locked and name.partition(".")[0] in _TOWERS[tower]:
            parameter.requires_grad_(False)
    for name, part in model.named_children():
        if name in _TOWERS[tower]:
            frozen = [m for m in part.modules() if not any(p.requires_grad for p in m.parameters())]
            part.register_forward_pre_hook(partial(_to_evaluation, frozen))


def _to_evaluation(frozen: Sequence[nn.Module], module: nn.Module, inputs: object) -> None:
    for part in frozen:
        part.training = False


def add_lora(model: DualEncoderModel, rank: int, *, alpha: int | None = None, dropout: float = 0.0) -> "PeftModel":
    """Return a `peft.PeftModel` that trains only low-rank updates of the linear layers of the encoders and the head.

    The updates are scaled by alpha / rank; `alpha` is twice the rank unless given. `merge_and_unload()` of the result
    returns the model with the updates added to its weights. Raises ImportError if peft is missing.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError(f"LoRA needs peft ({error}): pip install '.[train]' in the checkout of twinlens.") from error
    if rank < 1:
        raise ValueError(f"Expected a rank of at least 1, got {rank}.")
    settings = LoraConfig(r=rank, lora_alpha=alpha or 2 * rank, lora_dropout=dropout, target_modules=_LINEAR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 uses a deprecated name of transformers
        adapted = get_peft_model(model, settings)
    # No vocabulary changes here; otherwise peft asks the Hub at every save, where a name of `twinlens list` is unknown.
    adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)  # type: ignore[method-assign]
    return adapted


def parameter_groups(
    model: nn.Module, *, learning_rate: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Return the trainable parameters in groups for an optimizer.

    Weights of two or more dimensions decay; norms, biases, and the scale and bias of the logits do not. The learning
    rate is multiplied by `layer_decay` at each layer from the heads down to the embeddings of a tower.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not names:
        raise ValueError("No parameter is trainable: both towers and the logit scale are frozen.")
    depth = _count_layers(model)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[_steps_below_the_head(name, depth), parameter.ndim > 1].append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * layer_decay**steps,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (steps, decays), parameters in groups.items()
    ]


def _count_layers(model: nn.Module) -> dict[str, int]:
    """Return the number of layers of each tower that has any, "vision" or "text"."""
    depth: dict[str, int] = defaultdict(int)
    for name, _ in model.named_parameters():
        if layer := _LAYER.search(name):
            depth[layer[1]] = max(depth[layer[1]], int(layer[2]) + 1)
    return depth


def _steps_below_the_head(name: str, depth: dict[str, int]) -> int:
    if layer := _LAYER.search(name):
        return depth[layer[1]] - int(layer[2])
    if embeddings := _EMBEDDINGS.search(name):
        return depth[embeddings[1]] + 1
    return 0
