"""How the study that `--start-from` names is found, read and written down."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mnist_ray import errors, search, storage, tables, tune
from mnist_ray.cluster import earlier
from mnist_ray.config import STUDY_RECIPE, PerWorker, Recipe, RunConfig, TuneConfig
from mnist_ray.errors import UserError
from mnist_ray.fields import read_yaml
from mnist_ray.storage import Place

BASE = Recipe(**STUDY_RECIPE)


def write_study(folder: Place, *accuracies: float | None, **settings: Any) -> None:
    """Write a study of some configurations, whose lr is a tenth of their accuracy."""
    began = {**BASE.model_dump(), **PerWorker().model_dump(), **TuneConfig().model_dump()}
    storage.make(folder)
    storage.write(folder / "tune.yaml", yaml.safe_dump({**began, **settings}).encode())
    rows = [
        tables.trial_row(
            BASE.replace(lr=0.1 if value is None else value / 10).model_dump(),
            [],
            run=folder.name,
            trial=number,
            phase="search",
            origin="sampled",
            status="failed" if value is None else "ok",
            best_accuracy=value,
            final_accuracy=value,
        )
        for number, value in enumerate(accuracies)
    ]
    tables.write(folder, rows, [])


def test_a_study_is_found_by_its_folder_its_uri_or_its_name(home: Place, tmp_path: Path) -> None:
    write_study(home / "old", 0.9, None, 0.95)
    run = RunConfig(storage=str(home), name="new")
    found = earlier.read(str(home / "old"), run.replace(storage=str(tmp_path / "other")))
    assert earlier.read("old", run) == found
    assert [(each.trial, each.accuracy) for each in found.trials] == [(2, 0.95), (0, 0.9)]
    assert found.trials[0].values == {"dropout": 0.1, "lr": 0.095, "momentum": 0.9}
    assert (found.run, found.recipe) == ("old", BASE.model_dump())


def test_what_a_study_started_from_is_written_down(home: Place) -> None:
    write_study(home / "old", 0.9, 1 / 3, space={"lr": "loguniform(1e-5, 0.3)"})
    run = RunConfig(storage=str(home), name="new")
    found = earlier.read("old", run)
    storage.make(home / "new")
    storage.write(home / "new" / "tune.yaml", b"{}")
    earlier.write(home / "new", found)
    write_study(home / "old", 0.9, 1 / 3, 0.99)  # it went on meanwhile
    assert earlier.read("old", run) != found
    assert earlier.read("old", run.replace(resume=True)) == found
    earlier.write(home / "new", earlier.read("old", run))  # what was written stays
    assert earlier.read("old", run.replace(resume=True)) == found
    written = read_yaml(home / "new" / earlier.FILE)
    assert (written["run"], [each["trial"] for each in written["trials"]]) == ("old", [0, 1])
    for torn in (b"run: 3", b"{}", b"run: a\nrecipe: {}\ntrials: [3]", b"["):
        storage.write(home / "new" / earlier.FILE, torn)
        with pytest.raises(UserError, match=r"started_from\.yaml is not"):
            earlier.read("old", run.replace(resume=True))


@pytest.mark.parametrize(
    ("start_from", "says"),
    [
        ("none", "none holds no trials.parquet; name the folder of a run"),
        ("./none", "none holds no trials.parquet"),
        ("failed", "failed has no trial with a result yet"),
        ("training", "training is not a study's: it holds no tune.yaml"),
        ("", "path is empty"),
        ("../../etc", "etc holds no trials.parquet"),
        ("odd", "config"),
        ("s4://a/b", "start_from is s4://a/b: path s4://a/b cannot be used"),
    ],
)
def test_a_study_to_start_from_that_is_none_is_refused(
    start_from: str, says: str, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(storage / "failed", None, None)
    write_study(storage / "training", 0.9)
    (storage / "training" / "tune.yaml").unlink()
    write_study(storage / "odd", 0.9)
    (storage / "odd" / "tune.yaml").write_text("[")
    flags = ["--storage", str(storage), "--name", "new", "--start-from", start_from]
    assert errors.run(tune.main, flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: start_from is ")
    assert says in line
    assert not (storage / "new").exists()


def test_a_table_of_another_version_is_refused(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    write_study(tmp_path / "old", 0.9)
    table = tables.read(tmp_path / "old").drop(["rotation"])
    pq.write_table(table, tmp_path / "old" / tables.TRIALS)
    with pytest.raises(UserError, match="by another version of mnist_ray: it has no column rota"):
        earlier.read("old", RunConfig(storage=str(tmp_path)))


def test_a_study_without_a_space_of_its_own_varied_the_default(tmp_path: Path) -> None:
    write_study(tmp_path / "old", 0.9, 0.8, space={})
    found = earlier.read("old", RunConfig(storage=str(tmp_path)))
    assert set(found.trials[0].values) == set(search.space_of(TuneConfig()))
