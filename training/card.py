"""The model card (README.md) of a trained folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from ..configuration import DualEncoderConfig, title_of
from ..formats import code_span, escaped
from ..processing import DualEncoderProcessor
from ..processing.card_sections import describe_preprocessing, describe_usage
from .origin import Origin, origin_of
from .stages import Stage

_CARD = """\
---
{metadata}
---

# {family} trained with twinlens

{origin}

{license}

## Use

{usage}

## Preprocessing

{preprocessing}

## Training

{updates:,} updates of {batch:,} pairs in {processes} {process_word}, {seconds:,.0f} seconds.

{data}

![loss and metrics over updates](training_curves.png)

{metrics}
{stages}

Every number is in `training.json`, which is uploaded by `twinlens push --include training.json` alone.

Versions: {versions}.
"""


def training_card(
    report: Mapping[str, Any], stages: Sequence[Stage], config: DualEncoderConfig, processor: DualEncoderProcessor
) -> str:
    """Return the card of a run: metadata, origin, use, preprocessing, data, curves, last metrics, and what was done.

    `report` is the content of `training.json`.
    """
    plan = report["plan"]
    title = title_of(config.model_type)
    start = code_span(Path(plan["model"]).name)
    origin = Origin(None, None) if plan["from_scratch"] else origin_of(plan["model"])
    usage = describe_usage(config, processor)
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag=usage.task,
        license=origin.license or "unknown",
        base_model=origin.repository,
        tags=[config.model_type, "vision", "twinlens"],
    )
    return _CARD.format(
        metadata=metadata.to_yaml(),
        family=f"{'An' if title[0] in 'AEIO' else 'A'} {title}",
        origin=f"From scratch, with the geometry of {start}." if plan["from_scratch"] else f"It started from {start}.",
        license=_license(origin, from_scratch=plan["from_scratch"]),
        usage=usage.section,
        preprocessing=describe_preprocessing(processor),
        updates=report["updates"],
        batch=plan["batch_size"] * report["processes"],
        processes=report["processes"],
        process_word="process" if report["processes"] == 1 else "processes",
        seconds=report["seconds"],
        data=_data(report),
        metrics=_metrics_table(report["metrics"]),
        stages=_stages(stages),
        versions=", ".join(f"{name} {version}" for name, version in report["versions"].items()),
    )


def _license(origin: Origin, *, from_scratch: bool) -> str:
    if from_scratch:
        return "No licence is stated: whoever trained it chooses one, in the first lines of this file."
    if origin.license in (None, "unknown"):
        return "The licence of what it started from is not known, so none is stated: ask whoever published that."
    return f"Licence: that of what it started from, {code_span(origin.license)}; the data may bind it further."


def _data(report: Mapping[str, Any]) -> str:
    """Return how much data the run had, in a sentence or two."""
    plan, data = report["plan"], report["data"]
    trained = f"{data['pairs']:,} pairs" if data["pairs"] is not None else "a stream of pairs"
    seen = report["updates"] * plan["batch_size"] * report["processes"]
    sentences = [f"Trained on {trained} of {code_span(Path(plan['data']).name)}; {seen:,} were drawn."]
    if report["skipped"]:
        sentences.append(f"{report['skipped']:,} could not be read.")
    if plan["eval_data"]:
        measured = f"{data['eval_pairs']:,} pairs" if data["eval_pairs"] is not None else "the pairs"
        sentences.append(f"Measured on {measured} of {code_span(Path(plan['eval_data']).name)}.")
    if plan["zero_shot"]:
        sentences.append(
            f"Zero-shot accuracy is over {data['zero_shot_images']:,} images of {data['zero_shot_classes']:,} classes."
        )
    return " ".join(sentences)


def _metrics_table(metrics: Mapping[str, float]) -> str:
    rows = {
        name.removeprefix("eval_").replace("_", " "): value
        for name, value in metrics.items()
        if "recall" in name or "accuracy" in name
    }
    if not rows:
        return ""
    table = "\n".join(f"| {escaped(name)} | {value:.1%} |" for name, value in rows.items())
    return f"| measured at the end | |\n|---|---:|\n{table}\n\n"


def _stages(stages: Sequence[Stage]) -> str:
    """Return the settings of the run, and those with which it went on where they were others."""
    first, *later = stages
    parts = [f"Settings that were given, or that the defaults chose for this data:\n\n{_list(first.changed)}"]
    for earlier, stage in zip(stages, later, strict=False):
        changes = {
            name: f"{stage.changed.get(name, after)}, before: {earlier.changed.get(name, before)}"
            for name, (before, after) in stage.changes(earlier).items()
        }
        parts.append(f"From update {stage.first_update:,} on, for {stage.seconds:,.0f} seconds:\n\n{_list(changes)}")
    if again := sum(stage.starts for stage in stages) - len(stages):
        parts.append(f"Interrupted, and taken up again from a checkpoint: {again} {'time' if again == 1 else 'times'}.")
    return "\n\n".join(parts)


def _list(values: Mapping[str, Any]) -> str:
    return "\n".join(f"- `{name}`: {escaped(value)}" for name, value in values.items())
