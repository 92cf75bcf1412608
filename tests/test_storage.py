"""A bucket is used as a folder is, over HTTP to a server of S3's protocol."""

import pickle
from pathlib import Path

import pytest
from conftest import SECRET

from mnist_ray import checkpoint, errors, evaluate, results, runs, storage, tables, train
from mnist_ray.checkpoint import Checkpoint
from mnist_ray.config import RunConfig, TrainConfig
from mnist_ray.errors import UserError
from mnist_ray.fields import read_yaml
from mnist_ray.model import build
from mnist_ray.storage import Place

ROW = tables.trial_row(TrainConfig().model_dump(), [], run="a", trial=0, status="failed")


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
    storage.remove(run / "inner")  # is gone already
    assert not (run / "inner" / "c").exists()
    assert (run / "a.txt").exists()


def test_what_ray_calls_by_a_path(bucket: str, tmp_path: Path) -> None:
    remote = storage.place("storage", f"{bucket}/runs/a?region=us-east-1")
    assert str(remote / "b") == "s3://bucket/runs/a/b?region=us-east-1"
    assert storage.relative("bucket/runs/a/trial/checkpoint", remote) == "trial/checkpoint"
    assert storage.relative(str(tmp_path / "trial"), tmp_path) == "trial"


def test_a_run_in_a_bucket(home: Place, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunConfig(storage=str(home), name="a")
    folder = runs.folder(run, "train")
    with runs.claimed(folder, "train", {"lr": 0.5}):
        pass
    tables.write(folder, [ROW], [])
    assert tables.read(folder).to_pylist()[0].items() >= ROW.items()
    with pytest.raises(UserError, match="name a is taken"):
        runs.folder(run, "train")
    with pytest.raises(UserError, match="holds no tune"):
        runs.folder(run.replace(resume=True), "tune")
    assert runs.settings(run.replace(resume=True), "train") == {"lr": 0.5}
    assert read_yaml(folder / "train.yaml") == {"lr": 0.5}
    assert errors.run(results.main, ["--storage", str(home)]) == 0
    shown = capsys.readouterr()
    assert str(folder) in shown.err
    assert "failed" in shown.out
    assert errors.run(results.main, [str(home / "b")]) == 2
    assert f"path {home / 'b'} holds no trials.parquet" in capsys.readouterr().err


def test_a_checkpoint_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    config = TrainConfig(epochs=1)
    state = {"model": build(config).state_dict(), "optimizer": {}, "epoch": 1}
    checkpoint.save(tmp_path, Checkpoint(state, config, [{"epoch": 1}], "0"))
    saved = (tmp_path / checkpoint.FILE).read_bytes()
    folder = storage.place("storage", f"{bucket}/checkpoints")
    storage.write(folder / "checkpoint_1" / checkpoint.FILE, saved)
    storage.write(folder / "checkpoint_2" / checkpoint.FILE, saved[:-100])
    assert list(checkpoint.whole(folder.glob("checkpoint_*"))) == [folder / "checkpoint_1"]
    assert checkpoint.load(f"{bucket}/checkpoints/checkpoint_1").config == config


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
