"""The network: 13,808 parameters, no biases, built from a recipe."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_ray.config import Recipe
from mnist_ray.learn import kernels


class ReluNormDropout(nn.Module):
    """ReLU, then batch norm unless it is switched off, then dropout with probability `p`.

    What PyTorch's own layers do, except that training on the CPU draws other random numbers where
    `kernels` has loops for that number of channels, and takes their place.
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
    """The network, (b, 1, 28, 28) float32 to log-probabilities (b, 10), initialised from the
    process's random state. 13,808 parameters, or 13,584 without batch norm.
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
    # Channels last is the layout in which the CPU's and the GPU's convolutions are fastest.
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


class Layer(NamedTuple):
    name: str
    output: tuple[int, ...]
    parameters: int


def layers(model: nn.Sequential) -> list[Layer]:
    """Each layer's name, output shape for one image, and number of parameters."""
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
