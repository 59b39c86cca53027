"""The official implementations themselves, where they are installed or lie in the file, as subjects of a comparison."""

import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..configuration import ResNetConfig
from ..formats import Checkpoint
from ..formats.openai import STRETCHED_POSITIONS
from .measurement import Inputs, Outputs, Subject

_INSTALL = "pip install '.[reference]' in the checkout of twinlens"


def original_subject(checkpoint: Checkpoint) -> Subject:
    """Return the original code of a checkpoint as a subject: unit embeddings of both towers and logits, in float32.

    OpenAI's checkpoints run in `openai-clip`, or without it, where they are TorchScript archives, by themselves: that
    executes code from the file. open_clip's run in `open_clip_torch`. Raises ValueError where nothing can run one.
    """
    if checkpoint.format == "openai":
        name, load = _openai(checkpoint)
    elif checkpoint.format == "open_clip":
        name, load = _open_clip(checkpoint)
    else:
        raise ValueError(
            f"No installable package runs {checkpoint.format} checkpoints; leave out --reference original: the float64 "
            "reference is independent of twinlens and of transformers."
        )
    return Subject(name, lambda inputs: _final_outputs(load(), inputs), final_only=True, pools_start=True)


def _final_outputs(model: Any, inputs: Inputs) -> Outputs:
    """Run a model with the interface that openai-clip and open_clip_torch share."""
    model.eval()
    pixel_values, input_ids = map(torch.from_numpy, (inputs.images["pixel_values"], inputs.input_ids))
    with torch.no_grad():
        image_embeds = torch.nn.functional.normalize(model.encode_image(pixel_values).float(), dim=-1)
        text_embeds = torch.nn.functional.normalize(model.encode_text(input_ids).float(), dim=-1)
        logits = model.logit_scale.float().exp() * image_embeds @ text_embeds.T
        if (bias := getattr(model, "logit_bias", None)) is not None:
            logits = logits + bias
    outputs = {"image.embeds": image_embeds, "text.embeds": text_embeds, "logits_per_image": logits}
    return {name: output.numpy() for name, output in outputs.items()}


def _openai(checkpoint: Checkpoint) -> tuple[str, Callable[[], Any]]:
    """Return the name of the implementation, and a function that loads the model."""
    try:
        from clip.model import CLIP
    except ImportError as error:
        if checkpoint.layout.container != "torchscript":
            raise ValueError(
                f"--reference original needs openai-clip for this file, which does not import ({error}): {_INSTALL}."
            ) from error
        return "its own TorchScript code", lambda: _archive_in_float32(checkpoint.path)

    prefix = checkpoint.layout.prefix
    if f"{prefix}{STRETCHED_POSITIONS}" in checkpoint.tensors:
        raise ValueError("openai-clip has no Long-CLIP, whose own code is no package; leave out --reference original.")

    def load() -> Any:
        config = checkpoint.config
        vision, text = config.vision_config, config.text_config
        is_resnet = isinstance(vision, ResNetConfig)
        model = CLIP(
            embed_dim=config.projection_dim,
            image_resolution=vision.image_size,
            vision_layers=tuple(vision.depths) if is_resnet else vision.num_hidden_layers,
            vision_width=2 * vision.stem_size if is_resnet else vision.hidden_size,
            vision_patch_size=None if is_resnet else vision.patch_size,
            context_length=text.max_position_embeddings,
            vocab_size=text.vocab_size,
            transformer_width=text.hidden_size,
            transformer_heads=text.num_attention_heads,
            transformer_layers=text.num_hidden_layers,
        )
        model.load_state_dict({name.removeprefix(prefix): value.float() for name, value in checkpoint.tensors.items()})
        return model

    return f"openai-clip {version('openai-clip')}", load


def _archive_in_float32(path: Path) -> Any:
    """Load a TorchScript archive for float32 on the CPU, as `load(..., jit=True)` of openai/CLIP, clip/clip.py, does.

    OpenAI's were traced in float16 on a GPU, and have both as constants in their graphs.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit")  # they are TorchScript, deprecated or not
        model = torch.jit.load(str(path), map_location="cpu").float()
        graph = torch.jit.trace(lambda: torch.ones([]).to("cpu", torch.float32), example_inputs=[]).graph
    _, cpu, float32, *_ = (value.node() for value in graph.findNode("aten::to").inputs())
    owners = [*model.modules(), model.encode_image, model.encode_text]
    owners += [owner.forward1 for owner in owners if hasattr(owner, "forward1")]
    for owner in owners:
        with suppress(RuntimeError):  # a module without a forward has no graph
            for node in owner.graph.findAllNodes("prim::Constant"):
                if str(node.output().toIValue()).startswith("cuda"):
                    node.copyAttributes(cpu)
            for node in owner.graph.findAllNodes("aten::to"):
                for argument in list(node.inputs())[1:3]:  # one of which is the dtype
                    if argument.toIValue() == 5:  # float16
                        argument.node().copyAttributes(float32)
    return model


def _open_clip(checkpoint: Checkpoint) -> tuple[str, Callable[[], Any]]:
    """Return the name of the implementation, and a function that loads the model."""
    try:
        from open_clip.model import CLIP, CustomTextCLIP
    except ImportError as error:
        raise ValueError(
            f"--reference original needs open_clip_torch for this file, which does not import ({error}): {_INSTALL}."
        ) from error
    settings = dict(checkpoint.layout.sidecar_json.get("model_cfg") or {})
    if not settings:
        raise ValueError("--reference original builds open_clip's model from open_clip_config.json, which is missing.")
    model_class = CustomTextCLIP if settings.pop("custom_text", False) else CLIP
    prefix = checkpoint.layout.prefix

    def load() -> Any:
        model = model_class(**settings)
        model.load_state_dict({name.removeprefix(prefix): value.float() for name, value in checkpoint.tensors.items()})
        return model

    return f"open_clip_torch {version('open_clip_torch')}", load
