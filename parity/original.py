"""The official implementations themselves, where they are installed or lie in the file."""

from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from ..formats import Checkpoint


def original_outputs(checkpoint: Checkpoint, pixel_values: Tensor, input_ids: Tensor) -> tuple[str, dict[str, Tensor]]:
    """Run the original code in float32 and name it: unit embeddings of both towers, and logits.

    OpenAI's checkpoints run in `openai-clip`, or without it, where they are TorchScript archives, by themselves: that
    executes code from the file. open_clip's run in `open_clip_torch`. Raises ValueError where nothing can run one.
    """
    makers = {"openai": _openai, "open_clip": _open_clip}
    if checkpoint.format not in makers:
        raise ValueError(
            f"No installable package runs {checkpoint.format} checkpoints; leave out --reference original: the float64 "
            "reference is independent of twinlens and of transformers."
        )
    name, model = makers[checkpoint.format](checkpoint)
    with torch.no_grad():
        embeds = {
            "image": torch.nn.functional.normalize(model.encode_image(pixel_values).float(), dim=-1),
            "text": torch.nn.functional.normalize(model.encode_text(input_ids).float(), dim=-1),
        }
        logits = model.logit_scale.float().exp() * embeds["image"] @ embeds["text"].T
        if (bias := getattr(model, "logit_bias", None)) is not None:
            logits = logits + bias
    return name, {**{f"{tower}.embeds": value for tower, value in embeds.items()}, "logits_per_image": logits}


def _openai(checkpoint: Checkpoint) -> tuple[str, Any]:
    try:
        from clip.model import CLIP
    except ImportError as error:
        if checkpoint.layout.container != "torchscript":
            raise ValueError(
                f"--reference original needs openai-clip for this file, which does not import ({error}): "
                "pip install 'twinlens[reference]'."
            ) from error
        return "its own TorchScript code", torch.jit.load(str(checkpoint.path), map_location="cpu").float().eval()
    config = checkpoint.config
    vision, text = config.vision_config, config.text_config
    model = CLIP(
        config.projection_dim, vision.image_size, vision.num_hidden_layers, vision.hidden_size, vision.patch_size,
        text.max_position_embeddings, text.vocab_size, text.hidden_size, text.num_attention_heads,
        text.num_hidden_layers,
    )  # fmt: skip
    model.load_state_dict({name: tensor.float() for name, tensor in checkpoint.tensors.items()})
    return f"openai-clip {version('openai-clip')}", model.eval()


def _open_clip(checkpoint: Checkpoint) -> tuple[str, Any]:
    try:
        from open_clip.model import CLIP, CustomTextCLIP
    except ImportError as error:
        raise ValueError(
            f"--reference original needs open_clip_torch for this file, which does not import ({error}): "
            "pip install 'twinlens[reference]'."
        ) from error
    settings = dict(checkpoint.layout.sidecar_json.get("model_cfg") or {})
    if not settings:
        raise ValueError("--reference original builds open_clip's model from open_clip_config.json, which is missing.")
    model = (CustomTextCLIP if settings.pop("custom_text", False) else CLIP)(**settings)
    prefix = checkpoint.layout.prefix
    model.load_state_dict({name.removeprefix(prefix): value.float() for name, value in checkpoint.tensors.items()})
    return f"open_clip_torch {version('open_clip_torch')}", model.eval()
