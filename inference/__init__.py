"""What people do with a model: embed many images and texts, and classify images by labels given in words."""

from .embedding import embed_images, embed_texts
from .zero_shot import classify_images

__all__ = ["classify_images", "embed_images", "embed_texts"]
