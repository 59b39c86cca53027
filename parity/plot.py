"""A certificate as a picture: the error of every layer on a logarithmic axis, with the tolerance drawn in."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..formats.atomic import complete_or_absent

SUFFIXES = (".png", ".svg", ".pdf")
_PANELS = {"image": "image tower", "text": "text tower", "logits_per_image": "logits"}  # by how names of outputs begin
_COLORS = ("#3b6fb6", "#d1762b", "#6a9e4f", "#8b5fa8", "#7f7f7f")
_FAILURE_COLOR = "crimson"
_EXPONENT_OF_EQUAL = -9  # a logarithmic axis has no zero: equal to the last bit is drawn at 1e-9


def plot_certificate(certificate: dict[str, Any], path: str | Path) -> None:
    """Draw what `parity.json` holds to a PNG, SVG or PDF file; needs matplotlib.

    Raises what `check_plot` does.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    comparisons = certificate["comparisons"]
    names = [output["name"] for output in comparisons[0]["outputs"]]  # the first comparison has every output
    panels = {panel: [name for name in names if name.split(".")[0] == panel] for panel in _PANELS}
    panels = {panel: outputs for panel, outputs in panels.items() if outputs}
    exponents = range(_EXPONENT_OF_EQUAL, _highest_exponent(comparisons) + 1)

    widths = [2 + len(outputs) for outputs in panels.values()]
    figure = Figure(figsize=(3 + 0.35 * sum(widths), 4.6), layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=widths)[0]
    for axes, (panel, outputs) in zip(all_axes, panels.items(), strict=True):
        axes.set_title(_PANELS[panel])
        axes.set_yscale("log")
        axes.set_ylim(10.0 ** exponents[0] / 2, 10.0 ** exponents[-1] * 2)
        axes.set_yticks([10.0**exponent for exponent in exponents], _tick_labels(exponents), minor=False)
        axes.minorticks_off()
        _draw_errors(axes, certificate, outputs)
    all_axes[0].set_ylabel("largest error")
    all_axes[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize="small")
    source = certificate["source"]["files"][0]
    figure.suptitle(f"Parity of {source['name']}: {certificate['verdict']}", x=0.01, ha="left")
    figure.text(0.01, -0.02, f"sha256 {source['sha256']}", fontsize="x-small", color="0.4", ha="left")
    with complete_or_absent(Path(path), overwrite=True) as (partial,):
        figure.savefig(partial, format=Path(path).suffix[1:].lower(), dpi=150, bbox_inches="tight")


def check_plot(path: str | Path) -> None:
    """Check that a plot can be drawn to this file, before what is drawn is measured.

    Raises ModuleNotFoundError without matplotlib, ValueError for another kind of file, and OSError for a folder that is
    not there or a file that is a folder.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Plots need matplotlib: pip install '.[plots]' in the checkout of twinlens.", name=error.name
        ) from error
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"Expected the name of a .png, .svg or .pdf file, got {path}.")
    if path.is_dir():
        raise IsADirectoryError(f"Expected the name of a plot to write, got the folder {path}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The plot {path} cannot be written: there is no folder {path.parent}. Make it first.")


def _highest_exponent(comparisons: Sequence[dict[str, Any]]) -> int:
    """Return the power of ten above every error, at least that above the tolerances."""
    errors = [output["scaled_error"] or 0.0 for comparison in comparisons for output in comparison["outputs"]]
    return math.ceil(math.log10(max(1e-3, *errors)))


def _tick_labels(exponents: Sequence[int]) -> list[str]:
    return ["equal,\nbit for bit", *(f"$10^{{{exponent}}}$" for exponent in exponents[1:])]


def _draw_errors(axes: Any, certificate: dict[str, Any], names: Sequence[str]) -> None:
    """Draw a line for each comparison, crosses where an output failed, and the tolerances of these outputs."""
    lowest, highest = axes.get_yticks()[[0, -1]]
    positions = range(len(names))
    failures: list[tuple[int, float]] = []
    for comparison, color in zip(certificate["comparisons"], _COLORS, strict=False):
        checked, outputs = comparison["checked"], {output["name"]: output for output in comparison["outputs"]}
        label = f"{comparison['subject']} / {comparison['reference']}{'' if checked else ' (not checked)'}"
        errors = []
        for position, name in enumerate(names):
            error = outputs[name]["scaled_error"] if name in outputs else math.nan  # official code: no hidden states
            if error is None:  # NaN, infinity, missing or of another shape
                error = highest
            errors.append(max(error, lowest))
            if name in outputs and outputs[name].get("passed") is False:
                failures.append((position, errors[-1]))
        axes.plot(positions, errors, "o-" if checked else "o:", color=color, markersize=4, label=label)
    tolerances = [output["tolerance"] for output in certificate["comparisons"][0]["outputs"] if output["name"] in names]
    edges = [position - 0.5 for position in range(len(names) + 1)]
    axes.stairs(tolerances, edges, baseline=None, color=_FAILURE_COLOR, linewidth=1.2, label="tolerance")
    if certificate["verdict"] == "fail":  # also without failures among these outputs: one panel has the legend of all
        x, y = [position for position, _ in failures], [error for _, error in failures]
        axes.plot(x, y, "x", color=_FAILURE_COLOR, markersize=9, label="failed")
    axes.axhspan(axes.get_ylim()[0], 3 * lowest, color="0.95", zorder=0)  # equality is no place on the axis above it
    axes.set_xticks(positions, [_tick_label(name) for name in names], rotation=90, fontsize="x-small")
    axes.set_xlim(edges[0] - 0.5, edges[-1] + 0.5)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _tick_label(name: str) -> str:
    _, _, output = name.partition(".")
    return output.replace("hidden_states.", "layer ") or "logits"
