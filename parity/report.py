"""Tables for a terminal and in Markdown, from a header and lines of text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.markup import escape
from rich.table import Table

FAILED = " FAIL"  # the end of a cell whose output failed

Cells = Sequence[Sequence[str]]  # the header, then the lines


@dataclass(frozen=True)
class TerminalTable:
    """A table of errors that rich prints: its first two columns name an output and its tolerance.

    Where a terminal is too narrow for all of the others, they come in several tables below each other: no number is
    ever cut short.
    """

    title: str
    passed: bool
    cells: Cells

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        verdict = "[green]pass[/green]" if self.passed else "[red]FAIL[/red]"
        title: str | None = f"{escape(self.title)}: {verdict}"
        start, columns = 2, len(self.cells[0])
        while start < columns:
            end = start + 1
            while end < columns and self._width(start, end + 1) <= options.max_width:
                end += 1
            yield self._table(start, end, title)
            start, title = end, None

    def _width(self, start: int, end: int) -> int:
        """Return the characters that the first two columns need with those from `start` to `end`."""
        lines = [[*map(_in_lines, self.cells[0])], *self.cells[1:]]
        places = (0, 1, *range(start, end))
        widths = [max(cell_len(part) for line in lines for part in line[place].splitlines()) for place in places]
        return sum(widths) + 3 * len(places) + 1

    def _table(self, start: int, end: int, title: str | None) -> Table:
        table = Table(title=title, title_justify="left")
        header, *lines = ([*line[:2], *line[start:end]] for line in self.cells)
        for place, column in enumerate(header):
            table.add_column(_in_lines(column), justify="left" if place == 0 else "right", no_wrap=place > 0)
        for line in lines:
            table.add_row(*(f"[red]{cell}[/red]" if cell.endswith(FAILED) else cell for cell in line))
        return table


def _in_lines(column: str) -> str:
    """Return the name of a column in several lines: "twinlens, bfloat16 weights / float64" in three."""
    return column.replace(", ", "\n").replace(" / ", "\n/ ")


def markdown_table(cells: Cells) -> str:
    """Return the table in Markdown, for the model card."""
    header, *lines = cells
    alignment = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, alignment, *lines))
