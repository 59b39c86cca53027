"""The certificate as a picture: error by layer on a logarithmic axis, with the bar drawn in."""

from pathlib import Path
from typing import Any

COLORS = ("#3b6fb6", "#d1762b", "#6a9e4f", "#8b5fa8")
FLOOR = 1e-9  # a logarithmic axis has no zero: equal to the last bit is drawn here


def plot_certificate(certificate: dict[str, Any], path: str | Path) -> None:
    """Draw what `parity.json` holds to a PNG, SVG or PDF file; needs matplotlib.

    Raises ModuleNotFoundError without matplotlib, ValueError for another kind of file.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Plots need matplotlib: pip install 'twinlens[plots]'.", name=error.name) from error
    if Path(path).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"Expected the name of a .png, .svg or .pdf file, got {path}.")
    widths = {name: outputs for name in _PANELS if (outputs := len(_outputs(certificate, name)))}
    figure = Figure(figsize=(4 + 0.35 * sum(widths.values()), 4.6), layout="constrained")
    panels = figure.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=[2 + n for n in widths.values()])[
        0
    ]
    for name, axes in zip(widths, panels, strict=True):
        _draw(axes, certificate, name)
        axes.set_title(_PANELS[name])
    panels[0].set_ylabel("largest error (scaled as the rule says)")
    panels[0].text(-0.4, FLOOR * 1.3, "equal", fontsize="x-small", color="0.4")
    panels[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize="small")
    source = certificate["source"]["files"][0]
    figure.suptitle(f"Parity of {source['name']}: {certificate['verdict']}", x=0.01, ha="left")
    figure.text(0.01, -0.02, f"sha256 {source['sha256']}", fontsize="x-small", color="0.4", ha="left")
    figure.savefig(path, dpi=150, bbox_inches="tight")


_PANELS = {"image": "image tower", "text": "text tower", "logits_per_image": "logits"}


def _outputs(certificate: dict[str, Any], panel: str) -> list[str]:
    rows = certificate["comparisons"][0]["rows"]
    return [row["name"] for row in rows if row["name"].split(".")[0] == panel]


def _draw(axes: Any, certificate: dict[str, Any], panel: str) -> None:
    names = _outputs(certificate, panel)
    places = range(len(names))
    for comparison, color in zip(certificate["comparisons"], COLORS, strict=False):
        found = {row["name"]: row for row in comparison["rows"]}
        rows = [found.get(name) or {} for name in names]
        errors = [row.get("scaled_error") for row in rows]
        label = f"{comparison['subject']} / {comparison['reference']}{'' if comparison['judged'] else ' (not judged)'}"
        drawn = [max(error, FLOOR) if error is not None else float("nan") for error in errors]
        axes.plot(places, drawn, "o-" if comparison["judged"] else "o:", color=color, markersize=4, label=label)
        missed = [place for place, row in zip(places, rows, strict=True) if row.get("passed") is False]
        axes.plot(missed, [drawn[place] for place in missed], "x", color="crimson", markersize=10, label="_missed")
    bars = {row["name"]: row["bar"] for row in certificate["comparisons"][0]["rows"]}
    axes.step([-0.5, *(place + 0.5 for place in places)], [bars[names[0]], *(bars[name] for name in names)],
              color="crimson", linewidth=1.2, label="bar")  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(bottom=FLOOR / 2)
    axes.set_xticks(list(places), [_short(name) for name in names], rotation=90, fontsize="x-small")
    axes.grid(axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def _short(name: str) -> str:
    _, _, output = name.partition(".")
    return output.replace("hidden_states.", "layer ") or "logits"
