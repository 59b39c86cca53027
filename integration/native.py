"""From a model of this package to transformers' own class with the same weights."""

from typing import Any

import transformers
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from ..configuration import carries_code
from ..modeling.pretrained import LoadableModel


def to_transformers(model: PreTrainedModel) -> Any:
    """Return transformers' own model with the same weights, configuration, dtype, device and mode.

    The weights are copies. It is for libraries that look for transformers' classes by type; a saved folder needs no
    conversion. What is optimised for inference is taken as it was before.

    Raises TypeError for what is no model of twinlens, and ValueError where transformers has no class for it (CLIP's
    ResNets), has nothing for a part of it (adapters of peft: merge them first; the bias of
    `from_towers(loss="sigmoid")`), or would give other answers (a classifier over the trained pooling).
    """
    if not isinstance(model, LoadableModel):
        raise TypeError(f"Expected a model of twinlens, got a {type(model).__module__}.{type(model).__name__}.")
    name, model_type = type(model).__name__, model.config.model_type
    native_class = None if carries_code(model_type) else getattr(transformers, name, None)
    if native_class is None:
        raise ValueError(
            f"transformers has no {name}. Its saved folder carries its code: AutoModel.from_pretrained(folder, "
            "trust_remote_code=True) loads it where twinlens is not installed."
        )
    if getattr(model.config, "classifier_pooling", "mean") != "mean" and hasattr(model, "classifier"):
        raise ValueError(
            f"transformers' {name} takes the mean of the patches: with classifier_pooling='pooled', this one "
            "would give other answers there."
        )
    config = getattr(transformers, CONFIG_MAPPING_NAMES[model_type]).from_dict(model.config.to_dict())
    config.name_or_path = model.config.name_or_path
    native = native_class(config)
    weights = {key: weight.detach().clone() for key, weight in model.state_dict().items()}
    if foreign := sorted(weights.keys() - native.state_dict().keys()):
        raise ValueError(
            f"transformers' {name} has no place for {len(foreign)} weights of this one: {', '.join(foreign[:3])}, ... "
            "Adapters are merged by peft's merge_and_unload()."
        )
    if any(weight.is_meta for weight in weights.values()):
        raise ValueError(f"Expected a {name} whose weights are all in memory, got one with off-loaded weights.")
    native.load_state_dict(weights, strict=False, assign=True)  # its classifiers have pooling weights, which none uses
    for key, parameter in model.named_parameters():
        native.get_parameter(key).requires_grad_(parameter.requires_grad)
    kernels = {part: getattr(model.config, part)._attn_implementation for part in model.config.sub_configs}
    native.set_attn_implementation({"": model.config._attn_implementation, **kernels})
    return native.to(model.device, model.dtype).train(model.training)
