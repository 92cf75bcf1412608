"""The report: what its figures and texts show, and that odd tables make a page too."""

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pyarrow.parquet as pq
import pytest
import yaml

from mnist_ray import errors, results, search, tables
from mnist_ray.config import Recipe
from mnist_ray.tables import axes, changes, figures, hyperparameters, overview, report, run_folder

STARTED = pd.Timestamp("2026-01-01T12:00:00Z")


def trial(number: int, phase: str | None, accuracies: list[float], **more: Any) -> Any:
    """Return a row of the trials table and the trial's rows of the epochs table."""
    config = Recipe(holdout=0 if phase == "final" else 100, epochs=3).model_dump()
    config |= {name: more.pop(name) for name in list(more) if name in config}
    scored_on = "holdout" if config["holdout"] else "test"
    epochs = [
        {
            "run": "a",
            "trial": number,
            "epoch": epoch,
            "train_loss": 0.1,
            "scored_on": scored_on,
            "accuracy": accuracy,
            "loss": 1 - accuracy,
            "train_seconds": 2.0,
            "images_per_second": 100.0,
        }
        for epoch, accuracy in enumerate(accuracies, 1)
    ]
    known = {"run": "a", "trial": number, "phase": phase, "hardware": "a <fast> one"}
    known |= {"started": STARTED, "ended": STARTED + pd.Timedelta(minutes=number + 1)}
    return tables.trial_row(config, epochs, **{**known, **more}), epochs


SPACE = {"lr": "loguniform(0.01, 21)", "dropout": "uniform(0, 0.6)"}
DIMENSIONS = {name: search.read_dimension(name, text) for name, text in SPACE.items()}


def write(folder: Path, *pairs: Any, space: dict[str, str] = SPACE) -> Path:
    """Write the tables of a study, or of a training run if the rows have no phase."""
    folder.mkdir(exist_ok=True)
    if any(row["phase"] for row, _ in pairs):
        (folder / "tune.yaml").write_text(yaml.safe_dump({"space": space}, sort_keys=False))
    rows = [row for row, _ in pairs]
    tables.write(folder, rows, [epoch for _, epochs in pairs for epoch in epochs])
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    screened = [
        trial(i, "screen", [0.9 + i / 200], lr=0.01 * 2**i, dropout=i / 20, epochs=1, winner=False)
        for i in range(12)
    ]
    searched = [
        trial(
            *(12 + i, "search", [0.9, 0.95, 0.97 + i / 100]),
            **{"lr": 0.01 * 2 ** (10 + i), "repeats": 10 + i, "winner": i == 1},
        )
        for i in range(2)
    ]
    confirmed = [
        trial(14 + i, "confirm", [0.9, 0.95, a], seed=1 + i // 2, lr=0.01, repeats=12 + i % 2)
        for i, a in enumerate([0.96, 0.97, 0.965, 0.98])
    ]
    final = [trial(18, "final", [0.9, 0.95, 0.99], repeats=13, lr=0.02, checkpoint="c")]
    folder = write(tmp_path / "a", *screened, *searched, *confirmed, *final)
    wrong = {3: (5, 3, 0.9), 8: (7, 1, 0.6)}
    columns: dict[str, list[Any]] = {name: [] for name in tables.PREDICTION_COLUMNS}
    for index in range(10):
        label, guess, probability = wrong.get(index, (index, index, 0.99))
        image = bytes(range(256)) * 3 + bytes(16) if index in wrong else None
        for name, value in zip(columns, (index, label, guess, probability, image), strict=True):
            columns[name].append(value)
    tables.write_predictions(folder, columns)
    return folder


def read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    return tables.read(folder).to_pandas(), tables.read(folder, tables.EPOCHS).to_pandas()


def test_the_page_needs_nothing_from_outside(study: Path) -> None:
    page = report.render([study])
    page = re.sub(r"<script>/\*.*?plotly.*?</script>", "", page, count=1, flags=re.S)
    assert len(page) < 1_000_000
    assert not re.findall(r"(?:src|href)=[\"']?https?:", page)
    assert "a &lt;fast&gt; one" in page
    assert "<fast>" not in page
    for title in ("with fresh seeds", "epoch by epoch", "Against each", "at once", "What mattered"):
        assert title in page
    for title in ("best so far", "Where the epochs went", "gets wrong", "Its mistakes, all"):
        assert title in page
    for meaning in ("highest accuracy after any epoch, in percent", "Learning rate"):
        assert meaning in page  # of the columns of the table
    assert page.count("data:image/png;base64,") == 2
    assert "trial 13: lr 20.48" in page
    assert "99.00% after the last epoch, a single run of the winner" in page
    assert "98.00% after the last epoch, 98.00% at its best (epoch 3)" in page


def test_curves_are_the_epochs_of_each_trial(study: Path) -> None:
    trials, epochs = read(study)
    figure = figures.curves(trials, epochs, winner=13)
    assert figure is not None
    lines = {len(line.x): line for line in figure.data}
    assert len(figure.data) == 14  # the confirmation has a figure of its own
    assert [accuracy for (accuracy,) in lines[3].customdata] == [0.9, 0.95, 0.98]
    assert figure.data[-1].name == "the winner"


def test_the_budget_adds_up(study: Path) -> None:
    trials, _ = read(study)
    figure = figures.budget(trials)
    assert figure is not None
    assert sum(sum(bar.y) for bar in figure.data) == trials["epochs_trained"].sum() == 33
    page = report.render([study])
    assert "took 18 epochs; training every configuration to its end would have taken 36" in page


def test_the_best_so_far_never_falls(study: Path) -> None:
    trials, _ = read(study)
    figure = figures.best_so_far(trials)
    assert figure is not None
    heights = list(figure.data[0].y)
    assert heights == sorted(heights)
    assert heights[-1] == axes.log_error(0.98)
    # The 14 trials of the search; a lucky seed of the confirmation finds nothing new.
    assert list(figure.data[0].x) == list(range(1, 15))


def test_the_confusion_matrix_counts_every_image(study: Path) -> None:
    predictions = tables.read(study, tables.PREDICTIONS).to_pandas()
    figure = figures.confusion(predictions)
    assert sum(int(text) for row in figure.data[0].text for text in row) == len(predictions)
    assert figure.data[0].z[5][3] == figure.data[0].z[7][1] == 1
    assert all(math.isnan(figure.data[0].z[i][i]) for i in range(10))


def test_importance_finds_what_matters() -> None:
    pairs = [
        trial(i, "search", [0.5 + i / 100], lr=0.01 * 1.3**i, dropout=(i * 7 % 20) / 40)
        for i in range(20)
    ]
    trials = pd.DataFrame([row for row, _ in pairs])
    figure = hyperparameters.importance(trials, DIMENSIONS)
    assert figure is not None
    shares = dict(zip(figure.data[0].y, figure.data[0].x, strict=True))
    assert shares["lr"] > 0.8
    assert sum(shares.values()) < 1  # the rest is interplay
    assert hyperparameters.importance(trials[: hyperparameters.ENOUGH - 1], DIMENSIONS) is None


@pytest.mark.parametrize(
    "pairs",
    [
        [trial(0, None, [0.9, 0.95, 0.96])],
        [trial(0, "final", [0.9, 0.95, 1.0])],
        [trial(0, "search", [0.1, 0.1], status="diverged", best_loss=float("nan"))],
        [trial(0, "search", [], status="failed", error="a <b> & c")],
        [trial(i, "search", [0.9], batch_norm=bool(i), train_size=i or None) for i in range(3)],
        [trial(i, "search", [0.9], schedule=("constant", "one-cycle")[i % 2]) for i in range(12)],
    ],
    ids=["train", "test only", "diverged", "failed", "kinds", "choices"],
)
def test_odd_runs_make_a_page(pairs: Any, tmp_path: Path) -> None:
    page = report.render([write(tmp_path / "odd", *pairs)])
    assert "<b>" not in page.split("</script>")[-2]


@pytest.mark.parametrize("phase", ["search", "screen"])
def test_a_field_that_may_be_none(phase: str, tmp_path: Path) -> None:
    sizes = [None, 1000, 30_000]
    pairs = [trial(i, phase, [0.9 + i / 200], train_size=sizes[i % 3]) for i in range(12)]
    folder = write(tmp_path / "a", *pairs, space={"train_size": "choice(null, 30000)"})
    trials, _ = read(folder)
    space = run_folder.space(folder)
    for draw in (hyperparameters.importance, hyperparameters.parallel):
        assert draw(trials, space) is not None
    dots = hyperparameters.against(trials, "train_size", space["train_size"], None)
    assert dots is not None
    assert set(dots.data[0].x) == {"none", "1000", "30000"}
    # The choices in their order, then what else was tried.
    assert list(dots.layout.xaxis.categoryarray) == ["none", "30000", "1000"]


def test_an_axis_is_as_its_dimension_was_searched() -> None:
    trials = pd.DataFrame([trial(i, "search", [0.9], lr=0.01 + i / 40)[0] for i in range(20)])
    for text, kind in (("uniform(0.01, 1)", None), ("loguniform(0.01, 1)", "log")):
        dots = hyperparameters.against(trials, "lr", search.read_dimension("lr", text), None)
        assert dots is not None
        assert dots.layout.xaxis.type == kind
        assert run_folder.space(Path("none")) == {}


@pytest.mark.parametrize("few", [True, False])
def test_a_range_of_whole_numbers_has_the_axis_of_its_scale(few: bool) -> None:
    sizes = [2**i for i in range(4, 8 if few else 13)]
    rows = [trial(i, "search", [0.9 + i / 100], batch_size=size) for i, size in enumerate(sizes)]
    trials = pd.DataFrame([row for row, _ in rows])
    for text, kind in (("lograndint(16, 4096)", "log"), ("randint(16, 4096, 16)", None)):
        dimension = search.read_dimension("batch_size", text)
        dots = hyperparameters.against(trials, "batch_size", dimension, None)
        assert dots is not None
        assert dots.layout.xaxis.type == kind
        if few:
            assert list(dots.layout.xaxis.tickvals) == sizes
        lines = hyperparameters.parallel(trials, {"batch_size": dimension})
        assert lines is not None
        places = list(lines.data[0].dimensions[0]["values"])
        assert places == pytest.approx([*map(math.log10, sizes)] if kind else sizes)
    # A value between the steps, which --try may name, is no obstacle to an estimate.
    rows += [trial(i, "search", [0.9 + i / 100], batch_size=17 + i) for i in range(20, 30)]
    trials = pd.DataFrame([row for row, _ in rows])
    assert hyperparameters.importance(trials, {"batch_size": dimension}) is not None


def test_what_was_tried_outside_the_space_is_in_the_figures() -> None:
    pairs = [trial(i, "search", [0.5 + i / 100], lr=0.001 * 2**i) for i in range(12)]
    trials = pd.DataFrame([row for row, _ in pairs])
    space = {"lr": search.read_dimension("lr", "loguniform(0.1, 0.2)")}
    assert hyperparameters.importance(trials, space) is not None
    assert hyperparameters.parallel(trials, space) is not None


def test_a_failed_trial_says_why_and_hides_nothing(tmp_path: Path) -> None:
    failed = trial(0, "search", [], status="failed", error="<b>out</b> of memory & gone")
    ran = trial(1, "search", [0.9, 0.95, 0.96], arithmetic="fp32", device="cpu")
    page = report.render([write(tmp_path / "a", failed, ran)])
    assert "&lt;b&gt;out&lt;/b&gt; of memory &amp; gone" in page
    assert "fp32 on cpu" in page


def outcome(folder: Path) -> str:
    """Return what the page says before its first figure."""
    found = re.search("<h1>.*?</dl>", report.render([folder]), re.DOTALL)
    assert found
    return found[0]


def test_the_winner_is_the_trial_that_the_study_wrote_down(tmp_path: Path) -> None:
    # Not the trial with the highest accuracy, and not the trial that was confirmed.
    pairs = [
        trial(0, "search", [0.9, 0.95, 0.96], lr=0.1, winner=False),
        trial(1, "search", [0.9, 0.95, 0.94], lr=0.2, winner=True, test_accuracy=0.93),
        trial(2, "confirm", [0.9, 0.95, 0.99], seed=1, repeats=0, winner=False),
    ]
    folder = write(tmp_path / "a", *pairs)
    said = outcome(folder)
    assert "trial 1: lr 0.2" in said
    assert "<dt>held-out accuracy</dt><dd>94.00% after the last epoch, 95.00% at its best" in said
    assert "<dt>test accuracy</dt><dd>93.00% of its checkpoint, scored once" in said
    trials, epochs = read(folder)
    figure = figures.curves(trials, epochs, overview.winner(trials))
    assert figure is not None
    assert figure.data[-1].name == "the winner"
    assert list(figure.data[-1].customdata[-1]) == [0.94]


def test_a_study_that_goes_on_after_its_end_has_no_winner_yet(tmp_path: Path) -> None:
    pairs = [
        trial(0, "search", [0.9, 0.95, 0.96], winner=False),
        trial(1, "confirm", [0.9, 0.95, 0.95], seed=1, repeats=0, winner=False),
        trial(2, "final", [0.9, 0.95, 0.91], seed=1, repeats=0, winner=False),
        trial(3, "search", [0.9, 0.95, 0.97], winner=True),
        trial(4, "confirm", [0.9, 0.95, 0.96], seed=1, repeats=3, winner=False),
    ]
    folder = write(tmp_path / "a", *pairs)
    assert "best so far</dt><dd>trial 3" in outcome(folder)  # no final run is its own
    new = trial(5, "final", [0.9, 0.95, 0.94], seed=1, repeats=3, winner=False)
    folder = write(tmp_path / "b", *pairs, new)
    said = outcome(folder)
    assert "winner</dt><dd>trial 3" in said
    assert "94.00%" in said
    assert "91.00%" not in said  # the one of the winner before
    shown = figures.confirmation(overview.of_winner(read(folder)[0]))
    assert shown is not None
    assert [name for name in shown.data[-1].y if "test set" in name] == list(shown.data[-1].y)
    assert "trial 0, test set" not in str(shown.data)
    changes.record_change(folder, 6, {"num_trials": 9})
    said = outcome(folder)
    assert "best so far</dt><dd>trial 3" in said
    assert "winner</dt>" not in said


def test_the_checkpoint_is_the_one_that_the_page_names(study: Path, tmp_path: Path) -> None:
    assert tables.final_checkpoint(study) == study / "c"
    assert "<dt>checkpoint</dt><dd>c</dd>" in outcome(study)
    failed = {"status": "failed", "error": "gone", "checkpoint": "f"}
    pairs = [
        trial(0, "search", [0.9, 0.95, 0.96], winner=False, checkpoint="a"),
        trial(1, "search", [0.9, 0.95, 0.94], winner=True, checkpoint="b"),
        trial(2, "final", [0.9], winner=False, **failed),
    ]
    without_final = write(tmp_path / "without", *pairs)
    assert tables.final_checkpoint(without_final) == without_final / "b"
    assert "<dt>checkpoint</dt><dd>b</dd>" in outcome(without_final)
    training = write(tmp_path / "training", trial(0, None, [0.9, 0.95, 0.96], checkpoint="d"))
    assert tables.final_checkpoint(training) == training / "d"
    pq.write_table(tables.read(training).drop(["checkpoint", "winner"]), training / tables.TRIALS)
    assert tables.final_checkpoint(training) is None
    assert "<dt>checkpoint" not in outcome(training)


def test_a_run_names_its_checkpoint(tmp_path: Path) -> None:
    run = write(tmp_path / "run", trial(0, None, [0.9, 0.95, 0.96], checkpoint="d"))
    assert tables.checkpoint_at(str(run)) == run  # tables alone are no run
    (run / "train.yaml").write_text("lr: 0.1\n")
    assert tables.checkpoint_at(str(run)) == run / "d"
    assert tables.checkpoint_at(str(run / "d")) == run / "d"
    # The test set does not choose the epoch.
    tested = trial(0, None, [0.9, 0.96, 0.95], holdout=0, checkpoint="checkpoint_000002")
    last = write(tmp_path / "last", tested)
    (last / "train.yaml").write_text("lr: 0.1\n")
    assert tables.checkpoint_at(str(last)) == last / "checkpoint_000003"
    none = write(tmp_path / "none", trial(0, None, [], checkpoint=None))
    (none / "train.yaml").write_text("lr: 0.1\n")
    with pytest.raises(errors.UserError, match="a run that has no result yet"):
        tables.checkpoint_at(str(none))


def test_a_study_that_names_no_winner_has_none(study: Path) -> None:
    rows = [{**row, "winner": False} for row in tables.read(study).to_pylist()]
    tables.write(study, rows, tables.read(study, tables.EPOCHS).to_pylist())
    assert "none: no trial that competed has a result" in outcome(study)
    pq.write_table(tables.read(study).drop(["winner"]), study / tables.TRIALS)
    said = outcome(study)
    assert "not known: the table is of an earlier version" in said
    assert "trial 13" not in said


def test_a_training_run_on_all_images_was_scored_after_every_epoch(tmp_path: Path) -> None:
    row, epochs = trial(0, None, [0.9, 0.97, 0.96], holdout=0)
    assert (row["scored_on"], row["winner"]) == ("test", None)
    page = report.render([write(tmp_path / "a", (row, epochs))])
    body = page[page.index("<h1>") :]
    assert (
        "<dt>test accuracy</dt><dd>96.00% after the last epoch, 97.00% at its best (epoch 2),"
        " scored after every epoch on the test images</dd>" in body
    )
    assert "Accuracy on the test images, scored after every epoch" in body
    assert "scored once" not in body
    assert "held-out" not in body
    assert "winner" not in body.replace("the star is the winner", "")


def test_a_training_run_with_a_holdout_scored_the_test_set_once(tmp_path: Path) -> None:
    pair = trial(0, None, [0.9, 0.97, 0.96], test_accuracy=0.955)
    body = report.render([write(tmp_path / "a", pair)])
    assert "<dt>held-out accuracy</dt><dd>96.00% after the last epoch" in body
    assert "<dt>test accuracy</dt><dd>95.50% after the last epoch, scored once</dd>" in body
    assert "Accuracy on the held-out images" in body


@pytest.mark.parametrize(
    "pair",
    [
        trial(0, "search", [], status="failed", error="gone", winner=False, hardware=None),
        trial(0, None, [], status="running", hardware=None),
        trial(0, None, [0.9, 0.95], status="running", hardware=None),
        trial(0, "search", [0.1], status="diverged", best_loss=float("nan"), winner=True),
    ],
    ids=["failed", "before the first epoch", "half-run", "diverged"],
)
@pytest.mark.parametrize("dropped", [(), ("phase", "winner", "commit", "ray", "device")])
def test_an_empty_column_is_not_mentioned(pair: Any, dropped: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "a", pair)
    pq.write_table(tables.read(folder).drop(list(dropped)), folder / tables.TRIALS)
    said = outcome(folder)
    assert not re.findall(r"\b(?:None|nan|NaT|NaN)\b", said)
    assert not re.findall(r"\b(?:commit|Ray|torch|on) *(?:[,;]|</dd>)", said)
    assert "<dd></dd>" not in said


def test_the_cost_of_training_in_full_counts_the_epochs_of_each_trial(tmp_path: Path) -> None:
    pairs = [
        trial(i, "search", [0.9] * (1 + i % 3), epochs=1 + i % 3, lr=(1 + i) / 100)
        for i in range(6)
    ]
    trials, _ = read(write(tmp_path / "a", *pairs))
    said = report._cost(trials)
    assert "took 12 epochs; training every configuration to its end would have taken 12" in said


@pytest.mark.parametrize(
    "flags", [["--top", "3"], ["--where", "lr > 1"], ["--over-seeds"], ["--format", "csv"]]
)
def test_a_report_is_of_whole_runs(
    flags: list[str], study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    assert errors.run(results.main, [str(study), "--report", str(page), *flags]) == 2
    assert "report shows whole runs; leave one of them out" in capsys.readouterr().err
    assert not page.exists()


def test_tables_without_phases_make_a_page(study: Path) -> None:
    old = tables.read(study).drop(["phase", "repeats", "rung", "ended"])
    pq.write_table(old, study / tables.TRIALS)
    (study / tables.PREDICTIONS).unlink()
    assert "epoch by epoch" in report.render([study])


def test_the_command_writes_the_whole_report_or_says_why_not(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    assert errors.run(results.main, [str(study), "--report", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert page.read_text().startswith("<!doctype html>")
    for bad in (tmp_path, tmp_path / "none" / "report.html"):
        assert errors.run(results.main, [str(study), "--report", str(bad)]) == 2
        assert f"report {bad} cannot be written" in capsys.readouterr().err
    empty = write(tmp_path / "empty")
    page.unlink()
    assert errors.run(results.main, [str(empty), "--report", str(page)]) == 2
    assert "nothing to report" in capsys.readouterr().err
    assert not page.exists()
    assert errors.run(results.main, [str(empty), str(study), "--report", str(page)]) == 0
    assert f"{empty}: trials.parquet has no rows yet" in capsys.readouterr().err
    assert "trial 13" in page.read_text()
    assert not list(tmp_path.glob(".report*"))


@pytest.mark.parametrize("package", ["plotly", "sklearn"])
def test_without_the_extra_report_a_table_is_shown_and_a_report_is_not(
    package: str,
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    assert errors.run(results.main, [str(study)]) == 0
    page = tmp_path / "page.html"
    assert errors.run(results.main, [str(study), "--report", str(page)]) == 2
    says = f"error: report is {page}, but {package} is not installed; pip install"
    assert capsys.readouterr().err.endswith(f"{says} 'mnist_ray[report]'.\n")
    assert not page.exists()


def test_the_report_needs_neither_torch_nor_ray() -> None:
    code = "import mnist_ray.tables.report, sys; print({'torch', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_accuracies_keep_their_order_on_the_axis() -> None:
    accuracies = [0.0, 0.1, 0.9, 0.99, 0.995, 1.0]
    heights = [axes.log_error(accuracy) for accuracy in accuracies]
    assert heights == sorted(set(heights))
    assert isinstance(figures.confusion(pd.DataFrame({"label": [0], "guess": [0]})), go.Figure)


@pytest.mark.parametrize(
    ("low", "high"), [(0.1, 0.9933), (0.9, 0.9946), (0.9933, 0.9946), (0.9944, 0.9946)]
)
def test_an_axis_of_accuracies_has_ticks_however_narrow(low: float, high: float) -> None:
    ticks = axes.accuracy_ticks(axes.log_error(low), axes.log_error(high))
    assert 3 <= len(ticks) <= 11
    assert all(low <= tick <= high for tick in ticks)
