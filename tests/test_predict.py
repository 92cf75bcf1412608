"""`predict` on MNIST's own images, on ten pictures such as people take, and on what is no digit."""

import json
from pathlib import Path

import numpy as np
import photographs
import pytest
from PIL import Image

from mnist_ray import errors, learn, predict
from mnist_ray.learn import Mnist


def said(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert errors.run(predict.main, argv) == 0
    return capsys.readouterr().out


def test_mnists_own_images_are_predicted_as_evaluate_does(
    winner: Path, mnist: Mnist, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(tmp_path / f"{index:03}.png") for index in range(200)]
    for name, image in zip(names, mnist.test_images, strict=False):
        Image.fromarray(image).save(name)
    found = json.loads(said([str(winner), *names, "--format", "json"], capsys))
    assert [row["file"] for row in found] == names
    saved = learn.load_checkpoint(winner)
    network = learn.Classifier(learn.load_model(saved), saved.recipe)
    digits, probabilities = network.predict(mnist.test_images[:200])
    same = [row["digit"] == digit for row, digit in zip(found, digits, strict=True)]
    known = probabilities.max(axis=1)
    close = [abs(row["probability"] - each) for row, each in zip(found, known, strict=True)]
    assert sum(same) >= 199
    assert np.quantile(close, 0.95) < 0.02


def test_pictures_such_as_people_take(
    winner: Path, mnist: Mnist, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each scene shows another digit, 0 to 9. All are read, at most two with a doubt."""
    rng = np.random.default_rng(0)
    names = []
    for digit, (name, scene) in enumerate(photographs.SCENES.items()):
        image = mnist.test_images[np.flatnonzero(mnist.test_labels == digit)[0]]
        names.append(str(tmp_path / f"{name}.jpg"))
        scene(image, rng).save(names[-1], quality=70)
    found = json.loads(said([str(winner), *names, "--format", "json"], capsys))
    assert [row["digit"] for row in found] == list(range(10))
    doubts = [row["warning"] for row in found if row["warning"]]
    assert set(doubts) <= {"no digit? the guess is unsure"}
    assert len(doubts) <= 2


def test_the_table_has_a_line_for_each_picture(
    winner: Path, mnist: Mnist, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = tmp_path / "one.png", tmp_path / "other.png"
    Image.fromarray(mnist.test_images[0]).save(one)
    Image.new("L", (200, 100), 255).save(other)
    head, *lines = said([str(winner), str(one), str(other)], capsys).splitlines()
    assert head.split() == ["file", "digit", "probability", "warning"]
    assert lines[0].startswith(f"{one} ")
    assert lines[0].split()[1] == "7"
    assert lines[0].endswith("%")
    assert lines[1].startswith(f"{other} ")
    assert lines[1].endswith("no digit? it is blank")


def test_a_bad_picture_among_good_ones_is_refused_before_anything_is_said(
    winner: Path, mnist: Mnist, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(mnist.test_images[0]).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("a seven")
    names = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert errors.run(predict.main, [str(winner), *names]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"error: image {names[1]} is neither a PNG nor a JPEG file.\n"
