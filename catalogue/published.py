"""The catalogue: the published checkpoints that twinlens knows, one entry each.

Every fact is from the source beside it; it is None where no source states it, or where sources disagree. The
checkpoints themselves were not read for this table: `check_geometry` compares each with its entry when it is read.
"""

import difflib
from dataclasses import replace
from typing import Any

from .architectures import CLIP_ARCHITECTURES, TOWERS
from .bundled import BUNDLED
from .official_checkpoint import HUB, OfficialCheckpoint, ResNet
from .preprocessing import C4_EN, CLIP_BPE, CLIP_PIXELS, GEMMA, MC4, NAFLEX_PIXELS, SIGLIP_PIXELS

_OPENAI = "openai/CLIP@d05afc4"
_BIG_VISION = "google-research/big_vision@0127fb6"
_IMAGE_TEXT = f"{_BIG_VISION} big_vision/configs/proj/image_text"
_OPEN_CLIP = "open_clip_torch==3.3.0 open_clip"
_DOCS = "mlfoundations/open_clip@89fb801 docs"
_RESULTS = f"{_DOCS}/openclip_results.csv"

# What the checkpoints of one publisher share
_SIGLIP: dict[str, Any] = {
    "family": "siglip",
    "vocabulary": C4_EN,
    "sources": {
        "address, geometry, text, pixels": f"{_IMAGE_TEXT}/SigLIP_demo.ipynb",
        "activation": f"{_BIG_VISION} big_vision/models/vit.py",
        "license": f"{_BIG_VISION} README.md",
        "imagenet": _RESULTS,
    },
}
_SIGLIP2: dict[str, Any] = {
    "family": "siglip2",
    "vocabulary": GEMMA,
    "sources": {
        "address, imagenet": f"{_IMAGE_TEXT}/README_siglip2.md (NaFlex: at 256 patches)",
        "geometry, text, pixels": f"{_IMAGE_TEXT}/SigLIP2_demo.ipynb",
        "activation": f"{_BIG_VISION} big_vision/models/vit.py",
        "license": f"{_BIG_VISION} README.md; the Hub's cards of google/siglip2-*",
    },
}
_NAFLEX = {**_SIGLIP2, "pixels": NAFLEX_PIXELS}
_OPEN_CLIP_SOURCES = {
    "address, activation, pixels": f"{_OPEN_CLIP}/pretrained.py",
    "geometry, text": f"{_OPEN_CLIP}/model_configs",
}
_LAION: dict[str, Any] = {
    "license": "mit",
    "sources": {
        **_OPEN_CLIP_SOURCES,
        "license": "the Hub's cards: eight in embeddings-benchmark/mteb@06aee2b openclip_models.py, three unverified",
        "imagenet": _RESULTS,
    },
}
_DFN: dict[str, Any] = {
    "license": "apple-amlr",
    "sources": {
        **_OPEN_CLIP_SOURCES,
        "license": f"the Hub's card of apple/DFN2B-CLIP-ViT-B-16; {_DOCS}/PRETRAINED.md",
        "imagenet": f"{_RESULTS}; dfn2b_s39b: its card on the Hub",
    },
}
_META: dict[str, Any] = {
    "license": "cc-by-nc-4.0",
    "sources": {
        **_OPEN_CLIP_SOURCES,
        "license": f"facebookresearch/MetaCLIP@00c39e8 README.md; {_DOCS}/PRETRAINED.md",
        "imagenet": f"{_RESULTS}; ViT-bigG-14: facebookresearch/MetaCLIP@00c39e8 README.md",
    },
}


def _clip(name: str, model: str, **facts: Any) -> OfficialCheckpoint:
    is_resnet = isinstance(CLIP_ARCHITECTURES[model].image, ResNet)
    shared = {
        "family": "clip_resnet" if is_resnet else "clip",
        "text_length": 77,
        "vocabulary": CLIP_BPE,
        "pixels": CLIP_PIXELS,
    }
    return OfficialCheckpoint(name=name, **CLIP_ARCHITECTURES[model]._asdict(), **{**shared, **facts})


def _openai(name: str, sha256: str, imagenet: float) -> OfficialCheckpoint:
    file = name.replace("/", "-").replace("@", "-")
    return _clip(
        name,
        file.removesuffix("px"),
        format="openai",
        address=f"https://openaipublic.azureedge.net/clip/models/{sha256}/{file}.pt",
        sha256=sha256,
        activation="quick_gelu",
        license="mit",
        imagenet=imagenet,
        sources={
            "address, sha256, text, pixels": f"{_OPENAI} clip/clip.py",
            "geometry": f"{_OPEN_CLIP}/model_configs",
            "activation": f"{_OPENAI} clip/model.py",
            "license": f"{_OPENAI} LICENSE",
            "imagenet": _RESULTS,
        },
    )


def _open_clip(
    name: str, repository: str, imagenet: float, publisher: dict[str, Any], **facts: Any
) -> OfficialCheckpoint:
    model = name.partition(":")[0]
    activation = "quick_gelu" if model.endswith("-quickgelu") else "gelu"
    shared = {"format": "open_clip", "activation": activation, "imagenet": imagenet, **publisher}
    return _clip(name, model.removesuffix("-quickgelu"), address=HUB + repository, **{**shared, **facts})


def _big_vision(
    name: str,
    variant: str,
    image_size: int | None,
    file: str,
    imagenet: float | None,
    publisher: dict[str, Any],
    **facts: Any,
) -> OfficialCheckpoint:
    tower, patch = variant.split("/")
    shared = {
        "format": "big_vision",
        "text_length": 64,
        "activation": "gelu_pytorch_tanh",
        "pixels": SIGLIP_PIXELS,
        "license": "apache-2.0",
        "imagenet": imagenet,
        **publisher,
    }
    return OfficialCheckpoint(
        name=name,
        address=f"https://storage.googleapis.com/big_vision/{file}.npz",
        image=TOWERS[tower],
        patch=int(patch),
        image_size=image_size,
        text=TOWERS["So400m" if tower == "g-opt" else tower],
        embedding=TOWERS[tower].width,
        **{**shared, **facts},
    )


# fmt: off
_CHECKPOINTS = (
    # OpenAI's names; sha256, ImageNet
    _openai("RN50", "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762", 59.82),
    _openai("RN101", "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599", 62.28),
    _openai("RN50x4", "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd", 66.27),
    _openai("RN50x16", "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa", 70.72),
    _openai("RN50x64", "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c", 73.91),
    _openai("ViT-B/32", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", 63.32),
    _openai("ViT-B/16", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", 68.34),
    _openai("ViT-L/14", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", 75.54),
    _openai("ViT-L/14@336px", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02", 76.56),
    # The Hub's names, without google/; big_vision's variant, pixels per side, file, ImageNet
    _big_vision("siglip-base-patch16-224", "B/16", 224, "siglip/webli_en_b16_224_63724782", 76.04, _SIGLIP),
    _big_vision("siglip-base-patch16-256", "B/16", 256, "siglip/webli_en_b16_256_60500360", 76.53, _SIGLIP),
    _big_vision("siglip-base-patch16-384", "B/16", 384, "siglip/webli_en_b16_384_68578854", 78.49, _SIGLIP),
    _big_vision("siglip-base-patch16-512", "B/16", 512, "siglip/webli_en_b16_512_68580893", 79.14, _SIGLIP),
    _big_vision("siglip-large-patch16-256", "L/16", 256, "siglip/webli_en_l16_256_60552751", 80.45, _SIGLIP),
    _big_vision("siglip-large-patch16-384", "L/16", 384, "siglip/webli_en_l16_384_63634585", 82.07, _SIGLIP),
    _big_vision("siglip-so400m-patch14-224", "So400m/14", 224, "siglip/webli_en_so400m_224_57633886", 82.03, _SIGLIP,
                text_length=16),
    _big_vision("siglip-so400m-patch14-384", "So400m/14", 384, "siglip/webli_en_so400m_384_58765454", 83.08, _SIGLIP),
    _big_vision("siglip-base-patch16-256-multilingual", "B/16", 256, "siglip/webli_i18n_b16_256_66117334", 75.13,
                _SIGLIP, vocabulary=MC4),
    _big_vision("siglip-so400m-patch16-256-i18n", "So400m/16", 256, "siglip/webli_i18n_so400m_16_256_78061115", None,
                _SIGLIP, vocabulary=MC4),
    _big_vision("siglip2-base-patch32-256", "B/32", 256, "siglip2/siglip2_b32_256", 74.0, _SIGLIP2),
    _big_vision("siglip2-base-patch16-224", "B/16", 224, "siglip2/siglip2_b16_224", 78.2, _SIGLIP2),
    _big_vision("siglip2-base-patch16-256", "B/16", 256, "siglip2/siglip2_b16_256", 79.1, _SIGLIP2),
    _big_vision("siglip2-base-patch16-384", "B/16", 384, "siglip2/siglip2_b16_384", 80.6, _SIGLIP2),
    _big_vision("siglip2-base-patch16-512", "B/16", 512, "siglip2/siglip2_b16_512", 81.2, _SIGLIP2),
    _big_vision("siglip2-large-patch16-256", "L/16", 256, "siglip2/siglip2_l16_256", 82.5, _SIGLIP2),
    _big_vision("siglip2-large-patch16-384", "L/16", 384, "siglip2/siglip2_l16_384", 83.1, _SIGLIP2),
    _big_vision("siglip2-large-patch16-512", "L/16", 512, "siglip2/siglip2_l16_512", 83.5, _SIGLIP2),
    _big_vision("siglip2-so400m-patch14-224", "So400m/14", 224, "siglip2/siglip2_so400m14_224", 83.2, _SIGLIP2),
    _big_vision("siglip2-so400m-patch14-384", "So400m/14", 384, "siglip2/siglip2_so400m14_384", 84.1, _SIGLIP2),
    _big_vision("siglip2-so400m-patch16-256", "So400m/16", 256, "siglip2/siglip2_so400m16_256", 83.4, _SIGLIP2),
    _big_vision("siglip2-so400m-patch16-384", "So400m/16", 384, "siglip2/siglip2_so400m16_384", 84.1, _SIGLIP2),
    _big_vision("siglip2-so400m-patch16-512", "So400m/16", 512, "siglip2/siglip2_so400m16_512", 84.3, _SIGLIP2),
    _big_vision("siglip2-giant-opt-patch16-256", "g-opt/16", 256, "siglip2/siglip2_g-opt16_256", 84.5, _SIGLIP2),
    _big_vision("siglip2-giant-opt-patch16-384", "g-opt/16", 384, "siglip2/siglip2_g-opt16_384", 85.0, _SIGLIP2),
    _big_vision("siglip2-base-patch16-naflex", "B/16", None, "siglip2/siglip2_b16_naflex", 78.5, _NAFLEX),
    _big_vision("siglip2-so400m-patch16-naflex", "So400m/16", None, "siglip2/siglip2_so400m16_naflex", 83.5, _NAFLEX),
    # open_clip's names, model:tag; repository, ImageNet
    _open_clip("ViT-B-32:laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", 66.56, _LAION),
    _open_clip("ViT-B-16:laion2b_s34b_b88k", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K", 70.23, _LAION),
    _open_clip("ViT-L-14:laion2b_s32b_b82k", "laion/CLIP-ViT-L-14-laion2B-s32B-b82K", 75.25, _LAION,
               pixels=replace(CLIP_PIXELS, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))),
    _open_clip("ViT-H-14:laion2b_s32b_b79k", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", 77.96, _LAION),
    _open_clip("ViT-g-14:laion2b_s12b_b42k", "laion/CLIP-ViT-g-14-laion2B-s12B-b42K", 76.63, _LAION),
    _open_clip("ViT-g-14:laion2b_s34b_b88k", "laion/CLIP-ViT-g-14-laion2B-s34B-b88K", 78.47, _LAION),
    _open_clip("ViT-bigG-14:laion2b_s39b_b160k", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", 80.09, _LAION),
    _open_clip("ViT-B-32:datacomp_xl_s13b_b90k", "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K", 69.17, _LAION),
    _open_clip("ViT-B-32-256:datacomp_s34b_b86k", "laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K", 72.81, _LAION),
    _open_clip("ViT-B-16:datacomp_xl_s13b_b90k", "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K", 73.49, _LAION),
    _open_clip("ViT-L-14:datacomp_xl_s13b_b90k", "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K", 79.21, _LAION),
    # open_clip 3.3.0 says quick GELU, its own results and timm say exact GELU: the repository's configuration decides.
    _open_clip("ViT-B-16:dfn2b", "apple/DFN2B-CLIP-ViT-B-16", 76.24, _DFN, activation=None),
    _open_clip("ViT-L-14-quickgelu:dfn2b", "apple/DFN2B-CLIP-ViT-L-14", 81.41, _DFN),
    _open_clip("ViT-L-14:dfn2b_s39b", "apple/DFN2B-CLIP-ViT-L-14-39B", 82.19, _DFN),
    _open_clip("ViT-H-14-quickgelu:dfn5b", "apple/DFN5B-CLIP-ViT-H-14", 83.44, _DFN,
               pixels=replace(CLIP_PIXELS, resize_mode="squash")),
    _open_clip("ViT-H-14-378-quickgelu:dfn5b", "apple/DFN5B-CLIP-ViT-H-14-378", 84.37, _DFN,
               pixels=replace(CLIP_PIXELS, resize_mode="squash")),
    _open_clip("ViT-B-32-quickgelu:metaclip_400m", "timm/vit_base_patch32_clip_224.metaclip_400m", 65.58, _META),
    _open_clip("ViT-B-32-quickgelu:metaclip_fullcc", "timm/vit_base_patch32_clip_224.metaclip_2pt5b", 67.66, _META),
    _open_clip("ViT-B-16-quickgelu:metaclip_400m", "timm/vit_base_patch16_clip_224.metaclip_400m", 70.80, _META),
    _open_clip("ViT-B-16-quickgelu:metaclip_fullcc", "timm/vit_base_patch16_clip_224.metaclip_2pt5b", 72.12, _META),
    _open_clip("ViT-L-14-quickgelu:metaclip_400m", "timm/vit_large_patch14_clip_224.metaclip_400m", 76.20, _META),
    _open_clip("ViT-L-14-quickgelu:metaclip_fullcc", "timm/vit_large_patch14_clip_224.metaclip_2pt5b", 79.17, _META),
    _open_clip("ViT-H-14-quickgelu:metaclip_fullcc", "timm/vit_huge_patch14_clip_224.metaclip_2pt5b", 80.51, _META),
    _open_clip("ViT-bigG-14-quickgelu:metaclip_fullcc", "timm/vit_gigantic_patch14_clip_224.metaclip_2pt5b", 82.1,
               _META),
)
# fmt: on
CATALOGUE = {checkpoint.name: checkpoint for checkpoint in _CHECKPOINTS}


ALIASES = {
    # open_clip's names of OpenAI's: the same weights, which it computes with quick GELU too
    **{
        f"{entry.name.replace('/', '-').replace('@336px', '-336')}{quick}:openai": entry
        for entry in _CHECKPOINTS
        if entry.format == "openai"
        for quick in ("", "-quickgelu")
    },
    # open_clip's notation of repositories; those of timm, which transformers cannot load, go without it
    **{entry.address: entry for entry in _CHECKPOINTS if entry.address.startswith(HUB)},
    **{entry.address.removeprefix(HUB): entry for entry in _CHECKPOINTS if entry.address.startswith(f"{HUB}timm/")},
}


def nearest_names(name: str) -> list[str]:
    """Return the names of checkpoints, published and bundled, that are most like `name`; [] where none is like it."""
    names = {known.lower(): known for known in (*CATALOGUE, *ALIASES, *BUNDLED)}
    return [names[match] for match in difflib.get_close_matches(name.lower(), names, n=3)]


def official_checkpoint(name: str) -> OfficialCheckpoint:
    """Return the checkpoint of exactly this name. Raises ValueError with the names most like it."""
    if entry := CATALOGUE.get(name) or ALIASES.get(name):
        return entry
    close = nearest_names(name)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise ValueError(f"No official checkpoint is called {name!r}.{hint} `twinlens list` shows all {len(CATALOGUE)}.")
