"""From images and texts to what the models take: image processors, tokenizers, and the processors that join them."""

from ..configuration import check_versions  # first: what is installed may be too old for all else
from .clip_tokenizer import CLIPTokenizer
from .image_processors import (
    CLIPImageProcessor,
    DualEncoderImageProcessor,
    Siglip2ImageProcessor,
    SiglipImageProcessor,
)
from .processor import CLIPProcessor, DualEncoderProcessor, Siglip2Processor, SiglipProcessor
from .processor_loading import Preprocessing, build_processor
from .siglip_tokenizer import SiglipTokenizer
from .siglip_vocabulary import TEXT_CLEANUPS
from .tokenization import DualEncoderTokenizer, VocabularyNotFoundError

# Names of transformers for the same classes.
CLIPImageProcessorPil = CLIPImageProcessor
SiglipImageProcessorPil = SiglipImageProcessor
Siglip2ImageProcessorPil = Siglip2ImageProcessor
Siglip2Tokenizer = SiglipTokenizer

__all__ = [
    "TEXT_CLEANUPS",
    "CLIPImageProcessor",
    "CLIPImageProcessorPil",
    "CLIPProcessor",
    "CLIPTokenizer",
    "DualEncoderImageProcessor",
    "DualEncoderProcessor",
    "DualEncoderTokenizer",
    "Preprocessing",
    "Siglip2ImageProcessor",
    "Siglip2ImageProcessorPil",
    "Siglip2Processor",
    "Siglip2Tokenizer",
    "SiglipImageProcessor",
    "SiglipImageProcessorPil",
    "SiglipProcessor",
    "SiglipTokenizer",
    "VocabularyNotFoundError",
    "build_processor",
]
