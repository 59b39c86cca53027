"""open_clip and timm themselves, run in a process of their own: the official code of what is read and exported here."""

import importlib
import importlib.machinery
import json
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import save_file

from twinlens.parity import verify

TINY_TRUNK = "vit_tiny_patch16_siglip_test"


def import_packages(folders: Sequence[Path]) -> None:
    """Make the unpacked distributions of open_clip_torch, timm and torchvision importable, in this order.

    Of torchvision only Python is imported: its compiled operators belong to one build of PyTorch and nothing here calls
    them. An empty package whose path is torchvision's stands in for that one's own start.
    """
    package: Any = types.ModuleType("torchvision")
    package.__path__ = [str(folders[2] / "torchvision")]
    package.__spec__ = importlib.machinery.ModuleSpec("torchvision", None, is_package=True)
    package.__version__ = "0"
    package.disable_beta_transforms_warning = lambda: None
    sys.modules["torchvision"] = package
    sys.path[:0] = map(str, folders[:2])


def import_transform(folders: Sequence[Path]) -> types.ModuleType:
    """Import the preprocessing of open_clip alone, without the start of its package, which imports timm for seconds."""
    import_packages(folders)
    package: Any = types.ModuleType("open_clip")
    package.__path__ = [str(folders[0] / "open_clip")]
    sys.modules["open_clip"] = package
    return importlib.import_module("open_clip.transform")


def vit_tiny_patch16_siglip_test(num_classes: int, global_pool: str, **ignored: Any) -> torch.nn.Module:
    """A SigLIP tower of timm's that is small enough for tests; exact GELU, as under the names of SigLIP B/16."""
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"patch_size": 16, "img_size": 48, "embed_dim": 48, "depth": 3, "num_heads": 3, "mlp_ratio": 1.5}
    return VisionTransformer(**sizes, class_token=False, num_classes=num_classes, global_pool=global_pool)


def main(packages: Sequence[Path], inputs_file: Path, outputs_file: Path, trunks_file: Path, *folders: Path) -> None:
    """Write what the models of `folders`, as open_clip loads them, make of the inputs.

    A folder without weights gets a seeded random model. What timm's names of SigLIP towers mean is written unless that
    file is there.
    """
    import_packages(packages)
    if not trunks_file.exists():
        trunks(trunks_file)
    import open_clip
    import timm

    timm.models.register_model(vit_tiny_patch16_siglip_test)
    inputs = np.load(inputs_file)
    outputs: dict[str, Any] = {}
    for number, folder in enumerate(folders):
        model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        if not list(folder.glob("*.safetensors")) + list(folder.glob("*.bin")):
            generator = torch.Generator().manual_seed(number)
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
                center = 1 if name.endswith(".weight") and parameter.ndim == 1 else 0
                parameter.data = torch.tensor(2.0) if name == "logit_scale" else center + scale * noise
            save_file(model.state_dict(), folder / "open_clip_model.safetensors")
        model = model.double().eval()
        with torch.no_grad():
            images = model.encode_image(torch.from_numpy(inputs["pixels"]), normalize=True)
            texts = model.encode_text(torch.from_numpy(inputs["ids"]), normalize=True)
            logits = model.logit_scale.exp() * images @ texts.T
            logits = logits if model.logit_bias is None else logits + model.logit_bias
        outputs |= {f"{number}/images": images, f"{number}/texts": texts, f"{number}/logits": logits}
        print(folder, [str(step) for step in transform.transforms])
    np.savez(outputs_file, **outputs)


def trunks(output: Path) -> None:
    import timm

    found = {}
    for name in timm.list_models("vit_*_siglip_*", exclude_filters="*_gap_*"):
        with torch.device("meta"):
            model = timm.create_model(name)
        block = model.blocks[0]
        found[name] = [
            model.embed_dim,
            len(model.blocks),
            block.attn.num_heads,
            block.mlp.fc1.out_features,
            model.patch_embed.patch_size[0],
            model.patch_embed.img_size[0],
            {"GELU": "gelu", "GELUTanh": "gelu_pytorch_tanh"}[type(block.mlp.act).__name__],
        ]
        assert model.attn_pool.num_heads == block.attn.num_heads
        assert type(model.attn_pool.mlp.act) is type(block.mlp.act)
    output.write_text(json.dumps(found))


def verify_folder(packages: Sequence[Path], source: Path, folder: Path) -> None:
    """Print whether a folder passes against open_clip, and what it was compared with."""
    import_packages(packages)
    with patch("twinlens.parity.original.version", lambda name: "3.3.0"):  # not installed, only unpacked
        certificate = verify(source, folder, reference="original")
    print(certificate.passed, certificate.comparisons[-2].reference)
