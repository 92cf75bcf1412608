"""Every exported file is read back by its own reader, and predicts what the checkpoint does."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mnist_ray import config, errors, export, learn, tables
from mnist_ray.learn import Mnist

FORMATS = ("safetensors", "onnx", "pt2")


@pytest.fixture(scope="module")
def files(winner: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the winner in every format. It lies in a run's folder, with the run's table."""
    folder = tmp_path_factory.mktemp("exported")
    run = folder / "run"
    shutil.copytree(winner, run / "trial_00002" / "checkpoint_000001")
    (run / "tune.yaml").write_text("{}")
    saved = learn.load_checkpoint(winner)
    known = {"checkpoint": "trial_00002/checkpoint_000001", "trial": 2, "commit": "abc1234"}
    row = tables.trial_row(saved.recipe.model_dump(), saved.epochs, run="run", **known)
    tables.write(run, [row], [])
    for form in FORMATS:
        argv = [str(run / "trial_00002" / "checkpoint_000001"), "--format", form]
        assert errors.run(export.main, [*argv, "--output", str(folder / f"x.{form}")]) == 0
    return folder


@pytest.fixture(scope="module")
def expected(winner: Path, mnist: Mnist) -> np.ndarray:
    """The probabilities of the 10,000 test images, by the checkpoint."""
    network = learn.load_model(learn.load_checkpoint(winner))
    return learn.predict(network, learn.test_part(mnist))[1].exp().numpy()


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.float32
    assert np.array_equal(found.argmax(1), expected.argmax(1))
    assert np.abs(found - expected).max() < 1e-4


def test_onnxruntime_predicts_the_same(files: Path, expected: np.ndarray, mnist: Mnist) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(files / "x.onnx")
    assert [(each.name, each.type) for each in session.get_inputs()] == [
        ("images", "tensor(uint8)")
    ]
    for n in (1, 3, 10_000):
        (found,) = session.run(None, {"images": mnist.test_images[:n]})
        assert_same(found, expected[:n])
    about = session.get_modelmeta().custom_metadata_map
    assert config.Recipe(**json.loads(about["recipe"])).train_size == 10_000
    import onnx

    model = onnx.load(files / "x.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    onnx.checker.check_model(model, full_check=True)


def test_pt2_predicts_the_same_where_mnist_ray_is_not_installed(
    files: Path, expected: np.ndarray, mnist: Mnist, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", mnist.test_images)
    code = f"""
import sys
sys.modules["mnist_ray"] = None  # any import of it now fails
import numpy, torch
network = torch.export.load({str(files / "x.pt2")!r}).module()
images = torch.from_numpy(numpy.load("images.npy"))
numpy.savez("found.npz", *(network(images[:n]).numpy() for n in (1, 3, 10_000)))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    for name, n in (("arr_0", 1), ("arr_1", 3), ("arr_2", 10_000)):
        assert_same(found[name], expected[:n])


def test_safetensors_holds_the_same_bits_and_the_recipe(files: Path, winner: Path) -> None:
    from safetensors import safe_open

    saved = learn.load_checkpoint(winner)
    with safe_open(files / "x.safetensors", "pt") as file:
        about = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert weights.keys() == saved.state["model"].keys()
    for name, value in saved.state["model"].items():
        assert weights[name].dtype == value.dtype
        assert torch.equal(weights[name], value)
    assert config.Recipe(**json.loads(about["recipe"])) == saved.recipe


@pytest.mark.parametrize("form", FORMATS)
def test_what_the_card_says_is_true(
    form: str, files: Path, winner: Path, mnist: Mnist, expected: np.ndarray
) -> None:
    card = (files / f"x.{form}.md").read_text()
    accuracy = learn.score_test(winner, mnist).accuracy
    assert f"Test accuracy {accuracy:.2%} of 10,000 images (95 % interval " in card
    assert "\n- run: run\n- trial: 2\n" in card
    assert "- trained with: commit abc1234" in card
    recipe = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert config.Recipe(**recipe) == learn.load_checkpoint(winner).recipe
    # Its lines load the file.
    lines = card.split("```python\n")[1].split("```")[0]
    known: dict = {"images": mnist.test_images[:20]}
    if form == "pt2":
        known["images"] = torch.from_numpy(known["images"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(files)
        exec(lines, known)
    if form != "safetensors":
        assert_same(np.asarray(known["probabilities"]), expected[:20])
    else:
        network = learn.load_model(learn.load_checkpoint(winner))
        images = torch.randn(3, 1, 28, 28)
        with torch.no_grad():
            assert torch.equal(known["network"](images), network(images))


def test_a_checkpoint_outside_its_run_says_so(winner: Path, tmp_path: Path) -> None:
    argv = [str(winner), "--format", "safetensors", "--output", str(tmp_path / "a")]
    assert errors.run(export.main, argv) == 0
    assert errors.run(export.main, argv) == 0  # writes it again, as a report
    card = (tmp_path / "a.md").read_text()
    assert "- trained with: not known: the checkpoint is not in a run's folder\n" in card
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.md"]


@pytest.mark.parametrize(
    ("form", "package"), [("safetensors", "safetensors"), ("onnx", "onnx"), ("onnx", "onnxscript")]
)
def test_a_missing_extra_is_said_in_a_sentence(
    form: str,
    package: str,
    winner: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    argv = [str(winner), "--format", form, "--output", str(tmp_path / "x")]
    assert errors.run(export.main, argv) == 2
    said = f"{package} is not installed; pip install 'mnist_ray[export]'."
    assert capsys.readouterr().err == f"error: format is {form}, but {said}\n"
    assert not list(tmp_path.iterdir())
