"""The notebook runs from its first cell to its last on a small study."""

from pathlib import Path

import numpy as np
import pytest

from mola_core.analysis.calibration.simulation import Scenario

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "explore_study.ipynb"


@pytest.mark.parametrize("seeds", [1, 3])
def test_notebook_runs_on_a_simulated_study(tmp_path, monkeypatch, seeds):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    scenario = Scenario("notebook", (60, 40), (0.8, 0.7), (0.05, 0.05), seeds=seeds, depth=10)
    scenario.frame(np.random.default_rng(0)).to_parquet(tmp_path / "scores.parquet")
    monkeypatch.setenv("MOLA_STUDY", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parent.parent))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit the notebook without outputs"
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    shown = str([cell.get("outputs") for cell in notebook.cells])
    assert "2468-vs-8642" in shown and "image/svg+xml" in shown
    assert ("noise between trainings was not seen" in shown) == (seeds == 1)


def test_the_notebook_of_the_published_study_shows_what_its_scores_give():
    """Committed with its outputs; executed again it prints the same."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    file = NOTEBOOK.with_name("published_study.ipynb")
    committed = nbformat.read(file, as_version=4)
    again = nbformat.read(file, as_version=4)
    nbclient.NotebookClient(
        again, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(file.parent)}}
    ).execute()

    def printed(notebook):
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        return [output["text"] for output in outputs if output["output_type"] == "stream"]

    assert printed(again) == printed(committed)
    assert len(printed(committed)) >= 3


@pytest.mark.parametrize("given", [False, True])
def test_the_notebook_of_your_scores_answers_a_question(tmp_path, monkeypatch, given):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.delenv("MOLA_SCORES", raising=False)
    if given:
        random = np.random.default_rng(0)
        rows = [
            f"{method},{seed},q{document},{int(random.random() < chance)}"
            for method, chance in (("one", 0.9), ("other", 0.4))
            for seed in range(4)
            for document in range(60)
        ]
        (tmp_path / "scores.csv").write_text("\n".join(["method,seed,document,correct", *rows]))
        monkeypatch.setenv("MOLA_SCORES", str(tmp_path / "scores.csv"))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parent.parent))
    notebook = nbformat.read(NOTEBOOK.with_name("your_scores.ipynb"), as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit the notebook without outputs"
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    shown = str([cell.get("outputs") for cell in notebook.cells])
    assert ("one-vs-other" if given else "mine-vs-theirs") in shown
    assert f"answer: {'supported' if given else 'undecided'}" in shown
