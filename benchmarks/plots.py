"""Bars as SVG, for tables.py: panels of horizontal bars whose lengths compare with a line at 1."""

from html import escape
from typing import NamedTuple

WIDTH, MARGIN, GAP = 960, 20, 28  # pixels
BAR, STEP, TITLE = 14, 21, 30  # height of a bar, from bar to bar, and above the first bar of a panel
LABEL, VALUE = 182, 48  # widths left and right of the bars
STYLE = """
    text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
    text { font-size: 12px; fill: #24292f; }
    .page { fill: #ffffff; stroke: #d0d7de; }
    .title { font-size: 15px; font-weight: 600; }
    .panel { font-size: 13px; font-weight: 600; }
    .label { text-anchor: end; }
    .value { stroke: #ffffff; stroke-width: 3; paint-order: stroke; }
    .ours { fill: #1f6fb2; }
    .other { fill: #b4bfca; }
    .one { stroke: #57606a; stroke-dasharray: 3 3; }
""".strip("\n")


class Bar(NamedTuple):
    """A bar: its label, its length as a ratio, and whether it is twinlens'."""

    label: str
    value: float
    is_ours: bool


Panel = tuple[str, list[Bar]]


def draw(title: str, panels: list[Panel]) -> str:
    """Return an SVG of the panels, two beside each other. Its background is white, on light and on dark pages."""
    columns = min(2, len(panels))
    width = (WIDTH - 2 * MARGIN - (columns - 1) * GAP) / columns
    parts: list[str] = []
    top = MARGIN + 34.0
    for start in range(0, len(panels), columns):
        row = panels[start : start + columns]
        for column, panel in enumerate(row):
            parts += _panel(panel, MARGIN + column * (width + GAP), top, width)
        top += TITLE + STEP * max(len(bars) for _, bars in row) + 18
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top:.0f}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{STYLE}\n</style>",
            f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{top - 1:.0f}" rx="8"/>',
            f'<text class="title" x="{MARGIN}" y="{MARGIN + 14}">{escape(title)}: longer is faster</text>',
            *parts,
            "</svg>\n",
        ]
    )


def _panel(panel: Panel, left: float, top: float, width: float) -> list[str]:
    title, bars = panel
    start = left + LABEL
    scale = (width - LABEL - VALUE) / max(1.0, *(bar.value for bar in bars))
    bottom = top + TITLE + STEP * len(bars)
    one = start + scale
    parts = [
        f'<text class="panel" x="{left:.1f}" y="{top + 14:.1f}">{escape(title)}</text>',
        f'<line class="one" x1="{one:.1f}" y1="{top + TITLE - 5:.1f}" x2="{one:.1f}" y2="{bottom - 2:.1f}"/>',
    ]
    for number, bar in enumerate(bars):
        y = top + TITLE + number * STEP
        length = bar.value * scale
        parts += [
            f'<text class="label" x="{start - 8:.1f}" y="{y + 11:.1f}">{escape(bar.label)}</text>',
            f'<rect class="{"ours" if bar.is_ours else "other"}" x="{start:.1f}" y="{y:.1f}" '
            f'width="{length:.1f}" height="{BAR}" rx="2"/>',
            f'<text class="value" x="{start + length + 6:.1f}" y="{y + 11:.1f}">{bar.value:.2f}</text>',
        ]
    return parts
