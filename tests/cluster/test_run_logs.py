"""What a training run writes for TensorBoard and logs to MLflow: each epoch of its table, once."""

import os
import shutil
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mnist_ray import errors, tables, train
from mnist_ray import storage as storage_module
from mnist_ray.cluster import tensorboard, tracking
from mnist_ray.config import Recipe
from mnist_ray.learn import checkpoint
from mnist_ray.storage import Place

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of its packages

BEGAN = datetime(2026, 11, 27, 12, tzinfo=UTC)
MEASURED = dict.fromkeys(tables.MEASURES, 0.25)


def read_events(file: Place) -> Iterator[Any]:
    """Yield the events in a file of TensorBoard, whose records have checksums."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    content = file.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        record = content[12 : 12 + length]
        checksums = struct.unpack("<I", content[8:12]) + struct.unpack(
            "<I", content[12 + length : 16 + length]
        )
        assert checksums == (masked_crc32c(content[:8]), masked_crc32c(record))
        yield Event.FromString(record)
        content = content[16 + length :]


def curves(folder: Place) -> list[tuple[int, dict[str, float]]]:
    """Return the step and the values of each event that has a value."""
    found = [
        (event.step, {each.tag: each.simple_value for each in event.summary.value})
        for event in read_events(folder / tables.EVENTS)
    ]
    return [(step, values) for step, values in found if values.keys() & set(tables.MEASURES)]


def as_table(folder: Place) -> list[tuple[int, dict[str, float]]]:
    """Return the same, from the epochs table."""
    rows = tables.read(folder, tables.EPOCHS).to_pylist()
    return [
        (row["epoch"], {name: pytest.approx(row[name]) for name in tables.MEASURES}) for row in rows
    ]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of MLflow without runs, which takes seconds to make."""
    import mlflow

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{file}").search_experiments()
    return file


@pytest.mark.usefixtures("alone", "mnist")
def test_a_resumed_run_has_each_epoch_once(home: Place, tmp_path: Path, database: Path) -> None:
    store = f"sqlite:///{shutil.copy(database, tmp_path)}"
    flags = ["--storage", str(home), "--name", "it"]
    recipe = ["--train-size", "300", "--holdout", "101", "--epochs", "2", "--cpus-per-worker", "1"]
    assert errors.run(train.main, [*flags, *recipe, "--track", f"mlflow={store}"]) == 0
    assert "MLFLOW_TRACKING_URI" not in os.environ

    def check() -> None:
        assert curves(home / "it") == as_table(home / "it")
        assert [step for step, _ in curves(home / "it")] == [1, 2]
        experiment = client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id
        (run,) = client.search_runs([experiment])
        assert (run.info.run_name, run.info.status) == ("it", "FINISHED")
        assert (run.data.params["lr"], run.data.params["holdout"]) == ("0.01", "101")
        for name in tables.MEASURES:
            points = client.get_metric_history(run.info.run_id, name)
            logged = [(point.step, pytest.approx(point.value)) for point in points]
            assert [step for step, _ in logged] == [1, 2]
            if "second" not in name:  # the second time, an epoch takes another time
                assert logged == [(step, values[name]) for step, values in curves(home / "it")]

    import mlflow  # here, because it takes a second

    client = mlflow.MlflowClient(tracking_uri=store)
    check()
    # As if the run had been killed after it logged its last epoch, and before it saved it.
    for saved in tables.checkpoints(home / "it"):
        if checkpoint.load(saved).state["epoch"] == 2:
            storage_module.remove(saved)
    assert errors.run(train.main, [*flags, "--resume"]) == 0
    check()


def test_an_open_file_goes_on_where_it_was_read(tmp_path: Path) -> None:
    """TensorBoard holds on to the file and reads only what is added."""
    rows = [{"epoch": epoch, **MEASURED} for epoch in (1, 2, 3)]
    settings = Recipe().model_dump()
    tensorboard.write(tmp_path, rows[:1], settings, BEGAN)
    with (tmp_path / tables.EVENTS).open("rb") as stream:
        before = stream.read()
        tensorboard.write(tmp_path, rows, settings, BEGAN)
        added = stream.read()
    assert (tmp_path / tables.EVENTS).stat().st_size == len(before) + len(added)
    assert [step for step, _ in curves(tmp_path)] == [1, 2, 3]
    events = list(read_events(tmp_path / tables.EVENTS))
    assert [event.wall_time - BEGAN.timestamp() for event in events[-3:]] == [0.5, 1.0, 1.5]
    # A run that lost its last epochs has a shorter file.
    tensorboard.write(tmp_path, rows[:1], settings, BEGAN)
    assert (tmp_path / tables.EVENTS).stat().st_size == len(before)


def test_settings_are_hyperparameters_and_a_loss_need_not_be_finite(tmp_path: Path) -> None:
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    rows = [{"epoch": 1, **MEASURED, "loss": float("nan")}]
    settings = Recipe(lr=0.5, nesterov=True).model_dump()
    tensorboard.write(tmp_path, rows, settings, BEGAN)
    ((_, values),) = curves(tmp_path)
    assert values["loss"] != values["loss"]
    hparams = {}
    for event in read_events(tmp_path / tables.EVENTS):
        for value in event.summary.value:
            content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
            hparams |= dict(content.session_start_info.hparams)
    assert {*hparams} == {name for name, value in settings.items() if value is not None}
    assert hparams["lr"].number_value == 0.5
    assert hparams["nesterov"].bool_value is True
    assert hparams["schedule"].string_value == "constant"


def test_a_lost_server_stops_no_training(
    tmp_path: Path, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Path(shutil.copy(database, tmp_path))
    tracker = tracking.of_run(f"mlflow=sqlite:///{store}", "it", {"lr": 0.1}, BEGAN)
    assert tracker
    tracker.log([{"epoch": 1, **MEASURED}])
    store.write_bytes(b"damaged")
    for _ in range(2):
        tracker.log([{"epoch": 2, **MEASURED}])
    tracker.end(failed=False)
    assert tracking.of_run(f"mlflow=sqlite:///{store}/none", "it", {}, BEGAN) is None
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2
    assert all("mlflow failed, and training goes on without it: " in each for each in warnings)


def test_a_caller_logs_to_mlflow_where_it_did_before(tmp_path: Path) -> None:
    import mlflow

    assert not mlflow.is_tracking_uri_set()
    with tracking.impatient():
        mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/ours.db")
    assert not mlflow.is_tracking_uri_set()
    theirs, registry = f"sqlite:///{tmp_path}/theirs.db", f"sqlite:///{tmp_path}/registry.db"
    mlflow.set_tracking_uri(theirs)
    mlflow.set_registry_uri(registry)
    try:
        with tracking.impatient():
            mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/ours.db")
            mlflow.set_registry_uri(None)
        assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == (theirs, registry)
    finally:
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)
