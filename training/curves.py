"""The curves of a run: loss and metrics over its updates."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


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
        marker = "." if name.startswith("eval") or len(points) == 1 else None  # a line of one point cannot be seen
        axis.plot(*zip(*points, strict=True), marker=marker, label=_label(name))
    axes[0].set(ylabel="loss")
    if shares:
        axes[1].set(ylabel="share of right answers", ylim=(0, 1.02))
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    axes[-1].set(xlabel="updates")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(file, dpi=150)


def _label(name: str) -> str:
    return {"loss": "training", "eval_loss": "evaluation"}.get(name, name.removeprefix("eval_").replace("_", " "))
