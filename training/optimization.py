"""Which parameters learn, how fast, and with how much weight decay."""

import re
import warnings
from collections import defaultdict
from typing import Any, Literal

from torch import nn

from ..modeling import DualEncoderModel

Part = Literal["image", "text"]
_PARTS = {"image": r"(vision_model|visual_projection)\.", "text": r"(text_model|text_projection)\."}
_LAYER = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.")
_EMBEDDINGS = re.compile(r"(vision|text)_model\.(embeddings|pre_layrnorm)\.")


def freeze(model: DualEncoderModel, part: Part) -> None:
    """Lock one tower and its projection, for LiT (arXiv:2111.07991): what it embeds stays as it is."""
    if part not in _PARTS:
        raise ValueError(f"Expected a part to freeze out of {', '.join(_PARTS)}, got {part!r}.")
    for name, parameter in model.named_parameters():
        if re.match(_PARTS[part], name):
            parameter.requires_grad_(False)


def add_lora(model: DualEncoderModel, rank: int, *, alpha: int | None = None, dropout: float = 0.0) -> Any:
    """The model as a `peft.PeftModel` that trains low-rank updates of every linear layer of the encoders, and no more.

    The updates are scaled by alpha / rank; `alpha` is twice the rank unless given. `merge_and_unload()` of the result
    gives the model back, changed. Raises ImportError where peft is missing.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError(f"LoRA needs peft ({error}): pip install '.[train]' in the checkout of twinlens.") from error
    if rank < 1:
        raise ValueError(f"Expected a rank of at least 1, got {rank}.")
    targets = r".*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"
    settings = LoraConfig(r=rank, lora_alpha=alpha or 2 * rank, lora_dropout=dropout, target_modules=targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 asks transformers a question by its old name
        return get_peft_model(model, settings)


def parameter_groups(
    model: nn.Module, *, learning_rate: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Groups of the trainable parameters for an optimizer.

    Weights of two or more dimensions decay; norms, biases, the scale and the bias of the logits do not. The learning
    rate falls by `layer_decay` from layer to layer on the way down from the heads to the embeddings of each tower.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not names:
        raise ValueError("No parameter is trainable: both towers and the logit scale are frozen.")
    depth: dict[str, int] = defaultdict(int)
    for name, _ in model.named_parameters():
        if layer := _LAYER.search(name):
            depth[layer[1]] = max(depth[layer[1]], int(layer[2]) + 1)
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


def _steps_below_the_head(name: str, depth: dict[str, int]) -> int:
    if layer := _LAYER.search(name):
        return depth[layer[1]] - int(layer[2])
    if embeddings := _EMBEDDINGS.search(name):
        return depth[embeddings[1]] + 1
    return 0
