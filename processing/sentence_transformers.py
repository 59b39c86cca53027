"""The files by which sentence-transformers loads a folder."""

import json
from pathlib import Path

from ..configuration import DualEncoderConfig, TowerConfig, is_single_tower
from .processor import DualEncoderProcessor

# The first version that reads `modality_config`; older ones read the number, and tell their user to update.
OLDEST_VERSION = "5.4.0"
FILES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
# `Normalize` has no files: `encode_image` and `encode_text` return unit vectors too.
_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"},
]


def save_sentence_transformers_files(
    config: DualEncoderConfig | TowerConfig, processor: DualEncoderProcessor, folder: Path
) -> None:
    """Write three JSON files with which `SentenceTransformer(folder).encode` returns what our `encode_*` do.

    Without them sentence-transformers pads texts to the longest of a batch, which for SigLIP embeds other texts.
    """
    methods = {"image": "forward" if is_single_tower(config) else "get_image_features"}
    if processor.tokenizer is not None:
        methods["text"] = "get_text_features"
    transformer = {
        "modality_config": {
            name: {"method": method, "method_output_name": "pooler_output"} for name, method in methods.items()
        },
        "module_output_name": "sentence_embedding",
    }
    if processor.tokenizer is not None:
        padding = "max_length" if getattr(processor.tokenizer, "fixed_length", False) else "longest"
        transformer["processing_kwargs"] = {"text": {"padding": padding}}
    contents = (_MODULES, transformer, {"__version__": {"sentence_transformers": OLDEST_VERSION}})
    for name, content in zip(FILES, contents, strict=True):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
