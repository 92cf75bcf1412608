"""A tracking server that is down is said before anything starts, or stops no study on the way."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from mnist_ray import errors
from mnist_ray import tune as tune_command
from mnist_ray.cluster import tracking
from mnist_ray.cluster.connect import free_port

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of its packages


@pytest.fixture(autouse=True)
def settings_of_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_ADDRESS", "http://nowhere")  # should a study start all the same
    monkeypatch.setattr(tracking, "ANSWER_WITHIN", 3)


@pytest.mark.parametrize("where", ["http://127.0.0.1:{port}", "sqlite:////proc/x.db", "foo://x"])
def test_a_server_that_does_not_answer(
    where: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    track = f"mlflow={where.format(port=free_port())}"
    began = time.monotonic()
    flags = ["--track", track, "--storage", str(tmp_path / "runs")]
    assert errors.run(tune_command.main, flags) == 2
    assert time.monotonic() - began < 30
    shown = capfd.readouterr()
    assert f"error: track is {track}, but MLflow cannot log there: " in shown.err
    assert shown.out == ""
    assert not list((tmp_path / "runs").glob("*"))


def test_a_folder_is_not_the_package(tmp_path: Path) -> None:
    (tmp_path / "wandb").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "mnist_ray.tune", "--track", "wandb", "--storage", "runs"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: track is wandb, but wandb is not installed; pip install 'mnist_ray[wandb]'.\n"
    )


class Server(tune.logger.LoggerCallback):  # type: ignore[misc]
    """Logs to a list, until it is gone."""

    def __init__(self) -> None:
        self.logged: list[str] = []

    def log_trial_start(self, trial: Any) -> None:
        self.logged.append("start")

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        raise ConnectionError("nobody\nis there")

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        self.logged.append("end")


def test_a_server_that_is_lost_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    server = Server()
    callback = tracking._forgiving(server, "mlflow")
    callback.setup()
    callback.on_trial_start(0, [], "trial")
    for _ in range(2):
        callback.on_trial_result(1, [], "trial", {})
    callback.on_trial_complete(1, [], "trial")
    assert server.logged == ["start"]
    assert capsys.readouterr().err == (
        "warning: mlflow failed, and the study goes on without it: nobody is there\n"
    )


def test_what_mlflow_is_told_is_told_for_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    logger, before = logging.getLogger("mlflow"), dict(os.environ)
    level = logger.level
    with tracking.impatient():
        assert logger.level == logging.WARNING
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "3"
    assert (logger.level, dict(os.environ)) == (level, before)
