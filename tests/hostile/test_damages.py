"""Files with random damage: an answer, or an error of one line."""

from pathlib import Path

import pytest
from helpers.processes import finish, start

from .damages import examine


@pytest.mark.parametrize("kind", ["images", "vocabularies", "settings"])
def test_damaged_files(kind: str, tmp_path: Path, thorough: bool, pytestconfig: pytest.Config) -> None:
    count = 20
    if thorough:
        count = 20_000 if pytestconfig.getoption("every_case") else 300
    log = tmp_path / "log"
    assert finish(start(examine, kind, count, output=log), seconds=3600) == 0, log.read_text()[-1500:]
