"""The libraries that benchmarks compare with: which are installed, and how each gets the weights of our model."""

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import packaging.version  # which the stand-in below hands on
import torch
import transformers
from common import THREADS
from torch import Tensor, nn

import twinlens
from twinlens.conversion import export

Encode = Callable[[Tensor], Tensor]  # pixels (images, 3, height, width) to embeddings (images, dim)

# A library, as tables name it: its distribution and its module.
PACKAGES = {
    "open_clip": ("open_clip_torch", "open_clip"),
    "openai-clip": ("openai-clip", "clip"),
    "ONNX Runtime": ("onnxruntime", "onnxruntime"),
    "OpenVINO": ("openvino", "openvino"),
}
VERSIONS = ("open_clip_torch", "openai-clip", "timm", "torchvision", "onnx", "onnxscript", "onnxruntime", "openvino")


def missing_peers(*names: str) -> dict[str, str]:
    """Return why a library is not measured, for those of `names`, or of all, that are not installed; print it, too."""
    reasons = {
        name: f"{distribution} is not installed"
        for name, (distribution, module) in PACKAGES.items()
        if (not names or name in names) and importlib.util.find_spec(module) is None
    }
    for name, reason in reasons.items():
        print(f"not measured: {name} ({reason})", flush=True)
    return reasons


def import_openai_clip() -> Any:
    """Import openai-clip, which takes `packaging` from a module that setuptools has dropped."""
    resources: Any = types.ModuleType("pkg_resources")
    resources.packaging = packaging
    sys.modules.setdefault("pkg_resources", resources)
    return importlib.import_module("clip")


def to_twinlens(folder: Path, dtype: torch.dtype) -> Any:
    """Load the model of a folder as our own class."""
    return twinlens.DualEncoderModel.from_pretrained(folder, dtype=dtype).eval()


def to_transformers(folder: Path, attention: str, dtype: torch.dtype) -> Any:
    """Load the model of a folder as transformers' own class."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0])
    return model.from_pretrained(folder, attn_implementation=attention, dtype=dtype).eval()


def to_open_clip(folder: Path, dtype: torch.dtype) -> Any:
    """Load the model of a folder with open_clip.

    It knows SigLIP's image towers by names of timm, behind which the GELU of these towers is exact. Here it is the one
    of transformers' configuration, as in the other libraries.
    """
    import open_clip

    target = folder / "open_clip"
    if not target.exists():
        target.mkdir()
        source = folder
        if twinlens.DualEncoderConfig.from_pretrained(folder).model_type == "siglip":
            source = _with_exact_gelu(folder, target / "source")
        export(source, target / "open_clip_model.safetensors", format="open_clip")
    model = open_clip.create_model(f"local-dir:{target}").eval()
    if hasattr(model.visual, "trunk"):
        for module in model.visual.trunk.modules():
            if hasattr(module, "act"):
                module.act = nn.GELU("tanh")
    return model.to(dtype)


def _with_exact_gelu(folder: Path, target: Path) -> Path:
    """Return a folder with the weights of a SigLIP, and the image activation under which timm has a name for it."""
    config = twinlens.SiglipConfig.from_pretrained(folder)
    config.vision_config.hidden_act = "gelu"
    config.save_pretrained(target)
    (target / "model.safetensors").symlink_to(folder / "model.safetensors")
    return target


def to_openai_clip(folder: Path, dtype: torch.dtype) -> Any:
    """Load the CLIP of a folder with openai-clip, whose norms compute in float32."""
    from twinlens.formats import read_checkpoint, to_official
    from twinlens.formats.openai import OpenAILayout

    clip = import_openai_clip()
    config: Any = twinlens.CLIPConfig.from_pretrained(folder)
    vision, text = config.vision_config, config.text_config
    model = clip.model.CLIP(
        config.projection_dim, vision.image_size, vision.num_hidden_layers, vision.hidden_size, vision.patch_size,
        text.max_position_embeddings, text.vocab_size, text.hidden_size, text.num_attention_heads,
        text.num_hidden_layers,
    )  # fmt: skip
    layout = replace(OpenAILayout.from_config(config), dtypes={"": "float32"})
    weights = to_official(read_checkpoint(folder).state_dict(), layout)
    model.load_state_dict({name: weights[name].float() for name in model.state_dict()})
    model = model.eval().to(dtype)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.float()
    return model


class ImageFeatures(nn.Module):
    """The image side of a model of transformers' interface as a module: pixels to embeddings."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return projected embeddings (images, dim), not normalised."""
        features: Tensor = self.model.get_image_features(pixel_values=pixel_values).pooler_output
        return features


def compiled(module: nn.Module) -> Encode:
    """Compile a module for inputs of one shape; on the CPU with its weights as constants."""
    import torch._inductor.config as inductor

    inductor.freezing = next(module.parameters()).device.type == "cpu"
    encode: Encode = torch.compile(module, dynamic=False)
    return encode


def export_onnx(model: Any, file: Path) -> None:
    """Write the image side of a model in float32, for any number of images."""
    side = model.config.vision_config.image_size
    pixels = torch.zeros(2, 3, side, side)
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        ImageFeatures(model).eval(), (pixels,), dynamo=True, dynamic_shapes={"pixel_values": {0: batch}}, verbose=False
    )
    assert program is not None
    program.save(str(file))


def onnx_runtime_encoder(file: Path, batch_size: int) -> Encode:
    """Return the model of a file for one batch size in ONNX Runtime, whose threads sleep while others are measured."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = THREADS
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    settings.add_free_dimension_override_by_name("batch", batch_size)
    session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(None, {"pixel_values": pixels.numpy()})[0])


def openvino_settings(dtype: torch.dtype) -> dict[str, object]:
    """Return how OpenVINO computes: one request on all threads, in this dtype."""
    hint = {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype]
    return {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": THREADS, "NUM_STREAMS": 1}


def openvino_encoder(file: Path, batch_size: int, dtype: torch.dtype) -> Encode:
    """Return the model of an ONNX file for one batch size in OpenVINO, which takes and returns float32."""
    import openvino

    core = openvino.Core()
    model = core.read_model(str(file))
    model.reshape([batch_size, *[size.get_length() for size in list(model.inputs[0].partial_shape)[1:]]])
    compiled = core.compile_model(model, "CPU", openvino_settings(dtype))
    return lambda pixels: torch.from_numpy(compiled(pixels.numpy())[0])


def worst_error(embeds: Tensor, expected: Tensor) -> float:
    """Return 1 minus the cosine of the embeddings that are least alike."""
    count = min(len(embeds), len(expected))
    return 1 - torch.nn.functional.cosine_similarity(embeds[:count].double(), expected[:count]).min().item()
