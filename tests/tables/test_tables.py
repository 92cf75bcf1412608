"""The schema of the results tables: the same whatever the rows, and readable by other tools."""

import csv
import json
import math
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import pandas as pd
import polars
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel, Field
from ray.tune import Trainable

from mnist_ray import tables
from mnist_ray.cluster import recorder
from mnist_ray.config import Recipe
from mnist_ray.errors import UserError
from mnist_ray.learn import data, engine, evaluation, scoring
from mnist_ray.learn.data import Mnist
from mnist_ray.tables import machine, views

EXPERIMENTS = Path(__file__).parent.parent.parent / "experiments"
NOW = datetime(2026, 11, 26, 22, 57, 45, 999_999, UTC)
CONFIG = Recipe(holdout=100, epochs=2, train_size=1000)

EPOCH = {
    "run": "a",
    "trial": 0,
    "epoch": 1,
    "lr": 0.01,
    "train_loss": 0.1,
    "train_accuracy": 0.5,
    "scored_on": "holdout",
    "loss": 0.1,
    "accuracy": 0.5,
    "train_seconds": 1.0,
    "score_seconds": 1.0,
    "images_per_second": 1.0,
    "arithmetic": "fp32",
    "workers": 1,
}


def trial(**known: Any) -> tables.Row:
    return tables.trial_row(CONFIG.model_dump(), [], **{"run": "a", "trial": 0, **known})


RUNS: dict[str, tuple[list[tables.Row], list[tables.Row]]] = {
    "training": ([trial(status="ok", started=NOW, ended=NOW)], [EPOCH]),
    "study": (
        [trial(phase="search", winner=True, repeats=3, rung=1, error="gone", use_gpu=True)],
        [{**EPOCH, "scored_on": "test", "checkpoint": "c"}],
    ),
    "whole floats": ([trial(lr=1, best_accuracy=1)], [{**EPOCH, "train_loss": 0}]),
    "no rows": ([], []),
    "nothing known": ([{"run": "a", "trial": 0}], [{"run": "a", "trial": 0}]),
}


@pytest.mark.parametrize("name", RUNS)
def test_every_table_has_the_schema_whatever_its_rows(name: str, tmp_path: Path) -> None:
    tables.write(tmp_path, *RUNS[name])
    for table in (tables.TRIALS, tables.EPOCHS):
        assert pq.read_schema(tmp_path / table).equals(tables.SCHEMAS[table])
        assert tables.read(tmp_path, table).schema.equals(tables.SCHEMAS[table])


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    for name, (trials, epochs) in RUNS.items():
        (tmp_path / name).mkdir()
        tables.write(tmp_path / name, trials, epochs)
    return [tmp_path / name for name in RUNS]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("table", [tables.TRIALS, tables.EPOCHS])
def test_other_tools_read_runs_together(runs: list[Path], table: str, order: int) -> None:
    paths = [folder / table for folder in runs][::order]
    assert len(pd.read_parquet(paths)) == 4
    assert pa.dataset.dataset(paths).to_table().schema.equals(tables.SCHEMAS[table])
    assert len(polars.read_parquet(paths)) == 4


def test_predictions_have_the_schema_where_none_is_wrong(tmp_path: Path, small: Mnist) -> None:
    class Knows(evaluation.nn.Module):
        def forward(self, images: Any) -> Any:
            return evaluation.F.one_hot(part.labels[part.indices].long(), 10).float().log_softmax(1)

    part = data.test_part(small)
    tables.write_predictions(tmp_path, scoring.predictions(Knows(), part)[1])
    table = tables.read(tmp_path, tables.PREDICTIONS)
    assert table.schema.equals(tables.SCHEMAS[tables.PREDICTIONS])
    assert table["image"].null_count == len(table) == 101
    with pytest.raises(ValueError, match=r"odd is no column of predictions\.parquet"):
        tables.write_predictions(tmp_path, {"odd": []})


def test_every_column_has_a_meaning() -> None:
    for columns in tables.COLUMNS.values():
        assert all(column.meaning for column in columns.values())
    meaning = tables.COLUMNS[tables.TRIALS]["batch_size"].meaning
    assert meaning == Recipe.model_fields["batch_size"].description


def test_a_column_has_the_type_of_the_fields_annotation() -> None:
    class Fields(BaseModel):
        flag: bool | None = None
        whole: int = 0
        real: float | None = None
        text: Literal["a", "b"] | None = None
        bounded: Annotated[int, Field(ge=0)] | None = None

    found = [column.type for column in tables.config_columns(Fields).values()]
    assert found == [pa.bool_(), pa.int64(), pa.float64(), pa.string(), pa.int64()]

    class Odd(BaseModel):
        names: list[str] = []

    with pytest.raises(TypeError, match="names is a list"):
        tables.config_columns(Odd)


def test_a_field_named_like_a_column_is_an_error() -> None:
    class Taken(BaseModel):
        arithmetic: str = ""

    with pytest.raises(ValueError, match=r"Taken\.arithmetic is named like a column"):
        tables.config_columns(Taken)


def test_a_value_without_a_column_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"top5_accuracy is no column of epochs\.parquet"):
        tables.epoch_row("a", 0, {"epoch": 1, "last": True, "top5_accuracy": 0.9})
    with pytest.raises(ValueError, match=r"odd is no column of trials\.parquet"):
        tables.write(tmp_path, [trial(odd=1)], [])
    with pytest.raises(pa.ArrowInvalid):  # 64.5 must not become 64
        tables.write(tmp_path, [trial(batch_size=64.5)], [])
    assert not list(tmp_path.glob("trials.*"))


def test_the_engine_reports_the_columns_of_the_epochs_table(small: Mnist) -> None:
    rows: list[tables.Row] = []
    for holdout in (0, 100):
        engine.fit(
            Recipe(epochs=1, batch_size=128),
            data.split(small, holdout),
            on_epoch=lambda metrics, state: rows.append(tables.epoch_row("a", 0, metrics)),
        )
    reported = {name for row in rows for name in row}
    assert reported == set(tables.EPOCH_COLUMNS) - {"checkpoint"}


class Reports(Trainable):  # type: ignore[misc]
    def step(self) -> dict[str, Any]:
        return {"epoch": 1, "last": True, "odd": 1.0}


def test_a_study_knows_what_tune_adds_to_the_metrics(tmp_path: Path) -> None:
    result = {**Reports().train(), "checkpoint_dir_name": "c", "checkpoint_path": "c"}
    assert set(result) - recorder.TUNES_OWN == {"epoch", "last", "odd"}
    study = recorder.Recorder.__new__(recorder.Recorder)
    study.folder, study.numbers, study.silent = tmp_path, {"t": 0}, {}
    with pytest.raises(ValueError, match=r"odd is no column of epochs\.parquet"):
        study.on_trial_result(0, [], SimpleNamespace(trial_id="t"), result)


OLD = sorted(EXPERIMENTS.glob("*/*/trials.parquet"))


@pytest.mark.parametrize("name", [tables.TRIALS, tables.EPOCHS, tables.PREDICTIONS])
def test_tables_of_earlier_versions_are_read_with_todays_types(name: str, tmp_path: Path) -> None:
    assert OLD
    tables.write(tmp_path, *RUNS["training"])
    tables.write_predictions(tmp_path, {each: [] for each in tables.PREDICTION_COLUMNS})
    found = [tables.read(path.parent, name) for path in OLD] + [tables.read(tmp_path, name)]
    for table in found:
        for field in table.schema:
            if field.name in tables.COLUMNS[name]:
                assert field.type == tables.COLUMNS[name][field.name].type
    both = pa.concat_tables(found, promote_options="permissive")
    assert len(both) == sum(len(table) for table in found)
    assert set(tables.SCHEMAS[name]) <= set(both.schema)


def test_a_column_of_another_type_is_refused(tmp_path: Path) -> None:
    odd = pa.table({"run": ["a"], "trial": ["first"]})
    pq.write_table(odd, tmp_path / tables.TRIALS)
    with pytest.raises(UserError, match="column trial is string, not int64"):
        tables.read(tmp_path)


def test_times_open_in_a_spreadsheet(tmp_path: Path) -> None:
    tables.write(tmp_path, *RUNS["training"])
    with (tmp_path / "trials.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["started"] == row["ended"] == "2026-11-26 22:57:45"
    assert tables.read(tmp_path)["started"].to_pylist() == [NOW]
    (shown,) = csv.DictReader(views.render(tables.read(tmp_path), "csv").splitlines())
    assert shown == row


def test_the_csv_keeps_all_digits(tmp_path: Path) -> None:
    values = [
        0.1 + 0.2,
        1 / 3,
        5e-324,
        1.7976931348623157e308,
        1e22,
        -0.0,
        1.0,
        123456789.123456789,
    ]
    tables.write(tmp_path, [trial(trial=i, best_loss=v) for i, v in enumerate(values)], [])
    with (tmp_path / "trials.csv").open(newline="") as file:
        assert [float(row["best_loss"]) for row in csv.DictReader(file)] == values


@pytest.mark.parametrize("name", [tables.TRIALS, tables.EPOCHS])
def test_json_has_neither_nan_nor_infinity(name: str, tmp_path: Path) -> None:
    odd = [float("nan"), float("inf"), -float("inf")]
    tables.write(
        tmp_path,
        [trial(best_loss=value, final_loss=0.5) for value in odd],
        [{**EPOCH, "train_loss": value} for value in odd],
    )
    table = tables.read(tmp_path, name)
    table = table.append_column("nested", pa.array([[{"a": [value, 1.0]}] for value in odd]))
    rows = json.loads(views.render(table, "json"), parse_constant=pytest.fail)
    column = "best_loss" if name == tables.TRIALS else "train_loss"
    assert [row[column] for row in rows] == [None] * 3
    assert [row["nested"] for row in rows] == [[{"a": [None, 1.0]}]] * 3
    assert math.isfinite(rows[0]["final_loss" if name == tables.TRIALS else "lr"])


class Repository:
    """A git repository with one commit of the files `names`, which are empty."""

    def __init__(self, top: Path, *names: str, project: str | None = None) -> None:
        self.top = top
        top.mkdir(parents=True, exist_ok=True)
        self.git("init", "--quiet")
        if project:
            self.write("pyproject.toml", f'[project]\nname = "{project}"\n')
        for name in names:
            self.write(name)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "All of it")

    def write(self, name: str, text: str = "") -> None:
        (self.top / name).parent.mkdir(parents=True, exist_ok=True)
        (self.top / name).write_text(text)

    def git(self, *words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(self.top), *who, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_the_checkouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ("mnist_ray/tables.py", "README.md")
    checkout = Repository(tmp_path / "checkout", *files, project="mnist_ray")
    commit = checkout.git("rev-parse", "--short", "HEAD")
    package = checkout.top / "mnist_ray"
    checkout.write("README.md", "changed")  # not a part of the package
    checkout.write("mnist_ray/notes.txt")  # untracked
    assert machine._commit(package) == commit
    checkout.write("mnist_ray/tables.py", "changed")
    assert machine._commit(package) == f"{commit}+"
    other = Repository(tmp_path / "other", "a")
    monkeypatch.setenv(
        "GIT_DIR", str(other.top / ".git")
    )  # as inside a hook of the other repository
    assert machine._commit(package) == f"{commit}+"
    monkeypatch.setenv("PATH", "")
    assert machine._commit(package) is None


@pytest.mark.parametrize(
    ("package", "project"),
    [
        (".venv/lib/python3.11/site-packages/mnist_ray", "mnist_ray"),
        ("mnist_ray", "theirs"),
        ("mnist_ray", None),
        ("third_party/mnist/mnist_ray", "theirs"),
    ],
    ids=["installed", "vendored", "no project", "vendored deeper"],
)
def test_in_another_repository_there_is_no_commit(
    package: str, project: str | None, tmp_path: Path
) -> None:
    theirs = Repository(tmp_path, f"{package}/tables.py", project=project)
    assert machine._commit(theirs.top / package) is None
    # And none if all of mnist_ray lies deeper in the repository, with its project file.
    theirs.write(f"{package}/../pyproject.toml", '[project]\nname = "mnist-ray"\n')
    if theirs.top / package != theirs.top / "mnist_ray":
        assert machine._commit(theirs.top / package) is None


def test_a_copy_that_git_does_not_track_has_no_commit(tmp_path: Path) -> None:
    Repository(tmp_path, "a", project="mnist_ray").write("mnist_ray/tables.py")
    assert machine._commit(tmp_path / "mnist_ray") is None


def test_epochs_of_version_0_1_are_read_with_todays_columns(tmp_path: Path) -> None:
    old = {"run": ["a"] * 3, "trial": [0, 0, 1], "epoch": [1, 2, 1], "train_accuracy": [0.5] * 3}
    old |= {"holdout_loss": [0.3, 0.2, None], "holdout_accuracy": [0.8, 0.9, None]}
    old |= {"test_loss": [None, None, 0.1], "test_accuracy": [None, None, 0.99]}
    pq.write_table(pa.table(old), tmp_path / tables.EPOCHS)
    read = tables.read(tmp_path, tables.EPOCHS)
    assert read["scored_on"].to_pylist() == ["holdout", "holdout", "test"]
    assert read["loss"].to_pylist() == [0.3, 0.2, 0.1]
    assert read["accuracy"].to_pylist() == [0.8, 0.9, 0.99]
    assert set(read.column_names) < set(tables.EPOCH_COLUMNS)
    without = pa.table(old).drop_columns(["holdout_loss", "holdout_accuracy"]).slice(2)
    pq.write_table(without, tmp_path / tables.EPOCHS)
    assert tables.read(tmp_path, tables.EPOCHS)["scored_on"].to_pylist() == ["test"]


def test_every_score_is_a_metric_of_an_epoch_and_three_columns_of_a_trial() -> None:
    for name in evaluation.Score._fields:
        assert name in tables.EPOCH_COLUMNS
        assert {f"{prefix}_{name}" for prefix in ("best", "final", "test")} <= {
            *tables.TRIAL_COLUMNS
        }
    row = tables.trial_row(CONFIG.model_dump(), [{**EPOCH, "scored_on": "test", "loss": 0.3}])
    assert [row[f"{prefix}_loss"] for prefix in ("best", "final", "test")] == [0.3] * 3
    assert tables.trial_row(CONFIG.model_dump(), [EPOCH])["test_loss"] is None


def test_a_score_that_no_epoch_has_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tables.TRIAL_COLUMNS, "final_f1", tables.TRIAL_COLUMNS["final_loss"])
    with pytest.raises(KeyError, match="f1"):
        tables.trial_row(CONFIG.model_dump(), [EPOCH])
    assert tables.trial_row(CONFIG.model_dump(), [{**EPOCH, "f1": 0.4}])["final_f1"] == 0.4


def test_a_share_is_sorted_from_the_highest_and_shown_in_percent() -> None:
    shares = {
        name: table
        for table, columns in tables.COLUMNS.items()
        for name, column in columns.items()
        if column.share
    }
    assert {"accuracy", "best_accuracy", "train_accuracy"} <= set(shares)
    for name in shares:
        ranked = tables.ranked(pa.table({name: [0.25, 0.75, 0.5]}), name)
        assert ranked[name].to_pylist() == [0.75, 0.5, 0.25]
        assert "75.00%" in tables.render(ranked, "table")
