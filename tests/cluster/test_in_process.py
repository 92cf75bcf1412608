"""A training run in the command's own process: no Ray is started, and the bits are those of Ray's
workers."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from test_restored import Snapshot

from mnist_ray import errors, tables, terminal, train
from mnist_ray.cluster import training
from mnist_ray.config import Recipe, Resources, TrainRunConfig
from mnist_ray.learn import checkpoint, data, engine, process
from mnist_ray.learn.data import Mnist
from mnist_ray.storage import Place

SMALL = ["--train-size", "300", "--holdout", "101", "--batch-size", "50"]
MORE = ["--cpus-per-worker", "1", "--epochs", "4"]


def last_weights(folder: Place) -> dict[str, torch.Tensor]:
    *_, last = checkpoint.readable(tables.checkpoints(folder)).values()
    assert last.state["epoch"] == last.recipe.epochs
    return last.state["model"]


def undisturbed(mnist: Mnist) -> dict[str, torch.Tensor]:
    process.prepare(1)
    recipe = Recipe(train_size=300, holdout=101, batch_size=50, epochs=4)
    return engine.fit(recipe, data.split(mnist, 101, 300)).state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.usefixtures("alone")
def test_a_run_starts_no_ray_and_ends_with_the_bits_of_plain_python(
    home: Place, mnist: Mnist, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As where torchrun, or a cluster's launcher, left its variables: Ray Train would wait for more.
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    for name, value in {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "::1", "MASTER_PORT": "9"}.items():
        monkeypatch.setenv(name, value)
    flags = [*SMALL, *MORE, "--storage", str(home), "--name", "it"]
    random_state = torch.random.get_rng_state()
    assert errors.run(train.main, flags) == 0
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert not ray.is_initialized()
    assert os.environ["WORLD_SIZE"] == "2"
    shown = capfd.readouterr()
    assert "in this process, with 1 core\n" in shown.out
    assert "Reported metrics" not in shown.out + shown.err
    folder = home / "it"
    assert same(last_weights(folder), undisturbed(mnist))
    (row,) = tables.read(folder).to_pylist()
    assert row["status"] == "ok"
    kept = {checkpoint.load(each).state["epoch"] for each in tables.checkpoints(folder)}
    assert kept == {row["best_epoch"], 4}


def start(*flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "mnist_ray.train", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.usefixtures("alone")
def test_a_killed_run_goes_on_with_the_same_bits(storage: Path, mnist: Mnist) -> None:
    flags = ["--train-size", "3000", "--holdout", "101", *MORE]
    flags = [*flags, "--storage", str(storage), "--name", "it"]
    folder = storage / "it"
    first = start(*flags)
    while not tables.checkpoints(folder) and first.poll() is None:
        time.sleep(0.01)
    first.kill()
    shown, _ = first.communicate(timeout=60)
    assert first.returncode == -9, shown
    (row,) = tables.read(folder).to_pylist()
    assert row["status"] == "running"
    assert errors.run(train.main, [*flags, "--resume"]) == 0
    epochs = tables.read(folder, tables.EPOCHS)["epoch"].to_pylist()
    assert epochs == [1, 2, 3, 4]
    process.prepare(1)
    recipe = Recipe(train_size=3000, holdout=101, epochs=4)
    splits = data.split(mnist, 101, 3000)
    assert same(last_weights(folder), engine.fit(recipe, splits).state_dict())


@pytest.mark.usefixtures("alone", "mnist")
def test_a_last_checkpoint_that_is_lost_fails_the_run(
    storage: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Damaging(terminal.TrainingDisplay):
        def epoch(self, metrics: dict[str, Any]) -> None:
            os.truncate(storage / "it" / tables.checkpoint_name(1) / checkpoint.FILE, 100)

    flags = [*SMALL, "--epochs", "1", "--storage", str(storage), "--name", "it"]
    with monkeypatch.context() as patch:
        patch.setattr(terminal, "TrainingDisplay", Damaging)
        assert errors.run(train.main, flags) == 1
    assert "the checkpoint of the last epoch is missing or damaged" in capfd.readouterr().err
    assert tables.read(storage / "it")["status"].to_pylist() == ["failed"]
    assert errors.run(train.main, [*flags, "--resume"]) == 0
    assert tables.read(storage / "it")["status"].to_pylist() == ["ok"]


@pytest.mark.usefixtures("alone", "mnist")
def test_a_run_whose_output_is_closed_says_that_it_failed(storage: Path) -> None:
    flags = [*SMALL, "--epochs", "40", "--storage", str(storage), "--name", "it"]
    command = [sys.executable, "-u", "-m", "mnist_ray.train", *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as run:  # type: ignore[call-overload]
        while not run.stdout.readline().startswith("epoch"):
            assert run.poll() is None
        run.stdout.close()
        assert run.stderr.read() == "error: training stopped: its output was closed\n"
    assert run.returncode == 1
    assert tables.read(storage / "it")["status"].to_pylist() == ["failed"]


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_goes_on_in_this_process_and_on_workers(storage: Path, mnist: Mnist) -> None:
    flags = [*SMALL, *MORE, "--storage", str(storage), "--name", "it"]
    recipe = Recipe(train_size=300, holdout=101, batch_size=50, epochs=4)
    folder = storage / "it"
    assert errors.run(train.main, [*flags, "--in-process"]) == 0

    def cut_after(epoch: int) -> None:
        """As if the run had been killed after this epoch."""
        process.prepare(1)
        for each in tables.checkpoints(folder):
            (each / checkpoint.FILE).unlink()
            each.rmdir()
        done = []

        def on_epoch(metrics: engine.Metrics, state: engine.State) -> None:
            done.append(metrics)
            if metrics["epoch"] == epoch:
                saved = checkpoint.Checkpoint(state, recipe, list(done), splits.hash)
                checkpoint.save(folder / tables.checkpoint_name(epoch), saved)

        engine.fit(recipe, splits, on_epoch=on_epoch)

    splits = data.split(mnist, 101, 300)
    run = TrainRunConfig(storage=storage, name="it", resume=True)
    for in_process in (False, True):
        cut_after(2)
        before = Snapshot()  # as in a notebook, which goes on as it was
        needs, run = Resources(cpus_per_worker=1), run.replace(in_process=in_process)
        training.train(recipe, needs, run, terminal.TrainingDisplay())
        assert before.changed_since() == []
        assert same(last_weights(folder), undisturbed(mnist))
        assert tables.read(folder, tables.EPOCHS)["epoch"].to_pylist() == [1, 2, 3, 4]


@pytest.mark.usefixtures("alone", "mnist")
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--in-process", "--num-workers", "2"], "in_process is on, but num_workers is 2"),
        (["--cpus-per-worker", "1000"], "1 worker with 1,000 CPUs needs 1,000 CPUs"),
        pytest.param(
            ["--use-gpu"],
            "use_gpu is on, but 1 worker needs 1 GPU and there are",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
        ),
    ],
)
def test_what_a_process_cannot_do(
    flags: list[str], says: str, storage: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert errors.run(train.main, [*flags, "--storage", str(storage), "--name", "it"]) == 2
    assert says in capfd.readouterr().err
    assert not (storage / "it").exists()
