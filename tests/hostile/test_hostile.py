"""Whatever a file holds, an answer or an error of one line: within limits, with no program, socket or file beside."""

from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

from .trial import outcomes

KINDS = (
    *(
        pytest.param(kind, marks=pytest.mark.thorough)
        for kind in ("archives", "training_data", "places", "documents", "names")
    ),
    "settings",
    "vocabularies",
    "images",
    "folders",
)
MANY = ("places", "documents", "settings")  # of which CI has no time for all
SLOW = "server drips"  # for a minute each; tests/test_addresses.py lets them drip for less
README = Path(__file__).parents[2] / "README.md"


def summary() -> str:
    """The table that the README quotes. With `--thorough --every-case`, one that is not survived fails."""
    kinds = [str(getattr(kind, "values", (kind,))[0]) for kind in KINDS]
    tried = [f"{len(import_module(f'hostile.{kind}').ALL):,}" for kind in kinds]
    rows = (["kind", *(kind.replace("_", " ") for kind in kinds)], ["tried", *tried], ["survived", *tried])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" + "|---:" * len(kinds) + "|", *lines[1:]])


def test_the_readme_quotes_the_summary() -> None:
    assert f"\n\n{summary()}\n\n" in README.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_every_case_is_answered_or_refused(
    kind: str, tmp_path: Path, thorough: bool, pytestconfig: pytest.Config
) -> None:
    module = f"hostile.{kind}"
    cases = import_module(module)
    names = cases.ALL if thorough else cases.SAMPLE
    if thorough and not pytestconfig.getoption("every_case"):
        names = cases.ALL[::16] if kind in MANY else [name for name in names if not name.startswith(SLOW)]
    found = outcomes(module, names, tmp_path)
    assert found.keys() == set(names)
    print(
        kind, dict(Counter(outcome if outcome in ("answered", "refused") else "failed" for outcome in found.values()))
    )
    assert {name: outcome for name, outcome in found.items() if outcome not in ("answered", "refused")} == {}
