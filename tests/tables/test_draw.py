"""The square in the report: the page has the run's weights, and what it computes is what Python
computes. `make browser` runs the tests in headless Chromium."""

import base64
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser_page import Page, Point, chromium
from scipy import ndimage
from torch import nn

from mnist_ray import errors, learn, results, tables
from mnist_ray.config import Recipe
from mnist_ray.learn import Mnist

BATCH_NORM = pytest.mark.parametrize("batch_norm", [True, False])


def network(recipe: Recipe) -> nn.Sequential:
    """A network that was not trained, but whose batch norm has seen images."""
    torch.manual_seed(1)
    net = learn.build_network(recipe)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                nn.init.uniform_(values, 0.5, 1.5)
    return net.eval()


SAVED = tables.checkpoint_name(1)


def write_run(folder: Path, recipe: Recipe, net: nn.Module, checkpoint: str | None = SAVED) -> Path:
    """Write the folder of a training run that ended with this network."""
    folder.mkdir()
    metrics = {"epoch": 1, "accuracy": 0.9, "loss": 0.3, "scored_on": "test", "last": True}
    metrics |= {"train_loss": 0.3, "train_seconds": 1.0, "images_per_second": 100.0}
    state = {"model": net.state_dict(), "optimizer": {}, "epoch": 1}
    learn.save_checkpoint(folder / SAVED, learn.Checkpoint(state, recipe, [metrics], ""))
    row = tables.trial_row(recipe.model_dump(), [metrics], trial=0, checkpoint=checkpoint)
    tables.write(folder, [row], [tables.epoch_row("a", 0, metrics)])
    return folder


def write_report(*folders: Path) -> Path:
    page = folders[0].parent / f"{folders[0].name}.html"
    assert errors.run(results.main, [*map(str, folders), "--report", str(page)]) == 0
    return page


def layers_in(page: str) -> list[dict[str, Any]]:
    """The layers that are in the page, with their arrays."""
    found = re.search('<script type="application/json" id="draw-network">(.*?)</script>', page)
    assert found
    content = json.loads(found[1])
    numbers = np.frombuffer(base64.b64decode(content["numbers"]), "<f4")
    for layer in content["layers"]:
        for name, shape in layer.items():
            if isinstance(shape, list):
                layer[name] = torch.tensor(numbers[: np.prod(shape)]).reshape(shape)
                numbers = numbers[np.prod(shape) :]
    assert not len(numbers)
    return content["layers"]  # type: ignore[no-any-return]


@BATCH_NORM
def test_the_page_has_the_weights_of_the_checkpoint(batch_norm: bool, tmp_path: Path) -> None:
    recipe = Recipe(batch_norm=batch_norm, epochs=1)
    net = network(recipe)
    without = write_report(write_run(tmp_path / "a", recipe, net, None)).read_text()
    page = write_report(write_run(tmp_path / "b", recipe, net)).read_text()
    assert len(page) - len(without) < 100_000
    assert "http" not in page[page.index('<section id="draw">') :]
    assert f"{13_808 if batch_norm else 13_584:,} parameters" in page
    layers = layers_in(page)
    convolutions = [layer["weight"] for layer in layers if layer["kind"] == "conv"]
    expected = [weight for weight in net.state_dict().values() if weight.ndim == 4]
    assert all(map(torch.equal, convolutions, expected))
    assert len(convolutions) == len(expected) == 8
    scales = [layer for layer in layers[1:] if layer["kind"] == "scale"]
    norms = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(scales) == len(norms) == (6 if batch_norm else 0)
    for scale, norm in zip(scales, norms, strict=True):
        x = torch.rand(5, norm.num_features, 1, 1)
        computed = x * scale["factor"][:, None, None] + scale["shift"][:, None, None]
        torch.testing.assert_close(computed, norm(x))


def test_a_page_without_the_square_says_why_if_a_checkpoint_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe(epochs=1)
    a, b = (write_run(tmp_path / name, recipe, network(recipe)) for name in "ab")
    page = write_report(a).read_text()
    assert 'id="draw-square"' in page
    assert 'id="to-draw"' in page
    assert 'id="draw-square"' not in write_report(a, b).read_text()
    unnamed = write_run(tmp_path / "unnamed", recipe, network(recipe), None)
    assert 'id="to-draw"' not in write_report(unnamed).read_text()
    assert capsys.readouterr().err == ""
    (b / SAVED / "checkpoint.pt").unlink()
    assert 'id="draw-square"' not in write_report(b).read_text()
    assert f"no square to draw in: checkpoint {b / SAVED} holds no" in capsys.readouterr().err
    diverged = network(recipe)
    diverged[0].weight.data[0] = float("nan")
    page = write_report(write_run(tmp_path / "diverged", recipe, diverged)).read_text()
    assert 'id="draw-square"' not in page
    assert "no square to draw in: checkpoint holds weights that are" in capsys.readouterr().err


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(2, 2),
        nn.Conv2d(1, 2, 3),
        nn.Conv2d(1, 2, 3, stride=2, bias=False),
        nn.Conv2d(1, 2, 3, padding="same", bias=False),
        nn.MaxPool2d(2, stride=1),
        nn.AvgPool2d(2, padding=1),
    ],
    ids=str,
)
def test_a_layer_that_the_page_cannot_compute_is_refused(layer: nn.Module) -> None:
    with pytest.raises(errors.UserError, match="a layer that only PyTorch computes"):
        learn.plain_layers(nn.Sequential(layer))


# ------------------------------------------------------------------ in Chromium: `make browser`

CENTRE = "[...drawing.centre(document.getElementById('draw-square'))]"
PUT = """
(pixels, scale) => {
  const square = document.getElementById('draw-square').getContext('2d');
  const image = square.createImageData(280, 280);
  pixels.forEach((ink, at) => {
    const top = Math.floor(at / 28) * scale, left = at % 28 * scale;
    for (let y = top; y < top + scale; y++) for (let x = left; x < left + scale; x++)
      image.data[4 * (280 * y + x) + 3] = ink;
  });
  square.putImageData(image, 0, 0);
}"""
"""Puts an image into the square, each pixel as scale x scale pixels."""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as page:
        yield page


@pytest.fixture(scope="module")
def trained(mnist: Mnist) -> nn.Sequential:
    """A network that was trained on 12,000 images once."""
    recipe = Recipe(epochs=1, train_size=12_000, batch_size=64, lr=0.05, schedule="one-cycle")
    splits = learn.split(mnist, 0, recipe.train_size)
    few = splits.score._replace(indices=splits.score.indices[:100])
    threads = torch.get_num_threads()
    learn.prepare_process(1)  # many threads wait for each other where other tests run too
    net = learn.fit(recipe, splits._replace(score=few))
    learn.prepare_process(threads)
    assert isinstance(net, nn.Sequential)
    return net.eval()


@pytest.fixture(scope="module")
def report(trained: nn.Sequential, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run that ended with this network."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    return write_report(write_run(folder, Recipe(epochs=1), trained))


def probabilities(net: nn.Module, images: np.ndarray) -> np.ndarray:
    """What Python says of images uint8 (n, 28, 28)."""
    labels = torch.zeros(len(images), dtype=torch.uint8)
    part = learn.Part(torch.tensor(images), labels, torch.arange(len(images)))
    return learn.predict(net, part)[1].exp().numpy()


def said(expected: np.ndarray) -> str:
    """What the page says of these probabilities of the ten digits."""
    guess = int(expected.argmax())
    words = f"A {guess}" if expected[guess] >= 0.8 else f"Unsure: perhaps a {guess}"
    return f"{words} ({expected[guess]:.1%})"


def text(page: Page, name: str = "said") -> str:
    shown = page.run(f"document.getElementById('draw-{name}').innerText")
    return re.sub(r"\s+", " ", shown).strip()


@pytest.mark.browser
@BATCH_NORM
def test_the_page_computes_what_python_computes(
    batch_norm: bool, page: Page, mnist: Mnist, trained: nn.Sequential, tmp_path: Path
) -> None:
    recipe = Recipe(epochs=1, batch_norm=batch_norm)
    net = trained if batch_norm else network(recipe)
    page.requests.clear()
    page.open(file := write_report(write_run(tmp_path / "a", recipe, net)))
    assert {url for url in page.requests if not url.startswith("data:")} == {file.as_uri()}
    images = mnist.test_images[:100]
    found = page.run(f"{images.reshape(100, 784).tolist()}.map(drawing.predict)")
    expected = probabilities(net, images)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert (np.argmax(found, axis=1) == expected.argmax(axis=1)).all()


@pytest.mark.browser
@pytest.mark.parametrize("scale", [3, 10])
def test_an_image_of_mnist_is_centred_as_it_was(
    scale: int, page: Page, report: Path, mnist: Mnist
) -> None:
    page.open(report)
    for image in mnist.test_images[:100]:
        page.run(f"({PUT})({image.ravel().tolist()}, {scale})")
        assert page.run(CENTRE) == image.ravel().tolist()


@pytest.mark.browser
def test_a_guess_of_low_probability_is_called_unsure(
    page: Page, report: Path, mnist: Mnist, trained: nn.Sequential
) -> None:
    page.open(report)
    expected = probabilities(trained, mnist.test_images[:100])
    order = expected.max(axis=1).argsort()
    assert expected[order[0]].max() < 0.8 < expected[order[-1]].max()
    for index in (order[0], order[-1]):
        page.run(f"({PUT})({mnist.test_images[index].ravel().tolist()}, 10); drawing.say()")
        assert text(page) == said(expected[index])


def line_of(image: np.ndarray) -> list[list[tuple[int, int]]]:
    """Return the lines along which a pen draws the digit, as places (x, y) in its 28 x 28 pixels:
    the ridge of the ink, walked without lifting the pen wherever the next pixel is a neighbour."""
    ink = ndimage.gaussian_filter(image.astype(float), 0.7)
    around = np.pad(ink, 1)
    across = (ink >= around[1:-1, :-2]) & (ink > around[1:-1, 2:])
    along = (ink >= around[:-2, 1:-1]) & (ink > around[2:, 1:-1])
    left = {(int(x), int(y)) for y, x in np.argwhere((ink > 90) & (across | along))}

    def walk(place: tuple[int, int]) -> list[tuple[int, int]]:
        left.discard(place)
        path = [place]
        for step in [(0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1)]:
            neighbour = (place[0] + step[0], place[1] + step[1])
            if neighbour in left:
                path += [*walk(neighbour), place]
        return path

    lines = []
    while left:
        lines.append(walk(min(left)))
    return lines


@pytest.mark.browser
@pytest.mark.parametrize("by", [Page.mouse, Page.touch], ids=["mouse", "touch"])
def test_a_drawn_digit_is_what_python_says_it_is(
    by: Callable[[Page, list[Point]], None],
    page: Page,
    report: Path,
    mnist: Mnist,
    trained: nn.Sequential,
) -> None:
    """On a phone's screen, where the page is no wider than the screen and must not scroll."""
    page.call("Emulation.setTouchEmulationEnabled", enabled=by is Page.touch)
    page.open(report, 375, 800, mobile=by is Page.touch)
    page.run("document.getElementById('draw').scrollIntoView()")
    page.painted()
    assert page.run("scrollY") > 0
    assert page.run("document.documentElement.scrollWidth") <= 375
    corner = "document.getElementById('draw-square').getBoundingClientRect()"
    where = f"(box => [box.left, box.top, box.width])({corner})"
    left, top, width = page.run(where)
    right = 0
    for digit in range(10):
        assert text(page) == "Nothing is drawn yet."
        assert text(page, "bars") == " ".join("0123456789")
        image = mnist.test_images[mnist.test_labels == digit][0]
        for line in line_of(image):
            by(
                page,
                [((x + 0.5) * width / 28 + left, (y + 0.5) * width / 28 + top) for x, y in line],
            )
        page.painted()
        pixels = np.array(page.run(CENTRE), dtype=np.uint8).reshape(1, 28, 28)
        (expected,) = probabilities(trained, pixels)
        assert text(page) == said(expected)
        shown = " ".join(f"{i} {each:.1%}" for i, each in enumerate(expected.tolist()))
        assert text(page, "bars") == shown
        widths = "[...document.querySelectorAll('#draw-bars i')].map(bar => bar.style.width)"
        assert page.run(widths) == re.findall(r"\S+%", shown.replace(".0%", "%"))
        right += int(expected.argmax()) == digit
        page.run("document.getElementById('draw-clear').click()")
    assert right >= 7
    assert page.run(where) == [left, top, width]
