"""The network as plain layers, for a program that has no PyTorch, like the script of a web page."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mnist_ray.errors import UserError
from mnist_ray.learn.data import MEAN, STD
from mnist_ray.learn.model import ReluNormDropout

PlainLayer = dict[str, Any]
"""A layer: its `kind`, its whole numbers (padding, size), and its float32 arrays by their names."""


def plain_layers(network: nn.Sequential) -> list[PlainLayer]:
    """Return what a trained network computes, as layers that turn the pixels of one image, 0 to
    255, shape (1, 28, 28), into ten numbers whose softmax is the probability of each digit.

    The kinds are `conv` (`weight` (out, in, k, k), `padding`), `relu`, `scale` (for each channel,
    `factor` (c,) and `shift` (c,): x * factor + shift), and `max` and `mean` (pooling by `size`).
    Batch norm is a `scale`, because its running statistics no longer change. Raises UserError for
    a network of other layers, and for weights that are not finite.
    """
    found = [_scale(torch.tensor([1 / (255 * STD)]), torch.tensor([-MEAN / STD]))]
    for layer in network:
        found += _plain(layer)
    arrays = [each for layer in found for each in layer.values() if isinstance(each, np.ndarray)]
    if not all(np.isfinite(array).all() for array in arrays):
        raise UserError("checkpoint holds weights that are not finite; its training diverged.")
    return found


def _plain(layer: nn.Module) -> list[PlainLayer]:
    match layer:
        case nn.Conv2d(
            stride=(1, 1), dilation=(1, 1), groups=1, bias=None, padding=(int(padding), int(other))
        ) if padding == other:
            return [{"kind": "conv", "padding": padding, "weight": _array(layer.weight)}]
        case ReluNormDropout(norm=None):
            return [{"kind": "relu"}]
        case ReluNormDropout(norm=nn.BatchNorm2d() as norm):
            mean, variance = norm.running_mean, norm.running_var
            assert mean is not None
            assert variance is not None
            factor = norm.weight.double() / (variance.double() + norm.eps).sqrt()
            return [{"kind": "relu"}, _scale(factor, norm.bias - mean * factor)]
        case nn.MaxPool2d(kernel_size=int(size), padding=0) if layer.stride == size:
            return [{"kind": "max", "size": size}]
        case nn.AvgPool2d(kernel_size=int(size), padding=0) if layer.stride == size:
            return [{"kind": "mean", "size": size}]
        case nn.Flatten() | nn.LogSoftmax():
            return []
    raise UserError(f"checkpoint holds a layer that only PyTorch computes here: {layer}.")


def _scale(factor: Tensor, shift: Tensor) -> PlainLayer:
    return {"kind": "scale", "factor": _array(factor), "shift": _array(shift)}


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().float().contiguous().numpy()
