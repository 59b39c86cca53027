"""Tables for a terminal and in Markdown, from a header and lines of text."""

from collections.abc import Sequence

from rich.table import Table

FAILED = " FAIL"  # the end of a cell whose output failed

Cells = Sequence[Sequence[str]]  # the header, then the lines


def terminal_table(name: str, passed: bool, cells: Cells) -> Table:
    """Return the table for a terminal, with the name of what was measured and the verdict above it."""
    verdict = "[green]pass[/green]" if passed else "[red]FAIL[/red]"
    table = Table(title=f"Parity of {name}: {verdict}", title_justify="left")
    header, *lines = cells
    for index, column in enumerate(header):
        table.add_column(
            column.replace(", ", "\n").replace(" / ", "\n/ "), justify="left" if index == 0 else "right", no_wrap=True
        )
    for line in lines:
        table.add_row(*(f"[red]{cell}[/red]" if cell.endswith(FAILED) else cell for cell in line))
    return table


def markdown_table(cells: Cells) -> str:
    """Return the table in Markdown, for the model card."""
    header, *lines = cells
    alignment = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, alignment, *lines))
