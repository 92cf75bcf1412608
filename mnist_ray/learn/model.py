"""The network that a recipe builds: 13,808 parameters, no biases in its convolutions."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_ray.config import Recipe
from mnist_ray.learn import kernels


class ReluNormDropout(nn.Module):
    """ReLU, then batch norm if `batch_norm`, then dropout with probability `p`.

    PyTorch's layers compute them, except in training on the CPU where `kernels.fits`: there one
    compiled operation takes their place, which differs in the random numbers of dropout.
    """

    def __init__(self, channels: int, batch_norm: bool, p: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels) if batch_norm else None
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        frozen = self.norm is not None and not self.norm.training
        if self.training and not frozen and x.device.type == "cpu" and kernels.fits(x):
            return kernels.relu_norm_dropout(x, self.norm, self.p)
        x = F.relu(x, inplace=True)
        if self.norm is not None:
            x = self.norm(x)
        return F.dropout(x, self.p, self.training)


def build(recipe: Recipe) -> nn.Sequential:
    """Return the network, from float32 images (b, 1, 28, 28) to log-probabilities (b, 10), with
    weights drawn from PyTorch's random state. It has 13,808 parameters, 13,584 without batch norm.
    """

    def block(in_channels: int, out_channels: int, padding: int = 0) -> list[nn.Module]:
        return [
            nn.Conv2d(in_channels, out_channels, 3, padding=padding, bias=False),
            ReluNormDropout(out_channels, recipe.batch_norm, recipe.dropout),
        ]

    model = nn.Sequential(
        *block(1, 16),
        *block(16, 32),
        nn.Conv2d(32, 10, 1, bias=False),
        nn.MaxPool2d(2),
        *block(10, 16),
        *block(16, 16),
        *block(16, 16),
        *block(16, 16, padding=1),
        nn.AvgPool2d(6),
        nn.Conv2d(16, 10, 1, bias=False),
        nn.Flatten(),
        nn.LogSoftmax(dim=1),
    )
    # Convolutions are fastest in this layout, on the CPU as on the GPU.
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


class Layer(NamedTuple):
    """A row of a network's summary; `output` is the shape for one image."""

    name: str
    output: tuple[int, ...]
    parameters: int


def layers(model: nn.Sequential) -> list[Layer]:
    """Summarise each layer of `model`, which takes images (b, 1, 28, 28)."""
    rows = []
    x = torch.zeros(1, 1, 28, 28)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for layer in model:
            x = layer(x)
            name = type(layer).__name__
            if isinstance(layer, nn.Conv2d):
                name += f" {layer.kernel_size[0]}x{layer.kernel_size[1]}"
            rows.append(Layer(name, tuple(x.shape[1:]), sum(p.numel() for p in layer.parameters())))
    model.train(was_training)
    return rows
