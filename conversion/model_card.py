"""The README.md of a converted folder."""

from typing import NamedTuple

from ..formats import Checkpoint
from ..processing import DualEncoderProcessor
from .certificate import RULE, Certificate


class _Origin(NamedTuple):
    title: str
    layout: str
    license: str  # of the official release
    elsewhere: str  # what of the official preprocessing transformers' classes cannot do


_ORIGINS = {
    "openai": _Origin(
        "CLIP", "OpenAI's", "mit", "converts to RGB before it resizes, lays transparency over white, rounds down"
    ),
    "big_vision": _Origin("SigLIP", "big_vision's", "apache-2.0", "always resizes with antialiasing"),
}

_CARD = """\
---
library_name: transformers
pipeline_tag: zero-shot-image-classification
license: {license}
tags:
- {family}
- vision
- twinlens
---

# {title} converted from `{file}`

Converted by twinlens from a checkpoint in {origin} layout. Who trained the weights, and whether anybody did, cannot be
read from such a file: the table below shows that the conversion changed nothing, not that the weights are good. The
licence above is that of the official release; check it if this file is another one.

{notes}## Use

```python
import twinlens
model = twinlens.DualEncoderModel.from_pretrained("path/to/this/folder")
processor = twinlens.DualEncoderProcessor.from_pretrained("path/to/this/folder")
{twinlens_use}
```

With plain transformers:

```python
{transformers_use}
```

## Preprocessing

{preprocessing}

## Parity

{parity}
"""

_USE = """\
logits = model.logits(model.encode_image(**processor(images=images)), model.encode_text(**processor(text=texts)))"""
_TRANSFORMERS_USE = """\
from transformers import pipeline
classify = pipeline("zero-shot-image-classification", model="path/to/this/folder")
classify("photo.jpg", candidate_labels=["a cat", "a dog"])"""

_IMAGES_ONLY_USE = """\
image_embeds = model.encode_image(**processor(images=images))"""
_IMAGES_ONLY_TRANSFORMERS_USE = """\
from transformers import AutoImageProcessor, AutoModel
image_processor = AutoImageProcessor.from_pretrained("path/to/this/folder")
model = AutoModel.from_pretrained("path/to/this/folder")
features = model.get_image_features(**image_processor(images=images, return_tensors="pt"))"""


def model_card(
    checkpoint: Checkpoint,
    processor: DualEncoderProcessor,
    certificate: Certificate | None,
    notes: tuple[str, ...],
) -> str:
    """YAML metadata, provenance as far as it is known, usage, and the measured parity table."""
    origin = _ORIGINS[checkpoint.format]
    has_tokenizer = processor.tokenizer is not None
    return _CARD.format(
        license=origin.license,
        family=checkpoint.config.model_type,
        title=origin.title,
        file=checkpoint.path.name,
        origin=origin.layout,
        notes="".join(f"**{note}**\n\n" for note in notes),
        twinlens_use=_USE if has_tokenizer else _IMAGES_ONLY_USE,
        transformers_use=_TRANSFORMERS_USE if has_tokenizer else _IMAGES_ONLY_TRANSFORMERS_USE,
        preprocessing=_preprocessing(processor, origin),
        parity=_parity(certificate) if certificate else "Not measured: this folder was converted with --no-verify.",
    )


def _preprocessing(processor: DualEncoderProcessor, origin: _Origin) -> str:
    images, contract = processor.image_processor, processor.contract()
    if images.resize_engine != "official" and not getattr(images, "openai_order", False):
        return f"As in the Hub's folders of this family, in twinlens and in transformers alike.\n\n{contract}"
    return (
        f"In twinlens, as in the official code:\n\n{contract}\n\nPlain transformers cannot do all of this: "
        f"it {origin.elsewhere}. `--preprocessing hub` converts to what it can."
    )


def _parity(certificate: Certificate) -> str:
    source, inputs = certificate.source["files"][0], certificate.inputs
    versions = ", ".join(f"{name} {version}" for name, version in certificate.versions.items())
    return (
        f"Largest errors over {inputs['images']} images and {inputs['texts']} texts (seed {inputs['seed']}), the worst "
        f"layer of each tower, against a float64 forward written from the official names and formulas, and against "
        f"transformers' own class on this folder. Every layer is in `parity.json`.\n\n{certificate.markdown()}\n\n"
        f"Rule: {RULE}\n\nSource: `{source['name']}`, {source['bytes']} bytes, sha256 `{source['sha256']}`. {versions}."
    )
