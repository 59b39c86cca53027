"""The README.md of a converted folder."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from huggingface_hub import ModelCardData

from ..catalogue import OfficialCheckpoint
from ..catalogue.official_checkpoint import HUB
from ..configuration import FAMILIES, carries_code, family_of, is_single_tower
from ..formats import Checkpoint, code_span
from ..parity.certificate import RULE, Certificate
from ..processing import DualEncoderProcessor
from ..processing.sentence_transformers import OLDEST_VERSION

_FORMAT_NAMES = {
    "openai": "OpenAI's",
    "big_vision": "big_vision's",
    "open_clip": "open_clip's",
    "timm": "timm's",
    "transformers": "transformers'",
}
# The licences of official releases, for formats that one publisher writes; in other formats any licence occurs.
_LICENSES = {"openai": "mit", "big_vision": "apache-2.0"}
# By family of the catalogue, whose SigLIP 2 may be NaFlex or of a fixed size, which a file does not tell from a SigLIP.
_TITLES = {**{name: family.title for name, family in FAMILIES.items()}, "siglip2": "SigLIP 2"}
_HUB_REPOSITORIES = {  # repositories with the same weights; those of SigLIP have the names of the catalogue
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}

_CARD = """\
---
{metadata}
---

# {title} converted from {name}

{provenance}

{notes}## Use

`FOLDER` is the path of this folder, or the name of its repository on the Hub.

```python
{twinlens_use}
```

With plain transformers{code}:

```python
{transformers_use}
```

{other_clients}

## Preprocessing

{preprocessing}

## Parity

{parity}
"""

_SOURCE = '"FOLDER"'  # in a call that loads


class _Use(NamedTuple):
    """The Hub's name of a task, and a snippet that does it with each library."""

    task: str
    twinlens: str
    transformers: str


_CLASSIFY = _Use(
    "zero-shot-image-classification",
    """\
from twinlens import DualEncoderModel, DualEncoderProcessor

model = DualEncoderModel.from_pretrained("FOLDER")
processor = DualEncoderProcessor.from_pretrained("FOLDER")
logits = model.logits(model.encode_image(**processor(images=images)), model.encode_text(**processor(text=texts)))""",
    """\
from transformers import pipeline

classify = pipeline("zero-shot-image-classification", model="FOLDER")
answers = classify(images, candidate_labels=texts, hypothesis_template="{}")""",
)
# transformers' pipeline pads every text of a SigLIP to this length, whatever length the model reads.
_PIPELINE_LENGTH = 64
_CLASSIFY_AT_ANOTHER_LENGTH = _CLASSIFY._replace(
    transformers="""\
from transformers import AutoModel, AutoProcessor

model, processor = AutoModel.from_pretrained("FOLDER"), AutoProcessor.from_pretrained("FOLDER")
inputs = processor(images=images, text=texts, padding="max_length", truncation=True, return_tensors="pt")
logits = model(**inputs).logits_per_image""",
)
_EMBED = _Use(
    "image-feature-extraction",
    """\
from twinlens import DualEncoderModel, DualEncoderProcessor

model = DualEncoderModel.from_pretrained("FOLDER")
processor = DualEncoderProcessor.from_pretrained("FOLDER")
image_embeds = model.encode_image(**processor(images=images))""",
    """\
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("FOLDER")
image_processor = AutoImageProcessor.from_pretrained("FOLDER")
features = model.get_image_features(**image_processor(images=images, return_tensors="pt")).pooler_output""",
)
_EMBED_BY_A_TOWER = _Use(
    "image-feature-extraction",
    """\
from twinlens import DualEncoderProcessor, {vision_model}

model = {vision_model}.from_pretrained("FOLDER")
processor = DualEncoderProcessor.from_pretrained("FOLDER")
features = model(**processor(images=images)).pooler_output""",
    """\
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("FOLDER")
image_processor = AutoImageProcessor.from_pretrained("FOLDER")
features = model(**image_processor(images=images, return_tensors="pt")).pooler_output""",
)


def model_card(
    checkpoint: Checkpoint,
    processor: DualEncoderProcessor,
    certificate: Certificate | None,
    notes: tuple[str, ...],
    entry: OfficialCheckpoint | None = None,
) -> str:
    """Return YAML metadata, provenance as far as it is known, usage, preprocessing, and the measured parity table.

    `entry` is the catalogue's, where the checkpoint is known to be a published one.
    """
    family = family_of(checkpoint.config)
    is_tower = is_single_tower(checkpoint.config)
    use = _use(processor, is_tower)
    code, source = "", _SOURCE
    if carries_code(checkpoint.config.model_type):
        code = ", which has no class for this model and, with `trust_remote_code=True`, runs the code in this folder"
        source += ", trust_remote_code=True"
    family_name = entry.family if entry else family.model_type
    license = entry.license if entry else _LICENSES.get(checkpoint.format, "unknown")
    provenance = _published_source(entry, certificate) if entry else _unknown_source(checkpoint, license, certificate)
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag=use.task,
        license=license,
        tags=[family_name, "vision", "twinlens"],
        base_model=_base_model(entry) if entry else None,
    )
    return _CARD.format(
        metadata=metadata.to_yaml(),
        title=(_TITLES[entry.family] if entry else family.title) + ("'s image tower" if is_tower else ""),
        name=code_span(entry.name if entry else checkpoint.path.name),
        provenance=provenance,
        notes="".join(f"**{note}**\n\n" for note in notes),
        twinlens_use=use.twinlens.format(vision_model=family.vision_model),
        code=code,
        transformers_use=use.transformers.replace(_SOURCE, source),
        other_clients=_other_clients(processor, use).replace(_SOURCE, source),
        preprocessing=_preprocessing(processor),
        parity=_parity(certificate) if certificate else "Not measured: this folder was converted with --no-verify.",
    )


def _use(processor: DualEncoderProcessor, is_tower: bool) -> _Use:
    """Return the snippets that work for every model like this one."""
    tokenizer = processor.tokenizer
    if tokenizer is None:
        return _EMBED_BY_A_TOWER if is_tower else _EMBED
    if tokenizer.fixed_length and tokenizer.model_max_length != _PIPELINE_LENGTH:
        return _CLASSIFY_AT_ANOTHER_LENGTH
    return _CLASSIFY


def _other_clients(processor: DualEncoderProcessor, use: _Use) -> str:
    sentences = [
        f'sentence-transformers, from version {OLDEST_VERSION}, reads the folder too: `SentenceTransformer("FOLDER")`.'
    ]
    if use is _CLASSIFY_AT_ANOTHER_LENGTH:
        sentences.append(
            f'`pipeline("{use.task}")` of plain transformers does not: it pads texts to {_PIPELINE_LENGTH} tokens, '
            f"and this model reads {processor.tokenizer.model_max_length}."
        )
    return "\n".join(sentences)


def _base_model(entry: OfficialCheckpoint) -> str | None:
    """Return the repository of the Hub with the same weights, None if there is none."""
    if entry.address.startswith(HUB):
        return entry.address.removeprefix(HUB)
    return f"google/{entry.name}" if entry.format == "big_vision" else _HUB_REPOSITORIES.get(entry.name)


def _published_source(entry: OfficialCheckpoint, certificate: Certificate | None) -> str:
    address = entry.address.replace(HUB, "https://huggingface.co/")
    sentences = [f"Converted by twinlens from the official checkpoint at <{address}>."]
    if certificate:
        sentences.append("The table below shows that the conversion changed nothing.")
    sentences.append(f"That its licence is `{entry.license}` is known from {entry.source_of('license')}.")
    if entry.imagenet is not None:
        sentences.append(
            f"Published zero-shot accuracy on ImageNet-1k: {entry.imagenet}% ({entry.source_of('imagenet')})."
        )
    return "\n".join(sentences)


def _unknown_source(checkpoint: Checkpoint, license: str, certificate: Certificate | None) -> str:
    sentences = [
        f"Converted by twinlens from a checkpoint in {_FORMAT_NAMES[checkpoint.format]} layout.",
        "Who trained the weights, and whether anybody did, cannot be read from such a file.",
    ]
    if certificate:
        sentences.append("The table below shows that the conversion changed nothing, not that the weights are good.")
    if license == "unknown":
        sentences.append("Nor can their licence, so none is stated: ask whoever published them.")
    else:
        sentences.append("The licence above is that of the official release; check it if this file is another one.")
    return "\n".join(sentences)


def _preprocessing(processor: DualEncoderProcessor) -> str:
    images, description = processor.image_processor, processor.describe()
    fill = getattr(images, "fill_color", None)
    if getattr(images, "openai_order", False):
        before = "" if getattr(images, "rgb_first", False) else "converts to RGB before it resizes, "
        elsewhere = f"{before}lays transparency over white, rounds the place of the crop down"
        elsewhere += ", fills up with 0" if fill else ""
    elif images.resize_engine == "official":
        by_values = images.resize_engines["official"].takes_values
        elsewhere = "rounds to levels of 0..255 as it resizes" if by_values else "always resizes with antialiasing"
    else:
        alike = (
            f"but plain transformers fills up with 0, not {fill}" if fill else "in twinlens and in transformers alike"
        )
        return f"As in the Hub's folders of this family, {alike}.\n\n{description}"
    if (getattr(processor.tokenizer, "text_cleanup", None) or "").startswith("open_clip"):
        elsewhere += "; its texts miss the repairs of ftfy and HTML entities"
    return (
        f"In twinlens, as in the official code:\n\n{description}\n\nPlain transformers cannot do all of this: "
        f"it {elsewhere}. `--preprocessing hub` converts to the pixels that it can make."
    )


def _parity(certificate: Certificate) -> str:
    inputs = certificate.inputs
    versions = ", ".join(f"{name} {version}" for name, version in certificate.versions.items())
    return (
        f"Largest errors over {inputs['images']} images and {inputs['texts']} texts (seed {inputs['seed']}), the worst "
        "layer of each tower; a column says what was compared with what. `float64` is a forward pass written from the "
        "official names and formulas, `transformers` its own class on this folder. Every layer is in `parity.json`.\n\n"
        f"{certificate.markdown()}\n\n{' '.join(certificate.sentences())}\n\nRule: {RULE}\n\n"
        f"Source:\n\n{_file_list(certificate.source['files'])}\n\n{_measured_files(certificate)}"
        f"Versions: {versions}."
    )


def _measured_files(certificate: Certificate) -> str:
    """Return the files of the folder that the table is about, and the command that compares them."""
    if not certificate.files:
        return ""
    return (
        "All of this holds for these bytes and no others; `twinlens verify FOLDER --quick` compares them:"
        f"\n\n{_file_list(certificate.files)}\n\n"
    )


def _file_list(files: Iterable[Mapping[str, Any]]) -> str:
    return "\n".join(
        f"- {code_span(file['name'])}, {file['bytes']:,} bytes, sha256 `{file['sha256']}`" for file in files
    )
