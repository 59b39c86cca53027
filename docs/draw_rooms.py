"""Draw the rooms of the package and the imports between them, as they are in the source.

    python docs/draw_rooms.py

Writes docs/pictures/rooms.svg. Floors and imports come from tests/helpers/architecture.py, which reads them from the
source; captions come from the table in docs/architecture.md. An arrow that other arrows imply is left out.
"""

import re
import sys
import textwrap
from html import escape
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path.append(str(PROJECT / "tests"))

from helpers.architecture import FLOORS, import_graph  # noqa: E402

PAGE = PROJECT / "docs" / "architecture.md"
PICTURE = PROJECT / "docs" / "pictures" / "rooms.svg"

WIDTH, FLOOR_HEIGHT, MARGIN = 960, 112, 16  # pixels
BOX_WIDTH, BOX_HEIGHT = 264, 66
COLUMNS = {  # that no arrow passes behind a room: 0 is left, 1 the middle, 2 right
    **dict.fromkeys(["catalogue", "formats", "processing", "parity", "conversion", "deployment"], 0),
    **dict.fromkeys(["runtime", "integration", "index", "web", "cli"], 1),
    **dict.fromkeys(["configuration", "losses", "modeling", "inference", "evaluation", "training", "toy_world"], 2),
}
STYLE = """
    text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
    .room { fill: #ffffff; stroke: #34506e; stroke-width: 1.3; }
    .name { font-size: 15px; font-weight: 600; fill: #16324f; }
    .caption { font-size: 11.5px; fill: #4a5a6a; }
    .note { font-size: 12px; fill: #5b6b7b; }
    .arrow { fill: none; stroke: #6d87a3; stroke-width: 1.6; marker-end: url(#head); }
""".strip("\n")


def captions() -> dict[str, str]:
    """Return what each room holds, from the first table of the page."""
    rows = re.findall(r"^\| `(\w+)/` \| ([^|]+) \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {room: re.sub(r"[`*]", "", caption) for room, caption in rows}


def direct_imports(graph: dict[str, list[str]]) -> list[tuple[str, str]]:
    """Return the imports between rooms without those that a longer way implies."""

    def reachable(room: str) -> set[str]:
        return {room}.union(*(reachable(below) for below in graph[room] if below in graph))

    return [
        (room, below)
        for room, found in graph.items()
        for below in found
        if below in graph and not any(below in reachable(other) for other in found if other != below and other in graph)
    ]


def draw() -> str:
    """Return the picture as SVG."""
    graph, told = import_graph(), captions()
    floors = [kept for floor in FLOORS if (kept := [room for room in floor if room in graph])]
    if missing := set(graph) - set(COLUMNS) or set(graph) - set(told):
        raise ValueError(f"Expected a column here and a row in {PAGE.name} for every room; missing: {missing}.")
    height = FLOOR_HEIGHT * len(floors) + 2 * MARGIN + 24
    place = {
        room: (
            MARGIN + 16 + COLUMNS[room] * (WIDTH - 2 * MARGIN - 32 - BOX_WIDTH) / 2,
            MARGIN + (len(floors) - 1 - level) * FLOOR_HEIGHT + (FLOOR_HEIGHT - BOX_HEIGHT) / 2,
        )
        for level, floor in enumerate(floors)
        for room in floor
    }
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">',
        "<title>The rooms of twinlens and the imports between them</title>",
        f"<style>\n{STYLE}\n</style>",
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L10 5 L0 10 z" fill="#6d87a3"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" rx="12" fill="#ffffff"/>',
    ]
    for level in range(len(floors)):
        top = MARGIN + (len(floors) - 1 - level) * FLOOR_HEIGHT
        tint = "#f3f6fa" if level % 2 else "#e8eef5"
        parts.append(
            f'<rect x="{MARGIN}" y="{top}" width="{WIDTH - 2 * MARGIN}" height="{FLOOR_HEIGHT}" fill="{tint}"/>'
        )
    for room, below in direct_imports(graph):
        (x, y), (to_x, to_y) = place[room], place[below]
        # Arrows that leave or reach a room in different columns do so at different points of its edge.
        side = COLUMNS[below] - COLUMNS[room]
        start = (x + BOX_WIDTH / 2 + 50 * side, y + BOX_HEIGHT)
        end = (to_x + BOX_WIDTH / 2 - 50 * side, to_y)
        bend = 0.55 * (end[1] - start[1])
        parts.append(
            f'<path class="arrow" d="M{start[0]:.0f} {start[1]:.0f} C{start[0]:.0f} {start[1] + bend:.0f} '
            f'{end[0]:.0f} {end[1] - bend:.0f} {end[0]:.0f} {end[1]:.0f}"/>'
        )
    for room, (x, y) in place.items():
        lines = textwrap.wrap(told[room], 40)
        if len(lines) > 2:
            raise ValueError(f"Expected a caption of two lines for {room}, got {lines}.")
        parts.append(
            f'<rect class="room" x="{x:.0f}" y="{y:.0f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="7"/>'
            f'<text class="name" x="{x + 12:.0f}" y="{y + 22:.0f}">{room}</text>'
        )
        parts += [
            f'<text class="caption" x="{x + 12:.0f}" y="{y + 40 + 15 * row:.0f}">{escape(line)}</text>'
            for row, line in enumerate(lines)
        ]
    note = "An arrow means “imports from”. A room imports from the floors below its own, and from nothing else."
    parts.append(f'<text class="note" x="{MARGIN + 2}" y="{height - 14}">{note}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
