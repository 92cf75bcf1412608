"""The square in the report in which a reader draws a digit, and the network that says what it is.

`draw.js` is the script of both; this module puts it into the page, together with the network.
"""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from mnist_ray.tables import page
from mnist_ray.tables.axes import ORANGE

SCRIPT = Path(__file__).with_name("draw.js")


def section(network: Sequence[Mapping[str, Any]], whose: str) -> Iterator[str]:
    """Yield the section as HTML. `network` is what `learn.plain_layers` returns; `whose` names what
    it belongs to, like "The winner"."""
    # The first layer scales the pixels, and was not trained.
    parameters = sum(array.size for layer in network[1:] for array in _arrays(layer))
    rows = "".join(f"<li>{digit}<span><i></i></span><b></b></li>" for digit in range(10))
    what = (
        f"{whose}'s network, {parameters:,} parameters, runs in this page; it was trained on"
        " MNIST's digits. American census workers and school students wrote those on paper, and a"
        " drawing is scaled and centred as those were. Where its shape or its line is unlike"
        " theirs, a wrong guess says little about the network's accuracy on the test images."
    )
    yield '<section id="draw">' + page.heading(
        "Draw a digit",
        "With a mouse, a finger or a pen. The bars are the probabilities that the network gives the"
        " ten digits.",
    )
    yield (
        '<div class="draw"><div><canvas id="draw-square" width="280" height="280" role="img"'
        ' aria-label="A square to draw a digit in with a mouse, a finger or a pen"></canvas>'
        '<div><button id="draw-clear" type="button">Clear</button><canvas id="draw-seen" width="28"'
        ' height="28" role="img" aria-label="The drawing as the network gets it"></canvas>'
        "<small>what the network sees</small></div></div>"
        '<div><p id="draw-said" role="status"></p><ol id="draw-bars"'
        f' aria-label="The probability of each digit" style="--guess: {ORANGE}">{rows}</ol></div>'
        f'</div><p class="caption">{escape(what)}</p></section>'
    )
    yield f'<script type="application/json" id="draw-network">{_json(network)}</script>'
    yield f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>"


def _json(network: Sequence[Mapping[str, Any]]) -> str:
    """Return the layers with each array's shape in its place, and the numbers of all arrays, one
    after another, as float32 in base64, which rounds none of them."""
    layers = [
        {
            name: list(value.shape) if isinstance(value, np.ndarray) else value
            for name, value in layer.items()
        }
        for layer in network
    ]
    numbers = b"".join(array.astype("<f4").tobytes() for each in network for array in _arrays(each))
    return json.dumps({"layers": layers, "numbers": base64.b64encode(numbers).decode()})


def _arrays(layer: Mapping[str, Any]) -> list[np.ndarray]:
    return [value for value in layer.values() if isinstance(value, np.ndarray)]
