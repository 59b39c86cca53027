"""The blocks of docs/clients.md that need a client library, from top to bottom."""

import contextlib
import io
import re
import shutil
from pathlib import Path

import pytest
from helpers.client_table import PAGE


@pytest.mark.filterwarnings("ignore")
def test_blocks_of_clients(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folders["siglip-shapes"], tmp_path / "tour" / "siglip-shapes")
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^<!-- client: ([\w-]+) -->\n```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    names: dict[str, object] = {"__name__": "page"}
    for client, code in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, client, "exec"), names)
        assert printed.getvalue().splitlines() == re.findall(r"# prints: (.*)", code), client
