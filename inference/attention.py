"""The attention weights of SigLIP's pooling head, which show where it looks, as numbers and as a picture."""

import torch
from PIL import Image
from torch import Tensor

from ..configuration import FAMILIES
from ..modeling import DualEncoderModel
from ..processing import DualEncoderProcessor


@torch.no_grad()
def pooling_attention(model: DualEncoderModel, processor: DualEncoderProcessor, image: Image.Image) -> Tensor:
    """Return the weight of every patch of an image in its embedding: (rows, columns), the mean over the heads.

    Raises ValueError for a model without an attention pooling head, such as CLIP.
    """
    if model.config.vision_config.pooling != "attention":
        families = [f.title for f in FAMILIES.values() if f.config.sub_configs["vision_config"].pooling == "attention"]
        raise ValueError(
            f"Expected a model with an attention pooling head ({', '.join(families)}), got a {type(model).__name__}."
        )
    outputs = model.vision_model(**processor(images=image), output_pooling_attentions=True)
    weights = outputs.pooling_attentions[0].mean(dim=1)  # (1, 1, patches)
    grid_size = model.config.vision_config.grid_size
    return weights.view(grid_size, grid_size).cpu()


def draw_attention(image: Image.Image, weights: Tensor, *, enlargement: int = 1) -> Image.Image:
    """Return the image, and to the right of it the same image, bright where `weights` (rows, columns) are high."""
    levels = (255 * weights / weights.max()).round().to(torch.uint8)
    width, height = image.width * enlargement, image.height * enlargement
    enlarged = image.resize((width, height), Image.Resampling.LANCZOS)
    mask = Image.fromarray(levels.numpy()).resize((width, height), Image.Resampling.BICUBIC)
    picture = Image.new("RGB", (2 * width, height))
    picture.paste(enlarged, (0, 0))
    picture.paste(Image.composite(enlarged, Image.new("RGB", (width, height)), mask), (width, 0))
    return picture
