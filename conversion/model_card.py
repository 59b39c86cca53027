"""The README.md of a converted folder."""

from collections.abc import Iterable, Mapping
from typing import Any

from huggingface_hub import ModelCardData

from ..catalogue import BUNDLED_LICENSE, OfficialCheckpoint, bundled_name, describe_training
from ..catalogue.official_checkpoint import HUB
from ..configuration import FAMILIES, family_of, is_single_tower
from ..formats import Checkpoint, code_span
from ..parity.certificate import RULE, Certificate
from ..processing import DualEncoderProcessor
from ..processing.card_sections import describe_preprocessing, describe_usage

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

_CARD = """\
---
{metadata}
---

# {title} converted from {name}

{provenance}

{notes}## Use

{usage}

## Preprocessing

{preprocessing}

## Parity

{parity}
"""


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
    usage = describe_usage(checkpoint.config, processor)
    family_name = entry.family if entry else family.model_type
    license, provenance = _license_and_provenance(checkpoint, certificate, entry)
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag=usage.task,
        license=license,
        tags=[family_name, "vision", "twinlens"],
        base_model=entry.hub_repository if entry else None,
    )
    return _CARD.format(
        metadata=metadata.to_yaml(),
        title=(_TITLES[entry.family] if entry else family.title)
        + ("'s image tower" if is_single_tower(checkpoint.config) else ""),
        name=code_span(entry.name if entry else checkpoint.path.name),
        provenance=provenance,
        notes="".join(f"**{note}**\n\n" for note in notes),
        usage=usage.section,
        preprocessing=describe_preprocessing(processor),
        parity=_parity(certificate) if certificate else "Not measured: this folder was converted with --no-verify.",
    )


def _license_and_provenance(
    checkpoint: Checkpoint, certificate: Certificate | None, entry: OfficialCheckpoint | None
) -> tuple[str, str]:
    if entry is not None:
        return entry.license, _published_source(entry, certificate)
    if (bundled := bundled_name(checkpoint.path)) is not None:
        proof = " The table below shows that the conversion changed nothing." if certificate else ""
        return BUNDLED_LICENSE, f"Converted by twinlens from {code_span(bundled)}.{proof} {describe_training(bundled)}"
    license = _LICENSES.get(checkpoint.format, "unknown")
    return license, _unknown_source(checkpoint, license, certificate)


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
