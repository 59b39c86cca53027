"""The notebooks run without a network, and what is committed of their output is what they show."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def pictures(notebook) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_was_committed_with_its_output(path, tmp_path):
    committed = nbformat.read(path, as_version=4)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert pictures(notebook) == pictures(committed) >= 1
    for ours, theirs in zip(notebook.cells, committed.cells, strict=True):
        assert [output.output_type for output in ours.get("outputs", [])] == [
            output.output_type for output in theirs.get("outputs", [])
        ]
    nbformat.validate(committed)


def test_all_three_are_there():
    assert [path.stem for path in NOTEBOOKS] == ["convert_and_verify", "fine_tune", "quickstart"]
