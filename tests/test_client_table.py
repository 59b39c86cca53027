"""The table of clients in docs/clients.md is what the tests in tests/clients have recorded."""

import json
import re

from helpers.client_table import CLIENTS, RESULTS, table, written


def test_the_page_holds_what_was_recorded() -> None:
    assert written() == table()


def test_versions_are_those_that_are_installed_by_ci() -> None:
    files = (CLIENTS / "requirements.txt", CLIENTS.parents[1] / "constraints.txt")
    pinned = "".join(file.read_text(encoding="utf-8") for file in files)
    for row in json.loads(RESULTS.read_text(encoding="utf-8")):
        versions = re.findall(rf"^{re.escape(row['library'])}==([\d.]+)", pinned, flags=re.MULTILINE)
        assert row["version"] in versions, row["library"]
