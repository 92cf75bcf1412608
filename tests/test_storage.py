"""Folders and buckets behave alike. The bucket is on a local server of S3's protocol."""

import errno
import fcntl
import itertools
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from conftest import SECRET

from mnist_ray import errors, evaluate, results, storage, tables, train
from mnist_ray.config import Recipe, RunConfig
from mnist_ray.errors import UserError
from mnist_ray.fields import read_yaml
from mnist_ray.learn import checkpoint
from mnist_ray.learn.checkpoint import Checkpoint
from mnist_ray.learn.model import build
from mnist_ray.storage import Place
from mnist_ray.tables import run_folder

ROW = tables.trial_row(Recipe().model_dump(), [], run="a", trial=0, status="failed")


def test_a_folder_and_a_bucket_are_the_same(home: Place) -> None:
    assert list(home.glob("*")) == []
    run = home / "run"
    assert not run.exists()
    storage.make(home)
    storage.make(run)
    for name in ("b.txt", "a.txt"):
        storage.write(run / name, b"12")
    storage.make(run / "inner")
    storage.write(run / "inner" / "c", b"345")
    storage.write(run / "a.txt", b"1")  # replaces
    assert [each.name for each in run.glob("*.txt")] == ["a.txt", "b.txt"] or isinstance(run, Path)
    assert {storage.relative(each, home) for each in home.glob("run/*")} == {
        *("run/a.txt", "run/b.txt", "run/inner"),
    }
    assert (run / "a.txt").read_bytes() == b"1"
    assert (run / "b.txt").read_text(encoding="utf-8") == "12"
    assert run.is_dir()
    assert (run / "a.txt").is_file()
    assert not (run / "a.txt").is_dir()
    assert not (run / "none").exists()
    assert storage.size(run) == 1 + 2 + 3
    assert storage.modified(run / "b.txt") <= storage.modified(run / "a.txt")
    assert (run.parent, run.name) == (home, "run")
    assert pickle.loads(pickle.dumps(run)) == run
    with pytest.raises(FileNotFoundError):
        (run / "none").read_bytes()
    storage.remove(run / "inner")
    storage.remove(run / "inner")  # removing it again is no error
    assert not (run / "inner" / "c").exists()
    assert (run / "a.txt").exists()


def test_what_ray_calls_by_a_path(bucket: str, tmp_path: Path) -> None:
    remote = storage.place("storage", f"{bucket}/runs/a?region=us-east-1")
    assert str(remote / "b") == "s3://bucket/runs/a/b?region=us-east-1"
    assert storage.relative("bucket/runs/a/trial/checkpoint", remote) == "trial/checkpoint"
    assert storage.relative(str(tmp_path / "trial"), tmp_path) == "trial"


def test_a_run_in_a_bucket(home: Place, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunConfig(storage=str(home), name="a")
    folder = run_folder.folder_of(run, "train")
    with run_folder.locked(folder, "train", {"lr": 0.5}):
        pass
    tables.write(folder, [ROW], [])
    assert tables.read(folder).to_pylist()[0].items() >= ROW.items()
    with pytest.raises(UserError, match="name a is taken"):
        run_folder.folder_of(run, "train")
    with pytest.raises(UserError, match="holds no tune"):
        run_folder.folder_of(run.replace(resume=True), "tune")
    assert tables.recorded_settings(run.replace(resume=True), "train") == {"lr": 0.5}
    assert read_yaml(folder / "train.yaml") == {"lr": 0.5}
    assert errors.run(results.main, ["--storage", str(home)]) == 0
    shown = capsys.readouterr()
    assert str(folder) in shown.err
    assert "failed" in shown.out
    assert errors.run(results.main, [str(home / "b")]) == 2
    assert f"path {home / 'b'} holds no trials.parquet" in capsys.readouterr().err


def test_a_checkpoint_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    config = Recipe(epochs=1)
    state = {"model": build(config).state_dict(), "optimizer": {}, "epoch": 1}
    checkpoint.save(tmp_path, Checkpoint(state, config, [{"epoch": 1}], "0"))
    saved = (tmp_path / checkpoint.FILE).read_bytes()
    folder = storage.place("storage", f"{bucket}/checkpoints")
    storage.write(folder / "checkpoint_1" / checkpoint.FILE, saved)
    storage.write(folder / "checkpoint_2" / checkpoint.FILE, saved[:-100])
    assert list(checkpoint.readable(folder.glob("checkpoint_*"))) == [folder / "checkpoint_1"]
    assert checkpoint.load(f"{bucket}/checkpoints/checkpoint_1").recipe == config


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("", "is empty"),
        ("s3://no-such-bucket/runs", "there is no s3://no-such-bucket"),
        (f"s3://key:{SECRET}@bucket/runs", "has credentials in it"),
        ("ftps://bucket/runs", "Unrecognized filesystem type"),
        ("s3://bucket/runs?no_such_setting=1", "no_such_setting"),
        ("s3:///runs", "cannot be used"),
    ],
)
@pytest.mark.parametrize("command", ["train", "results", "evaluate"])
def test_what_cannot_be_used(
    uri: str, says: str, command: str, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main, flags = {
        "train": (train.main, ["--storage", uri]),
        "results": (results.main, [uri]),
        "evaluate": (evaluate.main, [uri]),
    }[command]
    assert errors.run(main, flags) == 2
    shown = capsys.readouterr().err
    assert says in shown
    assert len(shown.splitlines()) == 1
    assert SECRET not in shown
    assert {"train": "storage", "results": "path", "evaluate": "checkpoint"}[command] in shown


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///tmp/a%20b", "/tmp/a b"),
        ("FILE:///tmp/a", "/tmp/a"),
        ("file://localhost/tmp/a", "/tmp/a"),
        ("file:/tmp/a", "/tmp/a"),
        (Path("file:///tmp/a"), "/tmp/a"),  # pathlib makes this file:/tmp/a
        ("file:///tmp/%ff", "/tmp/\udcff"),
        ("/tmp/s3:/a", "/tmp/s3:/a"),
        ("./s3:/a", str(Path.cwd() / "s3:/a")),
    ],
)
def test_a_folder_of_this_machine(uri: str | Path, path: str) -> None:
    assert storage.place("storage", uri) == Path(path)
    assert storage.local("data_dir", uri) == Path(path)


@pytest.mark.parametrize("scheme", ["S3", "s3"])
def test_a_scheme_in_capitals(scheme: str, bucket: str) -> None:
    assert str(storage.place("storage", f"{scheme}://bucket/Runs")) == "s3://bucket/Runs"


NEARLY = ["s3:/bucket", "S3:/bucket", "gs:/bucket", "foo:/x", "s3:bucket", " s3:/b", "foo://x"]
NEARLY += ["file:tmp", "file://"]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        *itertools.product(
            ["s3//bucket", "file://host/tmp", *NEARLY],
            ["storage", "path", "checkpoint", "config"],
        ),
        # These fields are Paths, so two slashes become one before anything is checked.
        *itertools.product(NEARLY, ["data_dir", "report"]),
    ],
)
def test_what_is_nearly_a_uri_makes_no_folder(
    text: str, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main, flags = {
        "storage": (train.main, ["--storage", text]),
        "path": (results.main, [text]),
        "checkpoint": (evaluate.main, [text]),
        "config": (train.main, ["--config", text]),
        "data_dir": (train.main, ["--data-dir", text, "--storage", "runs"]),
        "report": (results.main, ["run", "--report", text]),
    }[field]
    if field == "report":
        storage.make(tmp_path / "run")
        tables.write(tmp_path / "run", [ROW], [])
    before = sorted(tmp_path.rglob("*"))
    assert errors.run(main, flags) == 2
    (tmp_path / "runs").exists() and (tmp_path / "runs").rmdir()
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(UserError, match=f"^{field} .* cannot be used: "):
        main(flags)


def test_a_name_that_no_one_chose_is_the_next_that_is_free(home: Place) -> None:
    storage.make(home)

    def taken(_: int) -> Place:
        with run_folder.locked(home / "train-1", "train", {"lr": 0.5}, rename=True) as folder:
            assert read_yaml(folder / "train.yaml") == {"lr": 0.5}
            return folder

    with ThreadPoolExecutor(4) as at_once:
        folders = list(at_once.map(taken, range(4)))
    assert len(set(folders)) == 4
    assert {each.name for each in folders} >= {"train-1"} or not isinstance(home, Path)
    assert not list(home.glob("*/*.claim-*"))
    with (
        pytest.raises(UserError, match="was just taken"),
        run_folder.locked(folders[0], "train", {"lr": 0.1}),
    ):
        pass
    assert read_yaml(folders[0] / "train.yaml") == {"lr": 0.5}


def as_nfs_does(file: Any, operation: int) -> None:
    """Refuse, as NFS does, an exclusive lock on a file that is not open for writing."""
    if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return flock(file, operation)


flock = fcntl.flock


def test_a_run_on_nfs_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", as_nfs_does)
    with ExitStack() as first:
        first.enter_context(run_folder.locked(tmp_path / "a", "train", {}))
        with (
            pytest.raises(UserError, match="a is being run by another process"),
            run_folder.locked(tmp_path / "a", "train", {}, resume=True),
        ):
            pass
    with run_folder.locked(tmp_path / "a", "train", {}, resume=True):
        pass


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOLCK, ""),
        (errno.EOPNOTSUPP, ""),
        (errno.ENOSYS, ""),
        (errno.EACCES, "name a is being run by another process"),
        (errno.EBADF, "train.yaml cannot be locked: Bad file descriptor"),
        (errno.EIO, "train.yaml cannot be locked: Input/output error"),
    ],
)
def test_what_a_file_system_says_of_locks(
    number: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with ExitStack() as stack:
        if says:
            stack.enter_context(pytest.raises(UserError, match=says))
        stack.enter_context(run_folder.locked(tmp_path / "a", "train", {}))


MAY_NOT_ENTER = [
    "train --storage {at}",
    "train --storage {at}/inner",
    "train --storage {open} --name shut --resume",
    "train --storage {open} --data-dir {at}",
    "train --config {at}/best.yaml",
    "results {at}",
    "results --storage {at}",
    "evaluate {at}",
]


def test_a_folder_that_may_not_be_entered(tmp_path: Path) -> None:
    shut = tmp_path / "open" / "shut"
    shut.mkdir(parents=True)
    shut.chmod(0)
    # Root may enter any folder, unless it runs without these two capabilities.
    less = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if not os.geteuid() else []
    lines = [each.format(at=shut, open=tmp_path / "open") for each in MAY_NOT_ENTER]
    # One process for all, because each command imports PyTorch or Ray.
    code = f"""
import sys
from mnist_ray import errors, evaluate, results, train
commands = {{"evaluate": evaluate.main, "results": results.main, "train": train.main}}
for line in {lines!r}:
    command, *flags = line.split()
    print(line, file=sys.stderr)
    print("exit code", errors.run(commands[command], flags), file=sys.stderr)
"""
    done = subprocess.run([*less, sys.executable, "-c", code], capture_output=True, text=True)
    shut.chmod(0o700)
    said = done.stderr.splitlines()
    assert (done.returncode, said[0::3]) == (0, lines), done.stderr
    for line, error, code in zip(said[0::3], said[1::3], said[2::3], strict=True):
        assert code == "exit code 2", line
        assert error.startswith("error: "), line
        assert "may not enter" in error or "Permission denied" in error, line
