"""Odd machines and surroundings: few cores, proxies, little memory, nothing that may be written.

`make recovery` runs these too. Each run starts a cluster of its own.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_recovery import Run, table

from mnist_ray import evaluate, results
from mnist_ray.config import RunConfig
from mnist_ray.learn import checkpoint
from mnist_ray.learn.data import Mnist

pytestmark = [
    pytest.mark.recovery,
    pytest.mark.usefixtures("alone", "mnist"),
    pytest.mark.skipif(sys.platform != "linux", reason="taskset and setpriv are of Linux"),
]

SMALL = ["--train-size", "300", "--holdout", "101", "--epochs", "1"]
UNPRIVILEGED = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] * (not os.geteuid())
"""Root may read and write anything, unless these two of its powers are taken."""


def test_a_machine_that_lends_one_core_and_no_home(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, other = tmp_path / "für alle", temporary / "ray"
    data = RunConfig().data_dir.expanduser()
    other.mkdir(mode=0)  # as another user's /tmp/ray
    monkeypatch.delenv("RAY_ADDRESS")
    surroundings = {
        "HOME": "/proc",
        "PYTHONIOENCODING": "ascii",
        "RAY_TMPDIR": str(temporary),
        "RAY_TRAIN_V2_ENABLED": "0",
    }
    flags = [*SMALL, "--data-dir", str(data), "--storage", str(storage), "--name", "it"]
    flags += ["--no-in-process"]
    one_core = [*UNPRIVILEGED, "taskset", "-c", str(min(os.sched_getaffinity(0)))]
    run = Run(tmp_path / "out", "train", *flags, before=one_core, **surroundings)
    code = run.end()
    other.chmod(0o700)
    assert code == 0, run.text
    assert "1 worker with 1 core\n" in run.text
    assert "last checkpoint" in run.text
    assert run.text.isascii()
    (row,) = table(storage / "it")
    assert row["status"] == "ok"


def test_a_terminal_without_unicode(tmp_path: Path) -> None:
    storage = tmp_path / "für alle"
    flags = [*SMALL, "--batch-size", "50", "--num-trials", "2"]
    ascii_only = {"PYTHONIOENCODING": "ascii", "COLUMNS": "200"}
    flags = [*flags, "--storage", str(storage), "--name", "it"]
    run = Run(tmp_path / "out", "tune", *flags, **ascii_only)
    assert run.end() == 0, run.text
    assert " +- " in run.text
    assert run.text.isascii()
    (*_, last) = table(storage / "it")
    for command, at in (
        (results, storage / "it"),
        (evaluate, storage / "it" / last["checkpoint"]),
    ):
        done = subprocess.run(
            [sys.executable, "-m", command.__name__, str(at)],
            capture_output=True,
            env={**os.environ, **ascii_only},
        )
        assert done.returncode == 0, done.stderr
        assert (done.stdout + done.stderr).isascii()


def test_behind_a_proxy_a_stopped_trial_gives_its_cores_back(
    storage: Path, tmp_path: Path, mnist: Mnist
) -> None:
    proxies = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    flags = ["--train-size", "2000", "--holdout", "101", "--batch-size", "50", "--epochs", "2"]
    flags += ["--workers-per-trial", "2", "--scheduler", "asha", "--search", "grid"]
    flags += ["--space", "lr=choice(0.1,1e-6,2e-6)", "--momentum", "0.5", "--confirm", "0"]
    flags += ["--no-base", "--storage", str(storage), "--name", "it"]
    run = Run(tmp_path / "out", "tune", *flags, **proxies)
    assert run.end() == 0, run.text
    # ASHA may let a weak trial go on by chance, but not two, and each must have an end.
    rows = table(storage / "it")
    assert [row["trial"] for row in rows] == [0, 1, 2]
    assert "stopped" in {row["status"] for row in rows}
    for row in rows:
        saved = checkpoint.load(storage / "it" / row["checkpoint"])
        assert saved.state["epoch"] == row["best_epoch"]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("train", "error: training stopped: a process was killed because its node ran low on"),
        ("tune", "failed  it was killed because its node ran low on memory; lower --max-concurr"),
    ],
)
def test_too_little_memory(command: str, says: str, storage: Path, tmp_path: Path) -> None:
    # So little that Ray kills whatever begins.
    low = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "250"}
    flags = [*SMALL, "--max-failures", "0", "--storage", str(storage), "--name", "it"]
    tune = ["--num-trials", "1", "--no-base", "--confirm", "0"]
    flags += tune if command == "tune" else ["--no-in-process"]
    run = Run(tmp_path / "out", command, *flags, **low)
    assert run.end() == 1, run.text
    assert says in run.text
    assert "Traceback" not in run.text
    if command == "tune":
        (row,) = table(storage / "it")
        assert row["error"].endswith("lower --max-concurrent or --batch-size")


def test_a_tracking_server_that_is_lost_on_the_way(
    storage: Path, temporary: Path, tmp_path: Path
) -> None:
    store = temporary / "store"
    flags = ["--train-size", "3000", "--num-trials", "2", "--epochs", "3", "--confirm", "0"]
    flags += ["--holdout", "101"]
    flags += ["--scheduler", "fifo", "--track", f"mlflow=file:{store}"]
    # MLflow is about to give up such stores, and a database would wait for its file.
    keep = {"MLFLOW_ALLOW_FILE_STORE": "true"}
    run = Run(tmp_path / "out", "tune", *flags, "--storage", str(storage), "--name", "it", **keep)
    run.wait_for(lambda: list(storage.glob("it/trial_*/checkpoint_*")))
    shutil.rmtree(store)
    store.touch()
    assert run.end() == 0, run.text
    assert run.text.count("warning: mlflow failed, and the study goes on without it") == 1
    assert [row["status"] for row in table(storage / "it")] == ["ok", "ok"]


def test_an_address_that_leads_nowhere_is_told_in_seconds(storage: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    run = Run(tmp_path / "out", "train", "--storage", str(storage), RAY_ADDRESS="127.0.0.1:9")
    assert run.end() == 2, run.text
    assert time.monotonic() - began < 60
    assert run.text.splitlines()[-1].startswith("error: RAY_ADDRESS is 127.0.0.1:9, but no Ray")
