"""`results --report FILE --watch`: the page follows the run, and ends with it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_report import trial, write

from mnist_ray import errors, results, storage, tables
from mnist_ray.storage import place
from mnist_ray.tables import run_folder, watching

RELOADS = '<meta http-equiv="refresh"'


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "PAUSE", 0.02)


def found(count: int) -> list[Any]:
    return [trial(i, "search", [0.9, 0.95], lr=(i + 1) / 50) for i in range(count)]


class Study:
    """A study that a process works on: this one, until `leave`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.holding = run_folder.locked(folder, "tune", {"space": {"lr": "uniform(0.01, 1)"}})
        self.holding.__enter__()

    def ended(self, trials: int) -> None:
        rows = [row for row, _ in found(trials)]
        tables.write(self.folder, rows, [each for _, epochs in found(trials) for each in epochs])

    def leave(self, won: bool) -> None:
        if won:
            (self.folder / tables.BEST_RECIPE).write_text("lr: 0.1\n")
        self.holding.__exit__(None, None, None)


def test_the_page_is_written_as_trials_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, page = Study(tmp_path / "a"), tmp_path / "report.html"
    monkeypatch.setattr(watching.time, "sleep", lambda seconds: next(happens, None))
    pages = tables.watch_report([study.folder], page)

    def course() -> Iterator[None]:
        yield  # nothing yet
        study.ended(1)
        yield
        # The page is written, and not again before a trial ends.
        yield
        monkeypatch.setattr(watching.time, "monotonic", lambda: 1e9)  # long after the last page
        study.ended(2)
        yield
        study.ended(3)
        study.leave(won=True)
        while True:
            yield

    happens = course()
    assert next(pages) == page
    assert RELOADS in page.read_text()
    assert "1 trial (" in page.read_text()
    assert next(pages) == page
    assert "2 trials (" in page.read_text()
    assert "loads itself again every 10 seconds" in page.read_text()
    assert next(pages) == page
    last = page.read_text()
    assert "3 trials (" in last
    assert RELOADS not in last
    assert "loads itself" not in last
    assert next(pages, None) is None


def test_a_run_that_has_ended_is_written_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "PAUSE", 60)
    page = tmp_path / "report.html"
    study = Study(tmp_path / "a")
    study.ended(1)
    study.leave(won=True)
    copied = write(tmp_path / "copied", trial(0, None, [0.9]))  # tables without their run
    for path in (study.folder, copied):
        assert errors.run(results.main, [str(path), "--report", str(page), "--watch"]) == 0
        assert capsys.readouterr().out == f"{page}\n"
        assert RELOADS not in page.read_text()


def test_a_study_that_was_killed_is_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "PAUSE", 60)
    page = tmp_path / "report.html"
    study = Study(tmp_path / "a")
    study.leave(won=False)
    watch = [str(study.folder), "--report", str(page), "--watch"]
    assert errors.run(results.main, watch) == 2
    assert "has no row yet, and so nothing to report" in capsys.readouterr().err
    assert not page.exists()
    study.ended(1)
    assert errors.run(results.main, watch) == 1
    shown = capsys.readouterr()
    assert "a was interrupted before its end; the report shows what was found" in shown.err
    assert RELOADS not in page.read_text()
    # It had ended before, was resumed for more trials, and was killed.
    (study.folder / tables.BEST_RECIPE).write_text("lr: 0.1\n")
    os.utime(study.folder / tables.BEST_RECIPE, (1, 1))
    assert errors.run(results.main, watch) == 1


@pytest.mark.parametrize(("status", "code"), [("running", 1), ("ok", 0), ("failed", 0)])
def test_a_training_run_says_itself_how_it_ended(status: str, code: int, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    with run_folder.locked(folder, "train", {}):
        assert run_folder.goes_on(folder) is True
    write(folder, trial(0, None, [0.9, 0.95], status=status))
    assert run_folder.goes_on(folder) is False
    flags = [str(folder), "--report", str(tmp_path / "report.html"), "--watch"]
    assert errors.run(results.main, flags) == code


def test_a_study_in_a_bucket_goes_on_until_it_has_a_winner(bucket: str, tmp_path: Path) -> None:
    folder = place("storage", f"{bucket}/{tmp_path.name}/a")
    storage.write(folder / "tune.yaml", b"{}")
    rows, epochs = zip(*found(2), strict=True)
    tables.write(folder, rows, [each for some in epochs for each in some])
    assert run_folder.goes_on(folder) is None  # there is no lock to tell
    pages = tables.watch_report([folder], tmp_path / "report.html")
    assert RELOADS in next(pages).read_text()
    storage.write(folder / tables.BEST_RECIPE, b"lr: 0.1")
    assert RELOADS not in next(pages).read_text()
    assert next(pages, None) is None


def test_watch_needs_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert errors.run(results.main, ["--watch"]) == 2
    assert "watch is on, but report is not; add --report FILE." in capsys.readouterr().err


def wait_for(what: Callable[[], object]) -> None:
    for _ in range(600):
        if what():
            return
        time.sleep(0.1)
    raise AssertionError


def test_ctrl_c_leaves_a_page_that_does_not_load_itself(tmp_path: Path) -> None:
    study, page = Study(tmp_path / "a"), tmp_path / "report.html"
    study.ended(1)
    command = [sys.executable, "-m", "mnist_ray.results", str(study.folder)]
    watch = subprocess.Popen(
        [*command, "--report", str(page), "--watch"], stderr=subprocess.PIPE, text=True
    )
    wait_for(page.exists)
    assert RELOADS in page.read_text()
    watch.send_signal(signal.SIGINT)
    _, said = watch.communicate(timeout=60)
    assert (watch.returncode, said) == (130, "interrupted\n")
    assert RELOADS not in page.read_text()
    study.leave(won=True)
