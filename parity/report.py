"""A certificate as a table: one line for each kind of output (its worst layer), one column for each comparison."""

from rich.table import Table

from .certificate import Certificate


def terminal_table(certificate: Certificate) -> Table:
    """Return the table for a terminal, with the verdict above it."""
    verdict = "[green]pass[/green]" if certificate.passed else "[red]FAIL[/red]"
    table = Table(title=f"Parity of {certificate.source['files'][0]['name']}: {verdict}", title_justify="left")
    header, *lines = _cells(certificate)
    for index, name in enumerate(header):
        table.add_column(
            name.replace(", ", "\n").replace(" / ", "\n/ "), justify="left" if index == 0 else "right", no_wrap=True
        )
    for line in lines:
        table.add_row(*(f"[red]{cell}[/red]" if cell.endswith("FAIL") else cell for cell in line))
    return table


def markdown_table(certificate: Certificate) -> str:
    """Return the table in Markdown, for the model card."""
    header, *lines = _cells(certificate)
    alignment = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, alignment, *lines))


def _cells(certificate: Certificate) -> list[list[str]]:
    """Return the header and the lines of the table. The first comparison has every output."""
    comparisons = certificate.comparisons
    errors = [comparison.worst_layers for comparison in comparisons]
    cells = [["output", "tolerance", *(f"{comparison.subject} / {comparison.reference}" for comparison in comparisons)]]
    for name, first in errors[0].items():
        line = [name, f"{first.tolerance:.0e}"]
        for comparison, outputs in zip(comparisons, errors, strict=True):
            if name not in outputs:
                line.append("-")  # official code returns no hidden states
                continue
            failed = comparison.checked and not outputs[name].passed
            line.append(f"{outputs[name].scaled_error:.1e}{' FAIL' if failed else ''}")
        cells.append(line)
    return cells
