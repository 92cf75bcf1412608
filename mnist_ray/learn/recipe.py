"""What a recipe means: the optimizer, the learning rate, the loss and the augmentation that
`engine.fit` uses unless it gets others. The network is `model.build`.

To add another of these, write it here and let a field of the recipe choose it.
"""

import inspect
import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_ray.config import Recipe
from mnist_ray.learn.data import MEAN, STD


def _without_compiler(method: Any) -> Any:
    """Return a method of PyTorch's optimizers without its wrapper. The wrapper imports PyTorch's
    compiler, which is not used here and takes a second at the start of each process."""
    return inspect.unwrap(method)


class SGD(torch.optim.SGD):
    """PyTorch's SGD, which does not import PyTorch's compiler."""

    add_param_group = _without_compiler(torch.optim.Optimizer.add_param_group)
    zero_grad = _without_compiler(torch.optim.Optimizer.zero_grad)
    state_dict = _without_compiler(torch.optim.Optimizer.state_dict)
    load_state_dict = _without_compiler(torch.optim.Optimizer.load_state_dict)
    step = torch.no_grad()(_without_compiler(torch.optim.SGD.step))


def optimizer(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return an optimizer of `parameters`: SGD with momentum."""
    return SGD(
        parameters,
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def learning_rate(recipe: Recipe, step: int, total_steps: int) -> float:
    """Return the learning rate at `step`, 0 to `total_steps` - 1. One-cycle rises linearly over the
    first quarter of the run, then falls linearly to nearly 0 (after Smith, arXiv:1708.07120)."""
    if recipe.schedule == "constant":
        return recipe.lr
    done = (step + 1) / (total_steps + 1)
    return recipe.lr * min(done / 0.25, (1 - done) / 0.75)


def loss(recipe: Recipe, log_probs: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of log-probabilities (b, 10) and labels (b,), summed over the batch.

    With label smoothing s, the target is 1 - s on the label, plus s spread evenly over all ten
    classes (Szegedy et al., arXiv:1512.00567, section 7).
    """
    smoothing = recipe.label_smoothing
    total = F.nll_loss(log_probs, labels, reduction="sum")
    if smoothing:
        total = (1 - smoothing) * total - smoothing * log_probs.mean(dim=1).sum()
    return total


NUMBERS = 4
"""Random numbers that `augment` gets for each image."""


def augment(recipe: Recipe, images: Tensor, numbers: Tensor) -> Tensor:
    """Return `images`, float32 (b, 1, 28, 28), each rotated, resized and moved by random amounts.

    Each amount is uniform within plus or minus the recipe's `rotation`, `scale` or `shift`. Pixels
    from outside an image are background. `numbers`, float32 (NUMBERS, b) on the images' device, are
    uniform in 0..1, and the same again where a run is resumed. An augmentation that needs others
    can draw them from PyTorch's random state.
    """
    if not (recipe.rotation or recipe.shift or recipe.scale):
        return images
    amount = numbers * 2 - 1
    angle = amount[0] * math.radians(recipe.rotation)
    zoom = 1 / (1 + amount[1] * recipe.scale)
    # grid_sample's coordinates run from -1 to 1 over 28 pixels, so a pixel is 2 / 28.
    move = amount[2:] * recipe.shift * 2 / 28
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    matrix = torch.stack(
        [torch.stack([cos, -sin, move[0]], 1), torch.stack([sin, cos, move[1]], 1)], 1
    )
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    background = -MEAN / STD  # grid_sample pads with 0, which is not the normalised background
    return F.grid_sample(images - background, grid, align_corners=False) + background
