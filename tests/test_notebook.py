"""The example notebook runs from its first cell to its last, and its outputs can be read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "study.ipynb"

FEW = """
recipe = {{"train_size": 300, "holdout": 101, "batch_size": 50, "epochs": 1}}
settings = {{"num_trials": 2, "confirm": 0, "scheduler": "fifo", "storage": {storage!r}}}
"""


def read() -> Any:
    import nbformat

    return nbformat.read(NOTEBOOK, as_version=4)


def outputs(notebook: Any) -> Iterator[Any]:
    for cell in notebook.cells:
        yield from cell.get("outputs", ())


def texts(notebook: Any) -> Iterator[str]:
    """Yield what the outputs show as text: lines, and the plain form of tables and values."""
    for output in outputs(notebook):
        yield output["text"] if output.output_type == "stream" else output.data["text/plain"]


def check(notebook: Any) -> None:
    """Check that the outputs are short and readable, and are what the cells show."""
    streams = [each for each in outputs(notebook) if each.output_type == "stream"]
    assert {each.name for each in streams} == {"stdout"}  # and nothing on stderr
    assert all(text.count("\n") < 60 and "\x1b" not in text for text in texts(notebook))
    kinds = [set(each.data) for each in outputs(notebook) if each.output_type != "stream"]
    assert [("text/html" in kind, "image/png" in kind) for kind in kinds] == [
        *((True, False), (False, False), (False, True), (False, True), (False, False))
    ]


@pytest.mark.usefixtures("alone", "mnist")
def test_the_notebook_runs_on_few_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbclient import NotebookClient

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = read()
    notebook.cells[1].source += FEW.format(storage=str(tmp_path / "runs"))
    options = {"kernel_name": "python3", "coalesce_streams": True}
    NotebookClient(notebook, timeout=240, **options).execute()
    check(notebook)
    said = "\n".join(texts(notebook))
    assert said.startswith("2 trials, ")
    assert " of 10,000 test images are right" in said
    assert str(tmp_path) not in said
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("tune-")


def test_its_outputs_are_those_of_a_real_run() -> None:
    notebook = read()
    check(notebook)
    assert len(notebook.cells) == 10
    assert NOTEBOOK.stat().st_size < 100_000
    said = "\n".join(texts(notebook))
    (right,) = [line for line in said.splitlines() if line.endswith("test images are right")]
    assert int(right.split()[0].replace(",", "")) > 9_800
    assert not any(word in NOTEBOOK.read_text() for word in ("/home", "/root", "/tmp", "site-pack"))
