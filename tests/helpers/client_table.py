"""The table of clients in docs/clients.md, from what the tests in tests/clients have recorded.

pytest tests/clients --record   # writes results.json, and the table
"""

import json
from pathlib import Path
from typing import TypedDict

CLIENTS = Path(__file__).parents[1] / "clients"
RESULTS = CLIENTS / "results.json"
PAGE = CLIENTS.parents[1] / "docs" / "clients.md"
_START, _END = "<!-- table of clients: written by tests/clients -->\n", "<!-- end of the table -->\n"


class Row(TypedDict):
    """What one test has run."""

    library: str
    version: str
    what: str
    native: str  # what happens with transformers' class
    difference: float  # the largest, to transformers' class, or to what it would be if it worked


def table() -> str:
    """Return the rows of `results.json` as Markdown. Differences are rounded up to a power of ten."""
    rows: list[Row] = json.loads(RESULTS.read_text(encoding="utf-8"))
    lines = [
        "| library | version | what is run | with transformers' class | largest difference |",
        "|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["library"].lower(), row["what"])):
        bound = (
            "0" if row["difference"] == 0 else next(f"1e-{n}" for n in range(9, -1, -1) if row["difference"] <= 10**-n)
        )
        lines.append(f"| {row['library']} | {row['version']} | {row['what']} | {row['native']} | {bound} |")
    return "\n".join(lines) + "\n"


def write() -> None:
    """Put the table into the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(_START)
    _, _, after = rest.partition(_END)
    PAGE.write_text(f"{before}{_START}\n{table()}\n{_END}{after}", encoding="utf-8")


def written() -> str:
    """Return the table that the page has."""
    return PAGE.read_text(encoding="utf-8").partition(_START)[2].partition(_END)[0].strip() + "\n"
