"""The table of clients in docs/clients.md is what the tests in tests/clients have recorded."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

CLIENTS = Path(__file__).parent / "clients"


def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("table", CLIENTS / "table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_holds_what_was_recorded() -> None:
    assert table().written() == table().table()


def test_versions_are_those_that_are_installed_by_ci() -> None:
    pinned = "".join(
        (file).read_text() for file in (CLIENTS / "requirements.txt", CLIENTS.parents[1] / "constraints.txt")
    )
    for row in json.loads((CLIENTS / "results.json").read_text(encoding="utf-8")):
        versions = re.findall(rf"^{re.escape(row['library'])}==([\d.]+)", pinned, flags=re.MULTILINE)
        assert row["version"] in versions, row["library"]
