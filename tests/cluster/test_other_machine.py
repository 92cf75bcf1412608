"""Runs that are begun on one machine and gone on with on another, of fewer cores. `make recovery`
runs these: clusters of as many CPUs stand for the machines."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ANY_PORT
from test_recovery import Run, table

from mnist_ray import errors, search, tables, tune
from mnist_ray.config import STUDY_RECIPE, Recipe, TuneConfig
from mnist_ray.errors import UserError
from mnist_ray.learn.data import Mnist

pytestmark = pytest.mark.recovery


@contextmanager
def machine(cores: int) -> Iterator[None]:
    """Commands join a cluster of one node with that many CPUs."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": cores, "num_gpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**head, **ANY_PORT})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield
    cluster.shutdown()


def interrupted(output: Path, command: str, *flags: str, when: str, where: Path) -> None:
    """Begin a run, and end it by Ctrl-C when there are files of that pattern."""
    run = Run(output, command, *flags)
    run.wait_for(lambda: list(where.glob(when)))
    time.sleep(0.5)
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130, run.text


def test_a_study_goes_on_with_as_many_trials_as_fit(
    storage: Path, tmp_path: Path, mnist: Mnist, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--search", "tpe", "--num-trials", "16", "--epochs", "1", "--train-size", "500"]
    flags = [*flags, "--holdout", "101", "--scheduler", "fifo", "--confirm", "0"]
    flags = [*flags, "--storage", str(storage), "--name", "moved", "--max-concurrent"]
    moved = storage / "moved"
    with machine(5):
        when = "trial_00000/checkpoint_*/checkpoint.pt"
        interrupted(tmp_path / "out", "tune", *flags, "5", when=when, where=moved)
    go_on = ["--resume", "--name", "moved", "--storage", str(storage)]
    with machine(2):
        assert errors.run(tune.main, [*go_on, "--max-concurrent", "4"]) == 2
        assert "max_concurrent is 4, but" in (said := capfd.readouterr().err)
        assert "use at most 2" in said
        assert errors.run(tune.main, go_on) == 0
    shown = capfd.readouterr().out
    assert "max_concurrent is 5, but only 2 fit: goes on with 2 at a time" in shown
    assert "will differ slightly" not in shown
    # tpe looks past five trials still, and so sampled what it would have, which is not what it
    # samples when it looks past fewer: it learns from the tenth trial on that it knows.
    rows = table(moved)
    assert [row["status"] for row in rows] == ["ok"] * 16
    base = Recipe(**{**STUDY_RECIPE, "epochs": 1, "train_size": 500, "holdout": 101})
    tuning = TuneConfig(search="tpe", num_trials=16, scheduler="fifo", confirm=0, max_concurrent=5)
    tuning = tuning.replace(space=search.space_of(tuning))
    plan = search.Plan(tuning, base, search.sampler(tuning, base), recorded=rows)
    plan.replay()
    assert plan.begun() == []
    fewer = tuning.replace(max_concurrent=2)
    with pytest.raises(UserError, match="does not follow from the settings"):
        search.Plan(fewer, base, search.sampler(fewer, base), recorded=rows).replay()


def test_a_study_goes_on_with_fewer_cores_and_says_what_that_changes(
    storage: Path, tmp_path: Path, mnist: Mnist, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--num-trials", "2", "--epochs", "3", "--train-size", "3000", "--scheduler", "fifo"]
    flags = [*flags, "--confirm", "0", "--holdout", "101"]
    flags = [*flags, "--storage", str(storage), "--name", "it"]
    with machine(4):
        begin = [*flags, "--cpus-per-worker", "2", "--max-concurrent", "1"]
        when = "trial_00000/checkpoint_*/checkpoint.pt"
        interrupted(tmp_path / "out", "tune", *begin, when=when, where=storage / "it")
    go_on = ["--resume", "--name", "it", "--storage", str(storage)]
    with machine(1):
        assert errors.run(tune.main, go_on) == 2
        assert "but there are 1; use fewer workers, or a lower cpus_per_worker." in (
            capfd.readouterr().err
        )
        assert errors.run(tune.main, [*go_on, "--cpus-per-worker", "1"]) == 0
    assert (
        "begun with 2 threads, resumed with 1 thread: the weights will differ slightly from an"
        " undisturbed run's"
    ) in capfd.readouterr().out
    rows = table(storage / "it", tables.EPOCHS)
    threads = [row["threads"] for row in rows if row["trial"] == 0]
    assert sorted(threads, reverse=True) == threads  # it went on, and did not begin again
    assert (threads[0], threads[-1]) == (2, 1)
    assert [row["status"] for row in table(storage / "it")] == ["ok", "ok"]


def test_a_training_run_goes_on_with_fewer_workers_and_cores(
    storage: Path, tmp_path: Path, mnist: Mnist
) -> None:
    flags = ["--train-size", "4000", "--epochs", "3", "--num-workers", "1:2"]
    flags = [*flags, "--holdout", "101", "--storage", str(storage), "--name", "it"]
    with machine(4):
        when = "checkpoint_*/checkpoint.pt"
        interrupted(tmp_path / "out", "train", *flags, when=when, where=storage / "it")
    with machine(1):
        go_on = ["--resume", "--name", "it", "--storage", str(storage)]
        run = Run(tmp_path / "again", "train", *go_on)
        assert run.end() == 0, run.text
    assert "going on after epoch" in run.text
    assert "begun with 2 workers and 2 threads, resumed with 1 worker and 1 thread:" in run.text
    rows = table(storage / "it", tables.EPOCHS)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert (rows[0]["workers"], rows[-1]["workers"]) == (2, 1)
