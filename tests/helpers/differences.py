"""The rows of docs/differences.md. Each is a test, which fails with transformers' class and passes with ours.

cd tests && python -m helpers.differences   # writes the tables
"""

import functools
import importlib.util
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "differences.md"
_START, _END = "<!-- tables: written by tests/helpers/differences.py -->\n", "<!-- end of the tables -->\n"

# What people who use CLIP and SigLIP trip over, in the order of how many it hurts.
TOPICS = {
    "texts": "Texts that become another embedding in silence",
    "sources": "Official files",
    "zero-shot": "Zero-shot answers",
    "embeddings": "Embeddings",
    "head": "SigLIP's pooling head",
    "losses": "Losses",
    "folders": "Folders and configurations",
    "images": "Images",
    "training": "Fine-tuning",
    "tokenizers": "Tokenizers",
    "attention": "Attention maps and low precision",
    "resolution": "Resolutions and NaFlex",
    "classifiers": "Classifiers",
    "features": "Features of layers, and towers in other models",
    "serving": "Export and serving",
    "nothing-learnt": "Training that did not happen",
    "threads": "Threads",
    "stated-pixels": "Pixels that the source states",
    "speed": "Work that is not done",
    "uploads": "Uploads",
}


class Difference(NamedTuple):
    """A row: the case, what happens in the other library and in twinlens, why, and the test that shows both."""

    topic: str
    case: str
    theirs: str
    ours: str
    why: str
    test: str


ROWS: list[Difference] = []
SILENT = (pytest.fail.Exception, "DID NOT RAISE")  # of a check that expects an error
_Check = Callable[..., None]


def same(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Raise AssertionError where tensors, or tables of them, are further apart than float32 explains."""
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def difference(
    topic: str,
    case: str,
    theirs: str,
    ours: str,
    why: str,
    *,
    fails: tuple[type[BaseException] | tuple[type[BaseException], ...], str] | None,
    library: str = "transformers",
) -> Callable[[_Check], _Check]:
    """Make a check of the promise, which is given a library, a test of both libraries and a row of the page.

    `fails`: the error by which the check ends with the other library, and a pattern of its message; None where the
    other library keeps the promise too, as `why` has to say.
    """
    assert topic in TOPICS
    assert (fails is None) == why.endswith("upstream is right here")

    def decorate(check: _Check) -> _Check:
        ROWS.append(Difference(topic, case, theirs, ours, why, check.__name__))

        @functools.wraps(check)
        def test(library: str, **fixtures: Any) -> None:
            ends: AbstractContextManager[Any] = nullcontext()
            if library != "twinlens" and fails is not None:
                ends = pytest.raises(fails[0], match=fails[1])
            with ends:
                check(importlib.import_module(library), **fixtures)

        return pytest.mark.parametrize("library", [library, "twinlens"])(test)

    return decorate


def collected() -> list[Difference]:
    """Return the rows of all test files, by topic."""
    ROWS.clear()
    for file in sorted(TESTS.glob("test_users_*.py")):
        spec = importlib.util.spec_from_file_location(f"rows_of_{file.stem}", file)
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    topics = list(TOPICS)
    return sorted(ROWS, key=lambda row: topics.index(row.topic))


def tables() -> str:
    """Return a table for each topic, as Markdown."""
    pinned = re.search(r"^transformers==(\d+\.\d+)", (TESTS.parent / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert pinned is not None
    lines = []
    rows = collected()
    for topic, title in TOPICS.items():
        lines += [f"### {title}", ""]
        lines += [f"| | transformers {pinned[1]} | twinlens | why | test |", "|---|---|---|---|---|"]
        lines += [f"| {' | '.join(row[1:5])} | `{row.test}` |" for row in rows if row.topic == topic]
        lines += [""]
    return "\n".join(lines)


def written() -> str:
    """Return the tables that the page has."""
    return PAGE.read_text(encoding="utf-8").partition(_START)[2].partition(_END)[0].strip()


def write() -> None:
    """Put the tables into the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(_START)
    _, _, after = rest.partition(_END)
    PAGE.write_text(f"{before}{_START}\n{tables().strip()}\n\n{_END}{after}", encoding="utf-8")


if __name__ == "__main__":
    from helpers import differences  # the module to which the test files add their rows

    differences.write()
