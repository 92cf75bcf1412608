"""The command `results`: what it prints for a table, and how it refuses bad input."""

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from mnist_ray import errors, results, tables
from mnist_ray.config import Recipe, Resources


def epoch(number: int, accuracy: float, loss: float = 0.1) -> dict[str, Any]:
    return {
        "trial": 0,
        "epoch": number,
        "train_loss": loss,
        "scored_on": "holdout",
        "accuracy": accuracy,
        "loss": loss,
        "train_seconds": 2.0,
        "images_per_second": 100.0 * number,
    }


CONFIG = {**Recipe(holdout=100, epochs=3).model_dump(), **Resources().model_dump()}


def row(*epochs: dict[str, Any], **known: Any) -> dict[str, Any]:
    return tables.trial_row(CONFIG, epochs, **known)


def test_a_trial_is_known_by_its_best_epoch_and_its_last() -> None:
    trial = row(epoch(1, 0.8), epoch(2, 0.9, 0.5), epoch(3, 0.7))
    assert (trial["best_epoch"], trial["best_accuracy"], trial["best_loss"]) == (2, 0.9, 0.5)
    assert (trial["final_accuracy"], trial["epochs_trained"]) == (0.7, 3)
    assert trial["train_seconds"] == 6
    assert trial["images_per_second"] == pytest.approx(200)
    assert trial["test_accuracy"] is None


def test_of_two_equal_epochs_the_later_is_best() -> None:
    assert row(epoch(1, 0.9), epoch(2, 0.9), epoch(3, 0.8))["best_epoch"] == 2


def test_status() -> None:
    assert row(epoch(1, 0.9), epoch(2, 0.9), epoch(3, 0.9))["status"] == "ok"
    assert row(epoch(1, 0.9))["status"] == "stopped"
    assert row(epoch(1, 0.1, loss=float("nan")))["status"] == "diverged"
    assert row(status="failed", error="out of memory")["status"] == "failed"


def test_every_column_is_there_and_documented() -> None:
    assert list(row(epoch(1, 0.9))) == [
        *tables.TRIAL_COLUMNS,
        *Recipe.model_fields,
        *Resources.model_fields,
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    tables.write(
        folder,
        [
            row(epoch(1, 0.5), run="first", trial=0, lr=0.125, total_seconds=9.0),
            row(epoch(1, 0.9), epoch(2, 0.8), run="first", trial=1, lr=0.25, total_seconds=7.0),
            row(run="first", trial=2, status="failed", error="boom", total_seconds=8.0),
        ],
        [epoch(1, 0.5), {**epoch(1, 0.9), "trial": 1}, {**epoch(2, 0.8), "trial": 1}],
    )
    return folder


def show(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert errors.run(results.main, [str(word) for word in argv]) == 0
    return capsys.readouterr().out


def test_the_best_comes_first_and_the_failed_last(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = json.loads(show(capsys, run, "--format", "json"))
    assert [trial["trial"] for trial in trials] == [1, 0, 2]
    assert [t["trial"] for t in json.loads(show(capsys, run, "--format=json", "--top=1"))] == [1]
    quickest = json.loads(show(capsys, run, "--format=json", "--sort=total_seconds"))
    assert [trial["trial"] for trial in quickest] == [1, 2, 0]


def test_csv_has_every_column(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(show(capsys, run, "--format", "csv"))))
    assert set(tables.TRIAL_COLUMNS) <= set(rows[0])
    assert [float(row["lr"]) for row in rows[:2]] == [0.25, 0.125]


def test_the_table_fits_eighty_columns(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = show(capsys, run).splitlines()
    assert max(len(line) for line in lines) <= 80
    assert "1  stopped    90.00%" in lines[2]


def test_markdown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = show(capsys, run, "--format", "markdown").splitlines()
    assert lines[0].startswith("| trial | status | best accuracy |")
    assert lines[1].startswith("| --- |")
    assert len(lines) == 5


def test_epochs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(show(capsys, run, "--epochs", "--format", "json"))
    assert [(row["trial"], row["epoch"]) for row in rows] == [(0, 1), (1, 1), (1, 2)]


def test_several_runs_are_one_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = run.parent / "second"
    other.mkdir()
    tables.write(other, [row(epoch(1, 0.7), run="second", trial=0)], [])
    trials = json.loads(show(capsys, run, other, "--format", "json"))
    assert [trial["run"] for trial in trials] == ["first", "second", "first", "first"]
    assert show(capsys, run, other).split()[:2] == ["best", "train"]


def test_without_a_path_the_newest_run_is_shown(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = run.parent / "older"
    older.mkdir()
    tables.write(older, [row(epoch(1, 0.7), run="older", trial=0)], [])
    os.utime(older / tables.TRIALS, (1, 1))
    trials = json.loads(show(capsys, "--storage", run.parent, "--format", "json"))
    assert {trial["run"] for trial in trials} == {"first"}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["{tmp}/none"], "holds no trials.parquet"),
        (["--storage", "{tmp}/none"], "holds no results yet"),
        (["{run}", "--sort", "speed"], "sort is speed, but must be a column: run, trial"),
        (
            ["{run}", "--epochs", "--sort", "nonsense"],
            "sort is nonsense, but must be a column: run",
        ),
        (["{run}", "--epochs", "--sort", "best_accuracy"], "must be a column: run, trial, epoch"),
        (["{run}", "--sort", ""], "sort is , but must be a column: run, trial"),
        (["{run}", "--over-seeds", "--sort", "seed"], "sort is seed, but must be a column: phase"),
        (["{run}", "--epochs", "--over-seeds"], "over_seeds is on, but epochs is too"),
        (["{run}", "--storage", "{tmp}"], "storage is set, but so are paths"),
        (["{run}", "{tmp}/none"], "none holds no trials.parquet; name the folder of a run"),
        (["{run}", "--top", "0"], "top is 0, but must be at least 1"),
        (["{tmp}/damaged"], "trials.parquet cannot be read"),
    ],
)
def test_bad_input(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], says: str
) -> None:
    damaged = tmp_path / "damaged" / tables.TRIALS
    damaged.parent.mkdir()
    damaged.write_bytes((run / tables.TRIALS).read_bytes()[:-9])
    argv = [word.format(tmp=tmp_path, run=run) for word in argv]
    assert errors.run(results.main, argv) == 2
    assert says in capsys.readouterr().err


def test_errors_can_be_shown_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert errors.run(results.main, [str(tmp_path), "--verbose"]) == 2
    assert capsys.readouterr().err.startswith("Traceback")


def test_a_table_without_rows_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables.write(tmp_path, [row(status="failed", error="boom")], [])
    assert errors.run(results.main, [str(tmp_path), "--epochs"]) == 0
    assert "epochs.parquet has no rows yet" in capsys.readouterr().err
    assert show(capsys, tmp_path, "--epochs", "--format", "json") == "[]\n"
    tables.write(tmp_path, [], [])
    assert errors.run(results.main, [str(tmp_path)]) == 0


def test_json_has_no_nan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables.write(tmp_path, [row(epoch(1, 0.1, loss=float("nan")))], [])
    (trial,) = json.loads(show(capsys, tmp_path, "--format", "json"), parse_constant=pytest.fail)
    assert (trial["status"], trial["best_loss"]) == ("diverged", None)


def test_where_keeps_the_rows_for_which_it_holds(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def trials(condition: str) -> list[int]:
        shown = show(capsys, run, "--where", condition, "--format", "json")
        return [row["trial"] for row in json.loads(shown)]

    assert trials("lr > 0.2") == [1]
    assert trials('status != "failed" and best_accuracy > 0.4') == [1, 0]
    assert trials("nesterov") == []
    assert trials("not nesterov and batch_norm and lr > 0.2") == [1]
    assert trials("lr > 9") == []
    assert show(capsys, run, "--where", "lr > 9") == ""


NO_CONDITIONS = ["trial", "lr", "lr + 1", "'x'", "status", "x = 1", "True", "1 == 1", "trial.max()"]


@pytest.mark.parametrize(
    "condition", ["lr >", "rl > 0.1", "lr > 'x'", "", "\n", "lr.head(1) > 0", *NO_CONDITIONS]
)
def test_where_must_be_a_condition(
    condition: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert errors.run(results.main, [str(run), f"--where={condition}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: where is ")
    assert len(err.splitlines()) == 1


def test_over_seeds_trials_that_differ_in_their_seed_only_are_one_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, accuracy in enumerate([0.90, 0.91, 0.95]):
        folder = tmp_path / str(seed)
        folder.mkdir()
        trial = row(epoch(3, accuracy), run=str(seed), trial=0, seed=seed)
        other = row(epoch(3, 0.5), run=str(seed), trial=1, seed=seed, lr=0.125)
        failed = row(run=str(seed), trial=2, seed=seed, lr=0.25, status="failed")
        tables.write(folder, [trial, other, failed], [])
    shown = show(capsys, *sorted(tmp_path.iterdir()), "--over-seeds", "--format", "json")
    best, same, none = json.loads(shown)
    assert (best["lr"], best["n"]) == (0.01, 3)
    assert best["best_accuracy"] == pytest.approx(0.92)
    assert best["best_accuracy_sd"] == pytest.approx((0.0014 / 2) ** 0.5)
    assert (same["lr"], same["n"], same["best_accuracy_sd"]) == (0.125, 3, 0)
    assert (none["lr"], none["n"], none["unfinished"]) == (0.25, 0, 3)
    assert none["best_accuracy"] is None
    assert "seed" not in best
    table = show(capsys, *sorted(tmp_path.iterdir()), "--over-seeds")
    assert "92.00%     2.65%" in table


def test_where_takes_a_column_that_is_true_or_false_or_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    won = [True, False, None]
    tables.write(tmp_path, [row(run="a", trial=i, winner=it) for i, it in enumerate(won)], [])

    def trials(condition: str) -> list[int]:
        shown = show(capsys, tmp_path, "--where", condition, "--format", "json")
        return [row["trial"] for row in json.loads(shown)]

    assert trials("winner") == trials("winner == True") == [0]
    assert trials("not winner") == [1]


def test_over_seeds_only_finished_trials_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = [epoch(1, 0.5), epoch(2, 0.6)]
    rows = [
        row(*whole, epoch(3, 0.90), seed=0, arithmetic="fp32"),
        row(*whole, epoch(3, 0.92), seed=1, arithmetic="fp32"),
        row(*whole, epoch(3, 0.10, float("nan")), seed=2, arithmetic="fp32"),  # diverged
        row(*whole, seed=3, arithmetic="fp32"),  # stopped
        row(*whole, seed=4, arithmetic="fp32", status="running"),
        row(*whole, seed=5, arithmetic="fp32", status="failed"),
        row(*whole, epoch(3, 0.99), seed=6, arithmetic="bf16"),
    ]
    tables.write(tmp_path, [{**each, "run": "a", "trial": i} for i, each in enumerate(rows)], [])
    bf16, fp32 = json.loads(show(capsys, tmp_path, "--over-seeds", "--format", "json"))
    assert (fp32["arithmetic"], fp32["n"], fp32["unfinished"]) == ("fp32", 2, 4)
    assert fp32["best_accuracy"] == pytest.approx(0.91)
    assert fp32["best_accuracy_sd"] == pytest.approx(0.02 / 2**0.5)
    assert fp32["final_accuracy"] == pytest.approx(0.91)
    assert (bf16["arithmetic"], bf16["n"], bf16["unfinished"]) == ("bf16", 1, 0)
    head, *lines = show(capsys, tmp_path, "--over-seeds", "--format", "markdown").splitlines()
    assert head.startswith("| arithmetic | n | unfinished | best accuracy |")
    assert lines[2].startswith("| fp32 | 2 | 4 | 91.00% |")
    shown = show(capsys, tmp_path, "--over-seeds", "--where", "seed != 6 and status == 'stopped'")
    assert shown.split() == ["n", "unfinished", "0", "1"]
    assert "unfinished" not in show(capsys, tmp_path, "--over-seeds", "--where", "status == 'ok'")


def test_accuracies_of_other_images_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = {**epoch(3, 0.99), "scored_on": "test"}
    rows = {
        "chosen": row(epoch(3, 0.9), run="chosen", trial=0),
        "tested": tables.trial_row({**CONFIG, "holdout": 0}, [test], run="tested", trial=0),
    }
    for name, each in rows.items():
        (tmp_path / name).mkdir()
        tables.write(tmp_path / name, [each], [])
    both = show(capsys, tmp_path / "chosen", tmp_path / "tested", "--format", "markdown")
    assert "| tested | 0 | ok | test | 99.00%" in both
    assert "| chosen | 0 | ok | holdout | 90.00%" in both
    assert "holdout" not in show(capsys, tmp_path / "chosen")
    # In a study the phase says which images were scored.
    study = [
        {**rows["chosen"], "phase": "search"},
        {**rows["tested"], "phase": "final", "trial": 1},
    ]
    tables.write(tmp_path / "chosen", study, [])
    assert "scored on" not in show(capsys, tmp_path / "chosen", "--format", "markdown")


def test_epochs_are_sorted_by_their_own_columns(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sort = ("--epochs", "--sort", "accuracy", "--format", "json")
    shown = json.loads(show(capsys, run, *sort))
    assert [row["accuracy"] for row in shown] == [0.9, 0.8, 0.5]
    assert len(json.loads(show(capsys, run, *sort, "--top", "1"))) == 1


@pytest.fixture
def killed(run: Path) -> list[Path]:
    """Make two runs without a row: one has no tables, the other has empty tables."""
    folders = [run.parent / name for name in ("killed", "interrupted")]
    for folder, kind in zip(folders, ("train", "tune"), strict=True):
        folder.mkdir()
        (folder / f"{kind}.yaml").touch()
    tables.write(folders[1], [], [])
    return folders


@pytest.mark.parametrize("flags", [[], ["--epochs"], ["--over-seeds"]])
@pytest.mark.parametrize("form", ["table", "markdown", "csv", "json"])
def test_a_run_without_rows_hides_no_others(
    flags: list[str],
    form: str,
    run: Path,
    killed: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    alone = show(capsys, run, *flags, "--format", form)
    argv = [killed[0], run, killed[1], *flags, "--format", form]
    assert errors.run(results.main, [str(word) for word in argv]) == 0
    out, err = capsys.readouterr()
    assert out == alone
    name = tables.EPOCHS if "--epochs" in flags else tables.TRIALS
    assert [line for line in err.splitlines() if "no rows" in line] == [
        f"{folder}: {name} has no rows yet" for folder in killed
    ]
    assert errors.run(results.main, [str(word) for word in [*killed, *flags]]) == 0
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 2)


def test_nothing_at_all_is_an_empty_list(
    killed: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(capsys, *killed, "--format", "json") == "[]\n"
    (names,) = csv.reader(show(capsys, *killed, "--format", "csv").splitlines())
    assert names == tables.SCHEMAS[tables.TRIALS].names


def test_a_run_named_twice_counts_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = show(capsys, run, run / ".", run.parent / "first", "--format", "json")
    assert shown == show(capsys, run, "--format", "json")


def test_the_csv_files_hold_the_same(run: Path) -> None:
    for name in (tables.TRIALS, tables.EPOCHS):
        table = tables.read(run, name)
        with (run / name).with_suffix(".csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["trial"] for row in rows] == [str(n) for n in table["trial"].to_pylist()]
        assert list(rows[0]) == table.column_names
