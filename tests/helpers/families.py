"""Tiny models of every family, ours and transformers', with the same weights; used by several test files."""

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
}
EXTRA = {"CLIP": {"projection_dim": 24}, "Siglip": {}}
FAMILIES = tuple(IDS)


def settings(family: str) -> dict:
    """Arguments of `CLIPConfig` or `SiglipConfig`, in either library."""
    tower = EXTRA[family]
    return {
        "text_config": {**TEXT, **IDS[family], **tower},
        "vision_config": {**VISION, **tower},
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
