"""Tiny models of every family, ours and transformers', with the same weights; used by several test files."""

import pytest
import torch
import transformers

import twinlens

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 99,
    "max_position_embeddings": 12,
}
IDS = {
    "CLIP": {"pad_token_id": 1, "bos_token_id": 97, "eos_token_id": 98},
    "Siglip": {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1},
    "Siglip2": {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1},
}
EXTRA = {"CLIP": {"projection_dim": 24}, "Siglip": {}, "Siglip2": {}}
FAMILIES = tuple(IDS)
SQUARE = ("CLIP", "Siglip")  # the families whose images are squares of one size
GRIDS = ((4, 4), (2, 8), (3, 5), (1, 7), (5, 3))  # rows and columns of patches; not single columns, see differences.md
# A kernel whose first use takes some seconds. torch.compile warns of what its own code for masks does.
FLEX = pytest.param(
    "flex_attention",
    marks=[pytest.mark.thorough, pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")],
)
TOKENS = 18  # to which images of any grid are padded


def settings(family: str) -> dict:
    """Arguments of `CLIPConfig` or `SiglipConfig`, in either library."""
    tower = EXTRA[family]
    vision = dict(VISION)
    if family == "Siglip2":
        vision["num_patches"] = (vision.pop("image_size") // vision["patch_size"]) ** 2
    return {
        "text_config": {**TEXT, **IDS[family], **tower},
        "vision_config": {**vision, **tower},
        **EXTRA[family],
    }


def config(family: str, library=twinlens, part: str = ""):
    full = getattr(library, f"{family}Config")(**settings(family))
    return {"": full, "Vision": full.vision_config, "Text": full.text_config}[part]


def model(family: str, kind: str = "Model", library=twinlens, attention: str = "sdpa"):
    """A seeded model in evaluation mode whose parameters are all far from zero and one."""
    part = next((part for part in ("Vision", "Text") if kind.startswith(part)), "")
    instance = getattr(library, f"{family}{kind}")(config(family, library, part)).eval()
    instance.set_attn_implementation(attention)
    if attention == "flex_attention":
        torch.compiler.reset()  # it compiles for eight shapes, which other models may have used up
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in sorted(instance.named_parameters()):
            if name == "logit_scale":
                parameter.fill_(2.5)
            else:
                parameter.normal_(std=0.2, generator=generator)
    return instance


def twins(family: str, kind: str = "Model", attention: str = "sdpa"):
    """Our model and transformers' with the same weights."""
    theirs = model(family, kind, transformers, attention)
    ours = model(family, kind, twinlens, attention)
    weights = theirs.state_dict()
    ours.load_state_dict({name: weights[name] for name in ours.state_dict()})
    return ours, theirs


def token_ids(family: str, texts: int = 3) -> torch.Tensor:
    """Texts that fill all positions, each with one end-of-text and padding behind it."""
    ids = torch.randint(3, 97, (texts, TEXT["max_position_embeddings"]))
    ids[:, 7] = IDS[family]["eos_token_id"]
    ids[:, 8:] = IDS[family]["pad_token_id"]
    return ids


def pixels(images: int = 2, size: int = VISION["image_size"]) -> torch.Tensor:
    return torch.randn(images, 3, size, size)


def images(family: str, count: int = 2) -> dict[str, torch.Tensor]:
    """The inputs of the image tower: squares, or patches of images of different grids with zeros for padding."""
    if family in SQUARE:
        return {"pixel_values": pixels(count)}
    grids = torch.tensor([GRIDS[number % len(GRIDS)] for number in range(count)]).reshape(count, 2)
    mask = torch.arange(TOKENS) < grids.prod(dim=1, keepdim=True)
    patches = torch.randn(count, TOKENS, 3 * VISION["patch_size"] ** 2)
    return {
        "pixel_values": patches * mask[..., None],
        "pixel_attention_mask": mask.int(),
        "spatial_shapes": grids,
    }


def rows_of(inputs: dict[str, torch.Tensor], rows: slice) -> dict[str, torch.Tensor]:
    return {name: values[rows] for name, values in inputs.items()}
