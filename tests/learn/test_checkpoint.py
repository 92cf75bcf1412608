import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mnist_ray import errors, evaluate
from mnist_ray.config import Recipe
from mnist_ray.errors import UserError
from mnist_ray.learn import checkpoint, data, engine, scoring
from mnist_ray.learn.checkpoint import FILE, Checkpoint
from mnist_ray.learn.data import Mnist


@pytest.fixture(scope="module")
def saved(small: Mnist, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    config = Recipe(epochs=1, train_size=128, holdout=200)
    splits = data.split(small, 200, 128)

    def on_epoch(metrics: engine.Metrics, state: engine.State) -> None:
        checkpoint.save(folder, Checkpoint(state, config, [metrics], splits.hash))

    engine.fit(config, splits, on_epoch=on_epoch)
    return folder


def test_a_saved_checkpoint_is_loaded_unchanged(saved: Path, small: Mnist) -> None:
    loaded = checkpoint.load(saved)
    assert loaded.recipe == Recipe(epochs=1, train_size=128, holdout=200)
    assert loaded.split_hash == data.split(small, 200, 128).hash
    score = engine.evaluate(scoring.load_model(loaded), data.split(small, 200, 128).score)
    assert score.accuracy == loaded.epochs[-1]["accuracy"]
    assert score.loss == loaded.epochs[-1]["loss"]
    assert [path.name for path in saved.iterdir()] == [FILE]


@pytest.mark.parametrize("fraction", [0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(saved: Path, tmp_path: Path, fraction: float) -> None:
    content = (saved / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.load(tmp_path)


def test_a_flipped_bit_is_found(saved: Path, tmp_path: Path) -> None:
    content = bytearray((saved / FILE).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("changes", [{"recipe": 3}, {"recipe": {"lr": 99}}, {"state": []}])
def test_the_right_format_with_wrong_contents_is_refused(
    saved: Path, tmp_path: Path, changes: dict
) -> None:
    content = torch.load(saved / FILE, weights_only=True)
    torch.save({**content, **changes}, tmp_path / FILE)
    with pytest.raises(UserError, match="is not a checkpoint of mnist_ray"):
        checkpoint.load(tmp_path)


def test_weights_of_another_network_are_refused(saved: Path) -> None:
    other = checkpoint.load(saved)._replace(recipe=Recipe(batch_norm=False))
    with pytest.raises(UserError, match="other weights than its recipe asks for"):
        scoring.load_model(other)


def test_no_code_runs_from_a_checkpoint(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "hacked"),)

    (tmp_path / FILE).write_bytes(pickle.dumps(Attack()))
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.load(tmp_path)
    torch.save({"format": 1, "state": Attack()}, tmp_path / FILE)
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.load(tmp_path)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"weights": 1}, "is not a checkpoint of mnist_ray"),
        ([1], "is not a checkpoint of mnist_ray"),
        ({"format": checkpoint.FORMAT + 1}, "another version"),
        ({"format": 2}, "was written by version 0.1.0 of mnist_ray; read it with that"),
        ({"format": checkpoint.FORMAT}, "is not a checkpoint of mnist_ray"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path: Path, content: object, says: str) -> None:
    torch.save(content, tmp_path / FILE)
    with pytest.raises(UserError, match=says):
        checkpoint.load(tmp_path)


def test_the_error_for_a_folder_without_a_checkpoint_names_it(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=rf"checkpoint {folder} holds no"):
            checkpoint.load(folder)


def test_evaluate_prints_the_score_and_the_worst_images(
    saved: Path, mnist: Mnist, capsys: pytest.CaptureFixture[str]
) -> None:
    assert errors.run(evaluate.main, [str(saved), "--worst", "3"]) == 0
    out = capsys.readouterr().out
    score = scoring.score_test(saved, mnist)
    assert out.startswith(f"test accuracy {score.accuracy:.2%} of 10,000 images (95 % interval ")
    assert out.count("\n  image ") == 3


def test_the_report_counts_every_image_once(saved: Path, small: Mnist) -> None:
    part = data.test_part(small)
    network = scoring.load_model(checkpoint.load(saved))
    report = scoring.report(network, part)
    assert report.confusion.sum() == 101
    assert report.confusion.trace() == round(report.score.accuracy * 101)
    assert (
        report.confusion.sum(1).tolist()
        == torch.bincount(part.labels.long(), minlength=10).tolist()
    )
    assert len(report.wrong) == 101 - report.confusion.trace()
    certain = [probability for *_, probability in report.wrong]
    assert certain == sorted(certain, reverse=True)
    assert all(part.labels[index] == label != guess for index, label, guess, _ in report.wrong)


def test_a_write_that_is_killed_leaves_the_old_file(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    before = (tmp_path / FILE).read_bytes()
    code = f"""
import os
from pathlib import Path
from mnist_ray.learn import checkpoint
old = checkpoint.load(Path({str(tmp_path)!r}))
write = Path.write_bytes
def killed(path, content):
    write(path, content[:1000])
    os.kill(os.getpid(), 9)
Path.write_bytes = killed
checkpoint.save(Path({str(tmp_path)!r}), old)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert (tmp_path / FILE).read_bytes() == before
    checkpoint.load(tmp_path)
