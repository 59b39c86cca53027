"""The sizes of the published models, under big_vision's and open_clip's names."""

from typing import NamedTuple

from .official_checkpoint import ResNet, Tower

# big_vision models/vit.py, `decode_variant`, where bigG is G; open_clip's head widths and ratios amount to the same
TOWERS = {
    "B": Tower(768, 12, 12, 3072),
    "L": Tower(1024, 24, 16, 4096),
    "So400m": Tower(1152, 27, 16, 4304),
    "H": Tower(1280, 32, 16, 5120),
    "g": Tower(1408, 40, 16, 6144),
    "g-opt": Tower(1536, 40, 16, 6144),
    "bigG": Tower(1664, 48, 16, 8192),
}


class ClipArchitecture(NamedTuple):
    """A CLIP of open_clip's `model_configs`; the fields are those of `OfficialCheckpoint`."""

    image: Tower | ResNet
    patch: int
    image_size: int
    text: Tower
    embedding: int


def _text(width: int, layers: int = 12) -> Tower:
    return Tower(width, layers, heads=width // 64, mlp=4 * width)


CLIP_ARCHITECTURES = {  # by open_clip's names
    "RN50": ClipArchitecture(ResNet(64, (3, 4, 6, 3)), 32, 224, _text(512), 1024),
    "RN101": ClipArchitecture(ResNet(64, (3, 4, 23, 3)), 32, 224, _text(512), 512),
    "RN50x4": ClipArchitecture(ResNet(80, (4, 6, 10, 6)), 32, 288, _text(640), 640),
    "RN50x16": ClipArchitecture(ResNet(96, (6, 8, 18, 8)), 32, 384, _text(768), 768),
    "RN50x64": ClipArchitecture(ResNet(128, (3, 15, 36, 10)), 32, 448, _text(1024), 1024),
    "ViT-B-32": ClipArchitecture(TOWERS["B"], 32, 224, _text(512), 512),
    "ViT-B-32-256": ClipArchitecture(TOWERS["B"], 32, 256, _text(512), 512),
    "ViT-B-16": ClipArchitecture(TOWERS["B"], 16, 224, _text(512), 512),
    "ViT-L-14": ClipArchitecture(TOWERS["L"], 14, 224, _text(768), 768),
    "ViT-L-14-336": ClipArchitecture(TOWERS["L"], 14, 336, _text(768), 768),
    "ViT-H-14": ClipArchitecture(TOWERS["H"], 14, 224, _text(1024, 24), 1024),
    "ViT-H-14-378": ClipArchitecture(TOWERS["H"], 14, 378, _text(1024, 24), 1024),
    "ViT-g-14": ClipArchitecture(TOWERS["g"], 14, 224, _text(1024, 24), 1024),
    "ViT-bigG-14": ClipArchitecture(TOWERS["bigG"], 14, 224, _text(1280, 32), 1280),
}
