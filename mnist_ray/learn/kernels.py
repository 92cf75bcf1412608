"""ReLU, batch norm and dropout as one operation on the CPU, with the compiled loops of `loops.py`.

In a network this small, PyTorch spends about as long on these three, each with its own passes over
memory, as on the convolutions. Here the forward pass reads its input twice and writes once. The
backward pass reads input and gradient twice and writes once, and no mask is stored.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mnist_ray.learn import loops
from mnist_ray.learn.loops import WIDTH


def fits(x: Tensor) -> bool:
    """Return whether `relu_norm_dropout` can take `x`. A row of WIDTH elements must hold whole
    pixels, and `x` whole rows, or the loops would take one channel for another."""
    return (
        x.dtype in (torch.float32, torch.bfloat16)
        and WIDTH % x.shape[1] == 0
        and x.numel() % WIDTH == 0
    )


def relu_norm_dropout(x: Tensor, norm: nn.BatchNorm2d | None, p: float) -> Tensor:
    """Return `dropout(norm(relu(x)), p)` as in training, and update `norm`'s running statistics.

    `x` and the result are float32 or bfloat16 (b, c, h, w). Raises ValueError unless c divides 32
    and b * c * h * w is a multiple of 32.

    Dropout hashes an element's position with a key from PyTorch's random state, and keeps the
    element if 16 bits of the hash are below 65536 * (1 - p). The backward pass needs the key only.
    """
    if not fits(x):
        raise ValueError(
            f"a tensor of {x.dtype} {tuple(x.shape)} does not fit; channels must divide {WIDTH},"
            f" elements be a multiple of {WIDTH}, in float32 or bfloat16."
        )
    weight, bias = (None, None) if norm is None else (norm.weight, norm.bias)
    out: Tensor = _ReluNormDropout.apply(x, weight, bias, norm, p)  # type: ignore[no-untyped-call]
    return out


class _ReluNormDropout(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        norm: nn.BatchNorm2d | None,
        p: float,
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(x)
        channels = x.shape[1]
        # Numba compiles a loop without dropout where the keys are None.
        keys = torch.randint(2**32, (2,)).numpy().astype(np.uint32) if p else (None, None)
        keep, kept_scale = np.uint32(round((1 - p) * 65536)), 1 / (1 - p)
        mean, inverse_std = np.zeros(channels), np.ones(channels)
        gain, shift = np.ones(channels, np.float32), np.zeros(channels, np.float32)
        if norm is not None:
            gain, shift = norm.weight.detach().numpy(), norm.bias.detach().numpy()
            running = [norm.get_buffer(f"running_{name}").numpy() for name in ("mean", "var")]
            loops.moments(_rows(x), norm.eps, norm.momentum, mean, inverse_std, *running)
            norm.get_buffer("num_batches_tracked").add_(1)
        loops.forward(_rows(x), mean, inverse_std, gain, shift, *keys, keep, kept_scale, _rows(out))
        ctx.save_for_backward(x)
        ctx.constants = mean, inverse_std, gain, *keys, keep, kept_scale
        ctx.normalised = norm is not None
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        gradient = grads[0].contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(x)
        weight_gradient, bias_gradient = torch.zeros(2, x.shape[1])
        affine = weight_gradient.numpy(), bias_gradient.numpy()
        arguments = _rows(gradient), _rows(x), *ctx.constants, *affine
        if ctx.normalised:
            loops.affine_gradients(*arguments)
        loops.backward(*arguments, _rows(out))
        if not ctx.normalised:
            return out, None, None, None, None
        return out, weight_gradient, bias_gradient, None, None


def _rows(x: Tensor) -> np.ndarray:
    """Return the memory of a channels-last tensor as a matrix of WIDTH columns: float32, or the
    bits of bfloat16 as uint16."""
    x = x.detach().permute(0, 2, 3, 1)
    bits = x.view(torch.uint16) if x.dtype == torch.bfloat16 else x
    return bits.numpy().reshape(-1, WIDTH)
