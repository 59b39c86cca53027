"""Client libraries with transformers' classes and with ours. They are not in the environment of the other tests."""

import json
import os
from collections.abc import Callable
from importlib.metadata import version

import pytest
from helpers import client_table

os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")  # chromadb would report its use
_rows: list[client_table.Row] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="Write results.json and the table in docs/clients.md.")


@pytest.fixture
def record() -> Callable[..., None]:
    """Note what a test has run, and refuse a difference above the bar of all clients."""

    def record(library: str, what: str, difference: float, native: str = "the same") -> None:
        assert difference <= 1e-5
        _rows.append(
            client_table.Row(
                library=library, version=version(library), what=what, native=native, difference=float(difference)
            )
        )

    return record


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if session.config.getoption("--record") and exitstatus == 0:
        client_table.RESULTS.write_text(json.dumps(_rows, indent=2) + "\n", encoding="utf-8")
        client_table.write()
