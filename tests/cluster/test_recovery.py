"""What happens to machines and people, really done to runs: signals, kills, lost nodes, full disks.

`make recovery` runs these. Each run is a process of its own, as a user starts it.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from conftest import ANY_PORT, SECRET, s3_server
from optuna_journal import assert_like_tables

from mnist_ray import errors, tables, train, tune
from mnist_ray.cluster import connect
from mnist_ray.config import Recipe
from mnist_ray.learn import checkpoint, data, engine, process
from mnist_ray.learn.data import Mnist
from mnist_ray.storage import Place

pytestmark = pytest.mark.recovery

# About a second an epoch. The default of 10,000 held-out images would take as long to score.
HOLDOUT = ["--holdout", "101"]
STUDY = ["--train-size", "3000", "--epochs", "4", "--num-trials", "4", "--scheduler", "fifo"]
STUDY = [*STUDY, *HOLDOUT, "--confirm", "0", "--seed", "3"]
SAME = ("phase", "status", "lr", "momentum", "dropout", "seed", "final_loss", "final_accuracy")


class Run:
    """A command as it runs, in a session of its own; what it prints goes to a file."""

    def __init__(
        self, output: Path, command: str, *flags: str, before: Sequence[str] = (), **env: str
    ) -> None:
        self.output = output
        with output.open("w") as file:
            self.process = subprocess.Popen(
                [*before, sys.executable, "-u", "-m", f"mnist_ray.{command}", *flags],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **env},
                preexec_fn=_heed_all,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self.output.read_text()

    def processes(self) -> list[psutil.Process]:
        """What it started and still lives, also where its parents are gone."""
        found = []
        for each in psutil.process_iter(["cmdline", "status"]):
            with contextlib.suppress(ProcessLookupError):
                ended = each.info["status"] == psutil.STATUS_ZOMBIE
                if not ended and os.getsid(each.pid) == self.process.pid:
                    found.append(each)
        return found

    def wait_for(self, condition: Callable[[], Any], seconds: float = 240) -> Any:
        for _ in range(int(seconds / 0.05)):
            if value := condition():
                return value
            assert self.process.poll() is None, self.text
            time.sleep(0.05)
        raise AssertionError(f"it did not come to it: {self.text}")

    def end(self, seconds: float = 240) -> int:
        try:
            return self.process.wait(seconds)
        finally:
            self.process.kill()


def _heed_all() -> None:
    """Where the tests run in the background, Ctrl-C is ignored, and under nohup SIGHUP; what they
    start inherits that."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def table(folder: Place, name: str = tables.TRIALS) -> list[dict[str, Any]]:
    return tables.read(folder, name).to_pylist()


def those_of(before: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the same trials, but for the score on the test set and the winner, which come at
    the end."""
    ended = {row["trial"] for row in before}
    scored = {"test_accuracy": None, "test_loss": None, "winner": None}
    return [row | scored for row in rows if row["trial"] in ended]


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    *_, last = checkpoint.readable(folder.glob("checkpoint_*")).values()
    return last.state["model"]


def kill(title: str) -> None:
    """SIGKILL for the newest process that these tests started whose title has that in it."""
    max(_titled(title), key=psutil.Process.create_time).kill()


def _titled(title: str) -> list[psutil.Process]:
    """Those that these tests started, and not another's on this machine."""
    return [each for each in psutil.Process().children(recursive=True) if title in _title(each)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""


def _folder(process: psutil.Process) -> Path:
    """The folder that it is in: that of its trial while it trains one."""
    try:
        return Path(process.cwd())
    except psutil.Error:  # it has just ended
        return Path()


def saved(folder: Path) -> int:
    """How many checkpoints are there to go on from. Once there is one, several epochs are still to
    come in which a kill hits."""
    return len(checkpoint.readable(folder.glob("checkpoint_*")))


@pytest.mark.usefixtures("ray_cluster", "mnist")
def test_a_killed_worker_changes_no_bit(storage: Path, tmp_path: Path) -> None:
    # The next test has the same of one worker.
    flags = ["--train-size", "4000", "--epochs", "5", "--num-workers", "2"]
    flags = [*flags, *HOLDOUT, "--cpus-per-worker", "1", "--storage", str(storage)]
    run = Run(tmp_path / "out", "train", *flags, "--name", "killed")
    run.wait_for(lambda: saved(storage / "killed"))
    kill("RayTrainWorker")
    assert run.end() == 0, run.text
    assert "a worker was lost; going on after epoch" in run.text, run.text
    epochs = [row["epoch"] for row in table(storage / "killed", tables.EPOCHS)]
    assert epochs == [1, 2, 3, 4, 5]
    weights = last_weights(storage / "killed")
    assert errors.run(train.main, [*flags, "--name", "undisturbed"]) == 0
    undisturbed = last_weights(storage / "undisturbed")
    assert weights.keys() == undisturbed.keys()
    assert all(torch.equal(weights[name], undisturbed[name]) for name in weights)


@pytest.mark.usefixtures("ray_cluster")
def test_a_training_run_goes_on_after_all_that_went_wrong(
    storage: Path, tmp_path: Path, mnist: Mnist
) -> None:
    folder = storage / "it"
    flags = ["--train-size", "3000", *HOLDOUT, "--epochs", "6", "--cpus-per-worker", "1"]
    flags = [*flags, "--storage", str(storage), "--name", "it"]
    once = Run(tmp_path / "once", "train", *flags, "--max-failures", "0")
    once.wait_for(lambda: saved(folder))
    kill("RayTrainWorker")
    assert once.end() == 1, once.text
    assert "error: training stopped" in once.text.splitlines()[-1]
    assert [row["status"] for row in table(folder)] == ["failed"]

    twice = Run(tmp_path / "twice", "train", *flags, "--resume")
    twice.wait_for(lambda: "epoch 3/6" in twice.text)
    twice.process.kill()
    twice.process.wait()
    assert "going on after epoch" in twice.text
    assert [row["status"] for row in table(folder)] == ["running"]
    for _ in range(600):  # until its workers have ended
        if not _titled("RayTrainWorker"):
            break
        time.sleep(0.1)

    # As if it was killed while it wrote.
    *_, newest = checkpoint.readable(folder.glob("checkpoint_*"))
    for torn in (newest / checkpoint.FILE, folder / "checkpoint_manager_snapshot.json"):
        torn.write_bytes(torn.read_bytes()[:-100])
    third = Run(tmp_path / "third", "train", *flags, "--resume")
    assert third.end() == 0, third.text
    assert [row["epoch"] for row in table(folder, tables.EPOCHS)] == [1, 2, 3, 4, 5, 6]
    config = Recipe(train_size=3000, holdout=101, epochs=6)
    process.prepare(1)
    undisturbed = engine.fit(config, data.split(mnist, 101, 3000)).state_dict()
    weights = last_weights(folder)
    assert all(torch.equal(weights[name], undisturbed[name]) for name in undisturbed)
    (row,) = table(folder)
    assert row["status"] == "ok"
    kept = [path for path in folder.glob("checkpoint_*") if path.is_dir()]
    assert len(kept) <= 2  # the best and the last


@pytest.mark.usefixtures("ray_cluster")
def test_a_data_parallel_trial_goes_on_when_a_worker_is_killed(
    storage: Path, tmp_path: Path
) -> None:
    flags = ["--workers-per-trial", "2", "--num-trials", "1", "--no-base", "--train-size", "4000"]
    flags = [*flags, *HOLDOUT, "--epochs", "5", "--storage", str(storage), "--name", "it"]
    run = Run(tmp_path / "out", "tune", *flags)
    run.wait_for(lambda: any(map(saved, storage.glob("it/workers/trial_*"))))
    kill("RayTrainWorker")
    assert run.end() == 0, run.text
    assert "goes on after epoch" in run.text
    (row,) = table(storage / "it")
    assert (row["status"], row["epochs_trained"]) == ("ok", 5)
    assert [each["epoch"] for each in table(storage / "it", tables.EPOCHS)] == [1, 2, 3, 4, 5]


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """What the trials of a study come to that nothing disturbs, and to which none was added."""
    storage = tmp_path_factory.mktemp("undisturbed")
    flags = [*STUDY, "--num-trials", "5", "--storage", str(storage), "--name", "undisturbed"]
    assert errors.run(tune.main, flags) == 0
    return [[row[name] for name in SAME] for row in table(storage / "undisturbed")]


def test_a_study_survives_its_trial_and_its_driver(
    home: Place, tmp_path: Path, undisturbed: list[list[Any]]
) -> None:
    folder = home / "killed"
    flags = [*STUDY, "--storage", str(home)]
    run = Run(tmp_path / "out", "tune", *flags, "--name", "killed")
    run.wait_for(lambda: list(folder.glob("trial_00001/checkpoint_*/checkpoint.pt")))
    # Not the newest process: one that has ended a trial trains another, and the newest may still be
    # starting.
    (trains,) = (each for each in _titled("ImplicitFunc") if _folder(each).name == "trial_00001")
    trains.kill()
    run.wait_for(lambda: re.search("^search +1 .*: its process died$", run.text, re.MULTILINE))
    run.wait_for(lambda: list(folder.glob("trial_0000[23]/checkpoint_*/checkpoint.pt")))
    run.process.kill()
    run.process.wait()
    before = table(folder)
    assert 0 < len(before) < 4

    # The command that a user would type, once more; and the same with --resume.
    assert errors.run(tune.main, [*flags, "--name", "killed"]) == 2
    assert table(folder) == before
    flags = [*flags, "--num-trials", "5"]  # and a trial more
    again = Run(tmp_path / "again", "tune", *flags, "--name", "killed", "--resume")
    assert again.end() == 0, again.text
    after = table(folder)
    assert those_of(before, after) == those_of(before, before)
    assert_like_tables(folder, ["lr", "momentum", "dropout"], copy=tmp_path / "optuna.log")
    assert [[row[name] for name in SAME] for row in after] == undisturbed
    assert [(row["trial"], row["epoch"]) for row in table(folder, tables.EPOCHS)] == [
        (trial, epoch) for trial in range(5) for epoch in (1, 2, 3, 4)
    ]
    for row in after:  # bounded: the best, and the last where it is another
        kept = list(folder.glob(f"trial_{row['trial']:05}*/checkpoint_*"))
        assert len(kept) <= 2
        assert folder / row["checkpoint"] in kept
    # One that was done was gone on with, not begun again.
    gone_on = [path for path in folder.glob("trial_0000?-1") if list(path.glob("checkpoint_*"))]
    assert gone_on


def left(run: Run, temporary: Path) -> set[str]:
    """What is there of a run: processes, temporary files, and blocks of shared memory."""
    processes = {f"process {each.pid} {_title(each)[:80]}" for each in run.processes()}
    return processes | {str(path) for path in temporary.glob("*")} | shared_memory()


def shared_memory() -> set[str]:
    ours = ("mnist_ray", "ray", "plasma", "torch", "pymp")
    return {str(path) for path in Path("/dev/shm").glob("*") if path.name.startswith(ours)}


def outlives(run: Run, temporary: Path, before: set[str], stay: Sequence[str]) -> set[str]:
    """What is left of a run after a minute, or nothing as soon as that is so; except for what has
    one of the words of `stay` in it."""
    for _ in range(600):
        outlived = {
            each for each in left(run, temporary) - before if not any(word in each for word in stay)
        }
        if not outlived:
            break
        time.sleep(0.1)
    return outlived


def assert_it_listens_on_loopback_alone(run: Run) -> None:
    titles = {each.pid: _title(each) for each in run.processes()}
    listening = [
        (connection.laddr.ip.removeprefix("::ffff:"), titles[connection.pid])
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.pid in titles
    ]
    assert len(listening) > 5
    elsewhere = [title for ip, title in listening if ip != "127.0.0.1"]
    # PyTorch's store, where workers find each other: it has no setting for this.
    assert all("RayTrainWorker" in title for title in elsewhere)
    assert len(elsewhere) <= 1


@pytest.mark.parametrize(
    ("command", "number", "code", "says"),
    [
        ("train", None, 0, "mnist_ray.evaluate /"),
        ("train --no-in-process", signal.SIGINT, 130, "--resume --name it"),
        ("tune --workers-per-trial 2", signal.SIGINT, 130, "--resume --name it"),
        ("train", signal.SIGTERM, 143, "--resume --name it"),
        ("tune", signal.SIGHUP, 129, ""),
        ("tune", signal.SIGKILL, -9, ""),
    ],
)
def test_nothing_outlives_a_run(
    command: str,
    number: signal.Signals | None,
    code: int,
    says: str,
    storage: Path,
    tmp_path: Path,
    temporary: Path,
    alone: None,
) -> None:
    before = shared_memory()
    epochs = "50" if number else "1"
    flags = ["--train-size", "2000", *HOLDOUT, "--epochs", epochs]
    flags += ["--storage", str(storage), "--name", "it"]
    command, *more = command.split()
    flags += ["--scheduler", "fifo"] if command == "tune" else []
    home = {"RAY_TMPDIR": str(temporary), "TMPDIR": str(temporary)}
    run = Run(tmp_path / "out", command, *flags, *more, **home)
    if number:
        # A trial goes on to its second epoch when the driver has taken note of its first.
        second, workers = (storage / "it" / folder / "trial_00000" for folder in (".", "workers"))
        second /= "checkpoint_000001"
        run.wait_for(lambda: "epoch  1/50" in run.text or second.exists() or saved(workers) > 1)
        if command == "tune":
            assert_it_listens_on_loopback_alone(run)
        run.process.send_signal(number)
    assert run.end() == code, run.text
    assert says in run.text
    assert "Traceback" not in run.text
    # What is killed cannot clear up: Ray's folder of logs and sockets stays, and its agents, which
    # hold nothing, take a minute to find themselves alone.
    stay = [f"{temporary}/", "Agent"] if code == -9 else []
    assert not outlives(run, temporary, before, stay)
    if number == signal.SIGINT:
        assert run.text.splitlines()[-1] == "interrupted"
    if number and number != signal.SIGKILL:
        epochs_done = table(storage / "it", tables.EPOCHS)
        assert epochs_done  # what was found so far is in the tables


@pytest.mark.parametrize("started", ["gcs_server", "raylet/raylet"])
def test_a_signal_while_ray_starts(
    started: str, storage: Path, tmp_path: Path, temporary: Path, alone: None
) -> None:
    before = shared_memory()
    home = {"RAY_TMPDIR": str(temporary), "TMPDIR": str(temporary)}
    flags = ["--no-in-process", "--storage", str(storage), "--name", "it"]
    run = Run(tmp_path / "out", "train", *flags, **home)
    run.wait_for(lambda: any(started in _title(each) for each in run.processes()))
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 143, run.text
    assert run.text.splitlines()[-1] == "interrupted"
    assert not outlives(run, temporary, before, [])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """One of a megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system can be mounted by root alone")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.usefixtures("ray_cluster")
def test_a_full_disk_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    folder = small_disk / "full"
    flags = ["--train-size", "300", "--epochs", "3", "--num-trials", "10", "--scheduler", "fifo"]
    flags = [*flags, *HOLDOUT, "--confirm", "0", "--storage", str(small_disk), "--name", "full"]
    full = Run(tmp_path / "full", "tune", *flags)
    assert full.end() == 1, full.text
    assert "error: a disk is full" in full.text.splitlines()[-1]
    assert "Traceback" not in full.text
    before = table(folder)
    assert 0 < len(before) < 10
    for row in before:
        assert row["status"] == "ok"
        checkpoint.load(folder / row["checkpoint"])
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    again = Run(tmp_path / "again", "tune", *flags, "--resume")
    assert again.end() == 0, again.text
    after = table(folder)
    assert [row["trial"] for row in after if row["status"] == "ok"] == list(range(10))
    assert those_of(before, after) == those_of(before, before)


def test_a_bucket_that_is_lost_ends_a_study(tmp_path: Path, alone: None) -> None:
    flags = [*STUDY, "--storage", "s3://bucket/runs", "--name", "lost"]
    with s3_server() as server:
        run = Run(tmp_path / "out", "tune", *flags)
        run.wait_for(lambda: "search    0" in run.text)
        server.kill()
        assert run.end() == 1, run.text
    assert "Traceback" not in run.text
    *_, resume, error = run.text.splitlines()
    assert "--resume --name lost --storage s3://bucket/runs" in resume
    assert error.startswith("error: storage s3://bucket/runs/lost failed: ")
    assert "AWS Error NETWORK_CONNECTION" in error
    assert SECRET not in run.text


@pytest.fixture
def two_nodes() -> Iterator[Any]:
    """Two raylets on this machine, with a core each."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        port = connect.free_port()
        patch.setenv(connect.API_SERVER, f"http://127.0.0.1:{port}")
        patch.setenv("RAY_health_check_period_ms", "500")  # 3 s otherwise, of which five must fail
        head = {"num_cpus": 1, "include_dashboard": True, "dashboard_port": port}
        nodes = Cluster(initialize_head=True, head_node_args={**head, **ANY_PORT})
        patch.setenv("RAY_ADDRESS", nodes.address)
        nodes.add_node(num_cpus=1)
        nodes.wait_for_nodes()
        yield nodes
        nodes.shutdown()


def lose_a_node(nodes: Any) -> None:
    (worker,) = nodes.worker_nodes
    nodes.remove_node(worker, allow_graceful=False)


def test_a_study_goes_on_when_a_node_is_lost(two_nodes: Any, storage: Path, tmp_path: Path) -> None:
    flags = [*STUDY[:2], "--epochs", "6", *STUDY[4:], "--storage", str(storage)]
    run = Run(tmp_path / "out", "tune", *flags, "--name", "lost")
    run.wait_for(lambda: all(saved(storage / f"lost/trial_0000{i}") for i in (0, 1)))
    lose_a_node(two_nodes)
    assert run.end() == 0, run.text
    rows = table(storage / "lost")
    assert [(row["trial"], row["status"]) for row in rows] == [(i, "ok") for i in range(4)]
    assert "goes on after epoch" in run.text or "starts again" in run.text


def test_training_goes_on_with_fewer_workers_when_a_node_is_lost(
    two_nodes: Any, storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray Train asks for both workers until it knows, and waits this long for them; 60 s otherwise.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
    flags = ["--num-workers", "1:2", "--train-size", "6001", *HOLDOUT, "--epochs", "6"]
    run = Run(tmp_path / "out", "train", *flags, "--storage", str(storage), "--name", "lost")
    run.wait_for(lambda: saved(storage / "lost"))
    lose_a_node(two_nodes)
    assert run.end(240) == 0, run.text
    epochs = table(storage / "lost", tables.EPOCHS)
    assert [row["epoch"] for row in epochs] == [1, 2, 3, 4, 5, 6]
    assert epochs[0]["workers"] == 2
    assert epochs[-1]["workers"] == 1
    # The batch is the config's with any number: as many steps, over as many images.
    steps = {round(row["images_per_second"] * row["train_seconds"]) for row in epochs}
    assert steps == {6_001}
