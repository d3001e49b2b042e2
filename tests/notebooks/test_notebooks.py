"""Every notebook runs on the results that are committed beside it, and holds no logic or outputs."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from framework.study.results import RUN_FILE
from framework.study.sweep import is_setting

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DATA = sorted(path for path in (ROOT / "notebooks" / "data").iterdir() if path.is_dir())


def test_there_are_notebooks_and_results() -> None:
    assert NOTEBOOKS and DATA


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [cell for cell in code if cell.outputs], "strip the outputs: they are made from the data"
    assert not [cell for cell in code if "def " in cell.source or "for " in cell.source], "logic belongs into the packages"
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}}).execute()
    figures = [output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(figures) == sum("plots." in cell.source for cell in code) > 0


@pytest.mark.parametrize("folder", DATA, ids=lambda path: path.name)
def test_committed_results_are_of_one_commit(folder: Path) -> None:
    """A sweep that was interrupted by changes of the code compares more than it says, and its rows differ in their columns."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob(RUN_FILE))]
    commits = {row.get("env.commit", "unknown") for row in rows}
    advice = f"make {folder.relative_to(ROOT)} anew from a clean checkout, as the notebook says"
    assert len(commits) == 1 and re.fullmatch("[0-9a-f]{40}", *commits), f"{sorted(commits)}: {advice}"
    assert len({frozenset(filter(is_setting, row)) for row in rows}) == 1, advice
    assert {row["status"] for row in rows} == {"ok"}
