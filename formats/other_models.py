"""Models that look like a CLIP or a SigLIP, or have one in them, and are neither: each is refused by its name."""

import re
from collections.abc import Iterable

from .errors import FormatError

# What a file is in whose names all of some regular expressions, separated by blanks, are found; the first that fits.
_BY_NAMES = (
    # Files with a dual encoder, or a tower of one, in them
    (r"\blora_\w+\.", "an adapter (LoRA) of a model, to be merged into it"),
    (r"^model\.diffusion_model\.|^cond_stage_model\.|^conditioner\.embedders\.", "a whole Stable Diffusion"),
    (r"^image_proj\.|^ip_adapter\.", "an IP-Adapter; the CLIP that it takes embeddings from is in a folder of its own"),
    (r"\bquery_tokens$|\b[Qq][-_]?[Ff]ormer\.", "a BLIP-2"),
    (r"\blanguage_model\.|\blm_head\.|\bmulti_modal_projector\.|\bmm_projector\.", "a vision-language model"),
    (r"\bclassifier\.weight$ \bvision_model\.", "an image classifier"),
    # Other towers for images and texts
    (r"\bvisual_encoder\. \btext_(en|de)coder\.", "a BLIP or an ALBEF, whose texts attend to the image"),
    (r"\btext_decoder\. \bvision_model\.", "a BLIP, whose texts attend to the image"),
    (r"\btext\.cls_emb$|\bvisual\.attn_pool\.(query|ln_q|attn)\b", "a CoCa, whose towers pool in other ways"),
    (r"\bvisual\. \bbert\.", "a Chinese-CLIP, whose texts go through a BERT"),
    (r"\bvision_model\.embeddings\.convolution\.", "an ALIGN"),
    (r"\bvisual\. \btext\.transformer\.(embeddings|encoder|shared|layers?|roberta)\.",
     "a CLIP of open_clip with a text tower of transformers, such as XLM-RoBERTa"),
    (r"\bvisual\.(trunk\.)?blocks\.0\.attn\.(q_proj|q_bias)|\bvisual\.cls_token$", "an EVA-CLIP"),
    (r"\bvisual\.trunk\.stages\.\d+\.blocks\.\d+\.token_mixer\.|\bimage_encoder\.model\.", "a MobileCLIP"),
    (r"\bvisual\.trunk\.cls_token$ \bvisual\.trunk\.patch_embed\.backbone\.", "a MobileCLIP"),
    (r"\bvisual\.trunk\.patch_embed\.backbone\.", "a ViTamin"),
    (r"\bvisual\.trunk\.(stages\.0\.blocks\.0\.conv_dw|stem\.0)\.", "a CLIP with a ConvNeXt"),
    (r"\bvisual\.trunk\.layer1\.", "a CLIP with a ResNet of timm"),
    (r"\bvisual\.trunk\.norm_pre\. \bvisual\.trunk\.attn_pool\.", "a Perception Encoder (PE-Core)"),
    (r"\bembeds\.proj\. \battn_pool\.latent$", "a NaFlex SigLIP 2 of timm, which is read from big_vision's file"),
    (r"\bvisual\.trunk\.(cls_token$|norm_pre\.|head\.)|\bvisual\.head\.", "a CLIP with another image tower of timm"),
    (r"\bvisual\.conv1_alpha\.", "an Alpha-CLIP, whose images have a fourth channel"),
    (r"\bresblocks\.0\.ls_1\.gamma$", "a CLIP of open_clip whose layers are scaled"),
    (r"\b(audio_branch|audio_model|modality_trunks)\.", "a model of sounds, such as CLAP or ImageBind"),
    (r"^(blocks|encoder\.layer)\.0\. ^(embeddings\.)?cls_token$", "a ViT trained without texts, such as DINO"),
)  # fmt: skip
_NUMBER = re.compile(r"\d+")


def refuse_other_models(names: Iterable[str]) -> None:
    """Raise FormatError where the names of weights are those of a known model that is no dual encoder of ours."""
    first_of = {_NUMBER.sub("", name): name for name in sorted(names, reverse=True)}  # all layers look alike
    lines = "\n".join(first_of.values())
    for patterns, what in _BY_NAMES:
        if all(re.search(pattern, lines, re.MULTILINE) for pattern in patterns.split(" ")):
            raise FormatError(f"this is {what}; expected a CLIP or a SigLIP, or one of their towers.")
