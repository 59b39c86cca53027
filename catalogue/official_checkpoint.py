"""The facts about a published checkpoint, and what follows from them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

HUB = "hf-hub:"  # open_clip's notation for a repository of the Hub
# How the vision transformers of a family pool, and the `model_type` of those for squares of one size, if another one.
_POOLING = {"clip": "class_token", "siglip": "attention", "siglip2": "attention"}
_MODEL_TYPES_AT_ONE_SIZE = {"siglip2": "siglip"}
_HUB_REPOSITORIES = {  # repositories with the same weights; those of SigLIP have the names of the catalogue
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}


@dataclass(frozen=True)
class Tower:
    """A transformer encoder."""

    width: int
    layers: int
    heads: int
    mlp: int

    @property
    def parameters(self) -> int:
        """Number of parameters of the layers alone, each with four projections, two linear maps and two norms."""
        return self.layers * (4 * self.width**2 + 2 * self.width * self.mlp + self.mlp + 9 * self.width)


@dataclass(frozen=True)
class ResNet:
    """OpenAI's ResNet with an antialiased stem and attention pooling (clip/model.py, `ModifiedResNet`)."""

    width: int  # channels of the stem; the last stage has 32 times as many
    blocks: tuple[int, ...]  # in each of the four stages

    def parameters(self, positions: int, embedding: int) -> int:
        """Number of parameters of the whole tower; the running statistics of batch norms are not parameters."""
        half, channels = self.width // 2, self.width
        count = 9 * (3 * half + half**2 + half * self.width) + 2 * (half + half + self.width)  # stem
        for stage, blocks in enumerate(self.blocks):
            width = self.width * 2**stage
            count += 4 * width * (channels + 2)  # the shortcut that changes the number of channels
            for _ in range(blocks):
                count += channels * width + 9 * width**2 + 4 * width**2 + 12 * width
                channels = 4 * width
        return count + positions * channels + 3 * channels * (channels + 1) + (channels + 1) * embedding


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary that a text tower was trained with."""

    name: str
    size: int  # embeddings
    pad: int
    address: str | None  # None: it ships with this package
    sha256: str | None
    source: str


@dataclass(frozen=True)
class Pixels:
    """Official preprocessing of images, in open_clip's terms."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"]
    resize_mode: Literal["shortest", "squash", "patches"]  # shorter side and centre crop; any aspect; NaFlex
    antialias: bool = True


@dataclass(frozen=True, kw_only=True)
class OfficialCheckpoint:
    """One published checkpoint."""

    name: str  # exactly as its publishers call it
    family: Literal["clip", "clip_resnet", "siglip", "siglip2"]
    format: Literal["openai", "big_vision", "open_clip"]
    address: str  # the URL of the file, or `hf-hub:owner/name`
    sha256: str | None = None  # None: none is published
    image: Tower | ResNet
    patch: int  # pixels per side that one position stands for
    image_size: int | None  # pixels per side; None: NaFlex, which takes any shape
    text: Tower
    embedding: int
    text_length: int
    vocabulary: Vocabulary
    activation: Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"] | None
    pixels: Pixels
    license: str  # the Hub's name
    imagenet: float | None  # zero-shot top-1 accuracy on ImageNet-1k, in percent
    sources: Mapping[str, str] = field(compare=False, repr=False)  # "address, geometry": where these are stated

    @property
    def model_type(self) -> str:
        """The `model_type` of a folder with this model: SigLIP's for a fixed-size SigLIP 2, which is built like one."""
        return self.family if self.image_size is None else _MODEL_TYPES_AT_ONE_SIZE.get(self.family, self.family)

    @property
    def hub_repository(self) -> str | None:
        """The repository of the Hub with the same weights, None if there is none."""
        if self.address.startswith(HUB):
            return self.address.removeprefix(HUB)
        return f"google/{self.name}" if self.format == "big_vision" else _HUB_REPOSITORIES.get(self.name)

    @property
    def grid(self) -> int:
        """Positions per side; pixels that fill no whole patch are dropped. NaFlex resizes its 16x16 to every image."""
        return 16 if self.image_size is None else self.image_size // self.patch

    @property
    def parameters(self) -> int:
        """Number of parameters of the model under transformers' names."""
        text = (self.vocabulary.size + self.text_length + 2) * self.text.width + self.text.parameters  # one norm
        if isinstance(self.image, ResNet):
            image = self.image.parameters(self.grid**2 + 1, self.embedding)
            return image + text + self.text.width * self.embedding + 1
        width = self.image.width
        image = (3 * self.patch**2 + self.grid**2) * width + self.image.parameters
        if _POOLING[self.family] == "class_token":  # its position too, two norms; two projections and the scale
            return image + 6 * width + text + (width + self.text.width) * self.embedding + 1
        pooling = Tower(width, 1, self.image.heads, self.image.mlp).parameters - width  # a probe, and one norm less
        return image + 3 * width + pooling + text + (self.text.width + 1) * self.embedding + 2

    def source_of(self, fact: str) -> str:
        """Return where a fact such as "license" is stated."""
        return next(source for facts, source in self.sources.items() if fact in facts.split(", "))

    @property
    def geometry(self) -> dict[str, Any]:
        """The facts that a file shows as well, None where not known; `twinlens.formats.source` compares the two."""
        return {
            "family": self.model_type,
            "image grid": self.grid,
            "patch": self.patch,
            **tower_geometry("image", self.image),
            **tower_geometry("text", self.text),
            "embedding": self.embedding,
            "text length": self.text_length,
            "vocabulary": self.vocabulary.size,
            "pad id": self.vocabulary.pad,
            "image activation": None if isinstance(self.image, ResNet) else self.activation,  # a ResNet's is ReLU
            "text activation": self.activation,
        }


def tower_geometry(name: str, tower: Tower | ResNet) -> dict[str, Any]:
    """Return {"image width": 768, ...} for the name "image"."""
    return {f"{name} {key}": value for key, value in asdict(tower).items()}
