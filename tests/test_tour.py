"""The notebook runs from its first cell to its last, and is stored without what it printed."""

import os

import nbformat
import pytest
from conftest import REPOSITORY
from nbclient import NotebookClient

NOTEBOOK = REPOSITORY / "docs" / "tour.ipynb"


def test_it_is_stored_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert len(notebook.cells) == 15
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


@pytest.mark.slow
def test_it_runs_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    made = tmp_path / "outputs" / "tour"
    assert len(list((made / "generated" / "images").glob("*.png"))) == 8
    assert len(list((made / "masks").glob("*_mask.png"))) == 3
    for name in ("inspection/inspection.png", "variations.png", "interpolation.png", "privacy/privacy_summary.json"):
        assert (made / name).is_file()
    printed = str([cell.get("outputs") for cell in notebook.cells])
    assert "nothing to mend was found" in printed and "Undecided" in printed and "root" in printed
