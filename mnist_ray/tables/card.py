"""The model card: what a network is, how well it does, and how it came about, in Markdown."""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import yaml

from mnist_ray import search, storage
from mnist_ray.config import Recipe
from mnist_ray.errors import UserError
from mnist_ray.storage import Place
from mnist_ray.tables import rows, run_folder
from mnist_ray.tables.machine import provenance
from mnist_ray.tables.schema import Row
from mnist_ray.tables.views import render

TEST_IMAGES = 10_000

MADE_WITH = ("commit", "mnist_ray", "torch", "ray", "python", "hardware")

USES = {
    "pt2": (
        "PyTorch's exported program: images, uint8 (n, 28, 28), to probabilities of the digits 0 to"
        " 9, float32 (n, 10). It needs PyTorch and nothing of mnist_ray.",
        "import torch\n"
        "network = torch.export.load({file!r}).module()\n"
        "probabilities = network(images)  # a tensor",
    ),
    "onnx": (
        "An ONNX model: `images`, uint8 (n, 28, 28), to `probabilities` of the digits 0 to 9,"
        " float32 (n, 10).",
        "import onnxruntime\n"
        "session = onnxruntime.InferenceSession({file!r})\n"
        'probabilities = session.run(None, {{"images": images}})[0]  # a NumPy array',
    ),
    "safetensors": (
        "The weights alone. The network takes float32 (n, 1, 28, 28), which is (pixels / 255 -"
        " 0.1307) / 0.3081, and returns log-probabilities of the digits 0 to 9, float32 (n, 10)."
        " Each 3 x 3 convolution is followed by ReLU and then by the batch norm, if any.",
        "from mnist_ray import config, learn; from safetensors.torch import load_file\n"
        "network = learn.build_network(config.Recipe(batch_norm={batch_norm})).eval()\n"
        "network.load_state_dict(load_file({file!r}))",
    ),
}
"""What a file of each format takes and returns, and how to load it."""


def trained_by(checkpoint: Place) -> Row:
    """Return the row of the trials table that tells of this checkpoint. It is empty if the
    checkpoint does not lie in a run's folder, or if the run's table does not have it."""
    run = checkpoint
    for _ in range(3):  # a run's folder, a trial's, and the one for the workers of trials
        run = run.parent
        try:
            if run_folder.is_run(run):
                table = rows.read(run)
                break
        except (OSError, UserError):
            return {}
    else:
        return {}
    mine = storage.relative(checkpoint, run)
    found: list[Row] = [row for row in table.to_pylist() if row["checkpoint"] == mine]
    return found[0] if found else {}


def model_card(
    file: str,
    form: str,
    recipe: Recipe,
    epochs: Sequence[Row],
    score: Mapping[str, float],
    trained: Row,
    layers: Sequence[tuple[str, tuple[int, ...], int]],
) -> str:
    """Return the card of the file `file` of the format `form`. `score` is accuracy and loss on the
    test set, `trained` the row of `trained_by`, and a layer has a name, an output shape for one
    image, and a number of parameters."""
    low, high = search.wilson(round(score["accuracy"] * TEST_IMAGES), TEST_IMAGES)
    what, load = USES[form]
    last = epochs[-1]
    parameters = sum(number for _, _, number in layers)
    table = {
        "layer": [name for name, _, _ in layers],
        "output": [" x ".join(map(str, output)) for _, output, _ in layers],
        "parameters": [number for _, _, number in layers],
    }
    settings = yaml.safe_dump(recipe.model_dump(), sort_keys=False)
    origin = {
        "run": trained.get("run"),
        "trial": trained.get("trial"),
        "started": trained.get("started"),
        "epoch of this checkpoint": last["epoch"],
        "arithmetic": last.get("arithmetic"),
        "device": last.get("device"),
        "trained with": _versions(trained) or "not known: the checkpoint is not in a run's folder",
        "exported with": _versions(provenance()),
    }
    facts = "".join(f"- {name}: {value}\n" for name, value in origin.items() if value is not None)
    return f"""# {file}

A convolutional network of {parameters:,} parameters that reads handwritten digits,
trained on MNIST by mnist_ray.

Test accuracy {score["accuracy"]:.2%} of {TEST_IMAGES:,} images (95 % interval {low:.2%} to
{high:.2%}), loss {score["loss"]:.4f}. This is the accuracy on MNIST's own images, which are
centred and clean. The network names a digit whatever an image shows.

## Use

{what} Images are MNIST's: a light digit on 0, fitted into 20 x 20 pixels, its centre of mass in
the centre of 28 x 28.

```python
{load.format(file=file, batch_norm=recipe.batch_norm)}
```

## Network

{render(pa.table(table), "markdown")}

## Recipe

```yaml
{settings}```

## Where it comes from

{facts}"""


def _versions(row: Row) -> str:
    known = [(name, row.get(name)) for name in MADE_WITH]
    return ", ".join(f"{name} {value}" for name, value in known if value is not None)
