"""The notebooks run without a network, and what is committed of their output is what they show."""

from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def pictures(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """One for all of them: it has imported what they import."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=tmp_path_factory.mktemp("notebooks"))
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.thorough
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_was_committed_with_its_output(path, kernel):
    committed = nbformat.read(path, as_version=4)
    notebook = nbformat.read(path, as_version=4)
    nothing_left = nbformat.v4.new_code_cell("%reset -f")  # of the names of the notebook before
    notebook.cells.insert(0, nothing_left)
    client = NotebookClient(notebook, km=kernel, timeout=240)
    client.execute()
    assert client.kc is not None
    client.kc.stop_channels()
    notebook.cells.remove(nothing_left)
    assert pictures(notebook) == pictures(committed) >= 1
    for ours, theirs in zip(notebook.cells, committed.cells, strict=True):
        assert [output.output_type for output in ours.get("outputs", [])] == [
            output.output_type for output in theirs.get("outputs", [])
        ]
    nbformat.validate(committed)


def test_all_three_are_there():
    assert [path.stem for path in NOTEBOOKS] == ["convert_and_verify", "fine_tune", "quickstart"]
