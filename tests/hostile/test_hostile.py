"""Whatever a file holds, an answer or an error of one line: within limits, with no program, socket or file beside."""

from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

from .trial import outcomes

KINDS = (
    *(pytest.param(kind, marks=pytest.mark.thorough) for kind in ("archives", "training_data")),
    "settings",
    "vocabularies",
    "images",
    "folders",
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_case_is_answered_or_refused(kind: str, tmp_path: Path, thorough: bool) -> None:
    module = f"hostile.{kind}"
    cases = import_module(module)
    names = cases.ALL if thorough else cases.SAMPLE
    found = outcomes(module, names, tmp_path)
    assert found.keys() == set(names)
    print(
        kind, dict(Counter(outcome if outcome in ("answered", "refused") else "failed" for outcome in found.values()))
    )
    assert {name: outcome for name, outcome in found.items() if outcome not in ("answered", "refused")} == {}
