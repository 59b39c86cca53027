"""The model card (README.md) of a trained folder, and the curves in it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from ..configuration import title_of
from ..formats import code_span, escaped

_CARD = """\
---
{metadata}
---

# {family} trained with twinlens

{origin}

```python
from twinlens import DualEncoderModel, DualEncoderProcessor

model = DualEncoderModel.from_pretrained("FOLDER")
processor = DualEncoderProcessor.from_pretrained("FOLDER")
logits = model.logits(model.encode_image(**processor(images=images)), model.encode_text(**processor(text=texts)))
```

Plain transformers and sentence-transformers load the folder too.

## Training

{updates:,} updates of {batch:,} pairs in {processes} {process_word}, {minutes:.1f} minutes.

![loss and metrics over updates](training_curves.png)

{metrics}
Settings, where they are not the defaults:

{settings}

Every number is in `training.json`. Versions: {versions}.
"""


def training_card(report: Mapping[str, Any], model_type: str, changed: Mapping[str, Any]) -> str:
    """Return the card: metadata, origin, usage, curves, last metrics, the settings in `changed`, and versions."""
    plan = report["plan"]
    title = title_of(model_type)
    start = code_span(Path(plan["model"]).name)
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=[model_type, "vision", "twinlens"],
    )
    return _CARD.format(
        metadata=metadata.to_yaml(),
        family=f"{'An' if title[0] in 'AEIO' else 'A'} {title}",
        origin=f"From scratch, with the geometry of {start}." if plan["from_scratch"] else f"It started from {start}.",
        updates=report["updates"],
        batch=plan["batch_size"] * report["processes"],
        processes=report["processes"],
        process_word="process" if report["processes"] == 1 else "processes",
        minutes=report["seconds"] / 60,
        metrics=_metrics_table(report["metrics"]),
        settings="\n".join(f"- `{name}`: {escaped(value)}" for name, value in changed.items()),
        versions=", ".join(f"{name} {version}" for name, version in report["versions"].items()),
    )


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


def draw_curves(history: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw the loss over the updates, and below it the metrics of the evaluations. Needs matplotlib."""
    from matplotlib.figure import Figure

    curves: dict[str, list[tuple[int, float]]] = {}  # name -> updates and values
    for entry in history:
        for name, value in entry.items():
            if name in ("loss", "eval_loss") or name.endswith(("recall_at_1", "accuracy")):
                curves.setdefault(name, []).append((entry["step"], value))
    shares = [name for name in curves if "loss" not in name]
    figure = Figure(figsize=(7, 5.5 if shares else 3), layout="constrained")
    axes = figure.subplots(2 if shares else 1, sharex=True, squeeze=False)[:, 0]
    for name, points in curves.items():
        axis = axes[1 if name in shares else 0]
        axis.plot(*zip(*points, strict=True), marker="." if name.startswith("eval") else None, label=_label(name))
    axes[0].set(ylabel="loss")
    if shares:
        axes[1].set(ylabel="share of right answers", ylim=(0, 1.02))
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    axes[-1].set(xlabel="updates")
    figure.savefig(file, dpi=150)


def _label(name: str) -> str:
    return {"loss": "training", "eval_loss": "evaluation"}.get(name, name.removeprefix("eval_").replace("_", " "))
