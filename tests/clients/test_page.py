"""The blocks of docs/clients.md that need a client library, from top to bottom."""

import contextlib
import io
import re
from pathlib import Path

import pytest
from helpers.client_table import PAGE
from rich.console import Console

from twinlens.cli.tour import run_tour


@pytest.mark.filterwarnings("ignore")
def test_blocks_of_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tour").mkdir()
    run_tour(tmp_path / "tour", Console(file=io.StringIO()))
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^<!-- client: ([\w-]+) -->\n```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 9
    names: dict[str, object] = {"__name__": "page"}
    for client, code in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, client, "exec"), names)
        assert printed.getvalue().splitlines() == re.findall(r"# prints: (.*)", code), client
