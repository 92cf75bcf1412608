"""ReLU, batch norm and dropout as one operation on the CPU, in loops that Numba compiles.

In a network this small, PyTorch spends about as long on these three, one pass over memory after
another, as on its convolutions. Here the forward pass reads its input twice and writes once, the
backward pass reads input and gradient twice and writes once, and there is no mask to store. Numba
needs no C++ compiler, and keeps what it compiled on disk.

Tensors are float32 or bfloat16, which Numba does not know: its bits lie in uint16 arrays, and are
read into and rounded from float32, in which everything is computed.
"""

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from numba import float32, njit, prange, set_num_threads, types, uint16, uint32
from numba.extending import overload
from torch import Tensor, nn

WIDTH = 32
"""Columns of the matrix as which a loop sees a tensor: its channels, repeated until they fill it. A
fixed number, and a multiple of any vector register's, so that inner loops are unrolled."""

HALF = WIDTH // 2
BLOCK = 512
"""Rows that one thread takes at a time, and sums in float32; sums of blocks are float64."""

ZERO = float32(0)


def compiled(loop: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles `loop` when it is first called: Numba looks for its cache, and nothing should happen
    at import."""
    return lambda *args: _compile(loop)(*args)


@functools.cache
def _compile(loop: Callable[..., Any]) -> Callable[..., Any]:
    options: dict[str, Any] = {"parallel": True, "error_model": "numpy", "fastmath": {"contract"}}
    try:
        return njit(loop, cache=True, **options)  # type: ignore[no-any-return]
    except RuntimeError:  # there is no folder in which to keep what was compiled
        return njit(loop, **options)  # type: ignore[no-any-return]


def use_threads(threads: int) -> None:
    """For PyTorch and for the loops here, which share OpenMP's."""
    cores: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    set_num_threads(min(threads, cores))
    torch.set_num_threads(threads)  # after, because Numba's first call sets it to all cores


def fits(x: Tensor) -> bool:
    """Whether the loops here can take `x`: a row of WIDTH must hold whole pixels, and the tensor
    whole rows. Elsewhere they would take one channel for another."""
    return (
        x.dtype in (torch.float32, torch.bfloat16)
        and WIDTH % x.shape[1] == 0
        and x.numel() % WIDTH == 0
    )


def relu_norm_dropout(x: Tensor, norm: nn.BatchNorm2d | None, p: float) -> Tensor:
    """`dropout(norm(relu(x)), p)` in training, with `norm`'s running statistics updated.

    `x` is float32 or bfloat16 (b, c, h, w), and so is what is returned; c must divide 32, and
    b * h * w * c be a multiple of 32, or it raises ValueError. An element is kept if 16 bits, half
    of a hash of its position and of a key drawn from PyTorch's random state, say so: the keep
    probability is exact to 1/65536, and the backward pass needs the key, not a mask.
    """
    if not fits(x):
        raise ValueError(
            f"a tensor of {x.dtype} {tuple(x.shape)} does not fit; channels must divide {WIDTH},"
            f" elements be a multiple of {WIDTH}, in float32 or bfloat16."
        )
    weight, bias = (None, None) if norm is None else (norm.weight, norm.bias)
    return _ReluNormDropout.apply(x, weight, bias, norm, p)  # type: ignore[no-any-return]


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
        # No key is another type to Numba: it compiles loops of their own, without a mask.
        key = torch.randint(2**32, (2,)).numpy().astype(np.uint32) if p else (None, None)
        keep, kept_scale = round((1 - p) * 65536), 1 / (1 - p)
        mean, inverse = np.zeros(channels), np.ones(channels)
        gain, shift = np.ones(channels, np.float32), np.zeros(channels, np.float32)
        if norm is not None:
            gain, shift = norm.weight.detach().numpy(), norm.bias.detach().numpy()
            running = [norm.get_buffer(f"running_{name}").numpy() for name in ("mean", "var")]
            _moments(_rows(x), norm.eps, norm.momentum, mean, inverse, *running)
            norm.get_buffer("num_batches_tracked").add_(1)
        _forward(_rows(x), mean, inverse, gain, shift, *key, keep, kept_scale, _rows(out))
        ctx.save_for_backward(x)
        ctx.constants = mean, inverse, gain, *key, keep, kept_scale
        ctx.normalised = norm is not None
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        gradient = grads[0].contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(x)
        of_weight, of_bias = torch.zeros(2, x.shape[1])
        affine = of_weight.numpy(), of_bias.numpy()
        if ctx.normalised:
            _affine_gradients(_rows(gradient), _rows(x), *ctx.constants, *affine)
        _backward(_rows(gradient), _rows(x), *ctx.constants, *affine, _rows(out))
        if not ctx.normalised:
            return out, None, None, None, None
        return out, of_weight, of_bias, None, None


def _rows(x: Tensor) -> np.ndarray:
    """A channels-last tensor as it lies in memory, in rows of WIDTH; bfloat16 as its bits."""
    x = x.detach().permute(0, 2, 3, 1)
    bits = x.view(torch.uint16) if x.dtype == torch.bfloat16 else x
    return bits.numpy().reshape(-1, WIDTH)


def _read(array, i, c):
    """An element as float32."""


@overload(_read)
def _read_either(array, i, c):
    if array.dtype == types.uint16:

        def read(array, i, c):
            return np.uint32(np.uint32(array[i, c]) << uint32(16)).view(float32)

    else:

        def read(array, i, c):
            return array[i, c]

    return read


def _write(array, i, c, x):
    """Set an element, rounded to the nearest, and to even halfway, where it is bfloat16."""


@overload(_write)
def _write_either(array, i, c, x):
    if array.dtype == types.uint16:

        def write(array, i, c, x):
            bits = np.float32(x).view(uint32)
            odd = uint32(uint32(bits >> uint32(16)) & uint32(1))
            # NaN stays NaN: those of arithmetic have nothing in the bits that could carry.
            array[i, c] = uint16(uint32(bits + uint32(0x7FFF) + odd) >> uint32(16))

    else:

        def write(array, i, c, x):
            array[i, c] = x

    return write


@njit(inline="always")
def _hash(x, key1, key2):
    """32 random bits for position `x`: two rounds of lowbias32, each after a key of its own
    (Wellons, "Prospecting for Hash Functions", nullprogram.com, 2018)."""
    x = uint32(x + key1)
    x = uint32(x ^ (x >> uint32(16)))
    x = uint32(x * uint32(0x21F0AAAD))
    x = uint32(x ^ (x >> uint32(15)))
    x = uint32(x * uint32(0x735A2D97))
    x = uint32(x ^ (x >> uint32(15)))
    x = uint32(x + key2)
    x = uint32(x ^ (x >> uint32(16)))
    x = uint32(x * uint32(0x21F0AAAD))
    x = uint32(x ^ (x >> uint32(15)))
    x = uint32(x * uint32(0x735A2D97))
    return uint32(x ^ (x >> uint32(15)))


@njit(inline="always")
def _relu(x):
    return ZERO if x <= ZERO else x  # NaN stays NaN


@njit(inline="always")
def _kept(left, right, i, c, keep, key1, key2):
    """Columns c and c + HALF of row i, or 0 where dropout drops them."""
    if key1 is None:
        return left, right
    bits = _hash(uint32(uint32(i * HALF) + uint32(c)), key1, key2)
    return (
        left if (bits & uint32(0xFFFF)) < keep else ZERO,
        right if (bits >> uint32(16)) < keep else ZERO,
    )


@njit
def _per_channel(partial, channels):
    """The blocks' two sums of each column (blocks, 2, WIDTH), added up by channel in float64."""
    total = np.zeros((2, channels))
    for block in range(len(partial)):
        for c in range(WIDTH):
            total[0, c % channels] += partial[block, 0, c]
            total[1, c % channels] += partial[block, 1, c]
    return total


@compiled
def _moments(z, eps, momentum, mean, inverse, running_mean, running_var):
    """Of relu(z): each channel's mean and 1 / standard deviation; moves the running statistics."""
    channels = len(mean)
    blocks = (len(z) + BLOCK - 1) // BLOCK
    partial = np.empty((blocks, 2, WIDTH), np.float32)
    for block in prange(blocks):
        sums = np.zeros((2, WIDTH), np.float32)
        for i in range(block * BLOCK, min((block + 1) * BLOCK, len(z))):
            for c in range(WIDTH):
                r = _relu(_read(z, i, c))
                sums[0, c] += r
                sums[1, c] += r * r
        partial[block] = sums
    total = _per_channel(partial, channels)
    n = z.size / channels
    for c in range(channels):
        mean[c] = total[0, c] / n
        variance = max(total[1, c] / n - mean[c] ** 2, 0.0)
        inverse[c] = 1 / np.sqrt(variance + eps)
        running_mean[c] += momentum * (mean[c] - running_mean[c])
        running_var[c] += momentum * (variance * n / max(n - 1, 1) - running_var[c])


@compiled
def _forward(z, mean, inverse, gain, shift, key1, key2, keep16, kept_scale, out):
    keep = uint32(keep16)
    scale, offset = np.empty(WIDTH, np.float32), np.empty(WIDTH, np.float32)
    for c in range(WIDTH):
        k = c % len(mean)
        scale[c] = gain[k] * inverse[k] * kept_scale
        offset[c] = (shift[k] - mean[k] * gain[k] * inverse[k]) * kept_scale
    for block in prange((len(z) + BLOCK - 1) // BLOCK):
        for i in range(block * BLOCK, min((block + 1) * BLOCK, len(z))):
            for c in range(HALF):
                d = c + HALF
                left = _relu(_read(z, i, c)) * scale[c] + offset[c]
                right = _relu(_read(z, i, d)) * scale[d] + offset[d]
                left, right = _kept(left, right, i, c, keep, key1, key2)
                _write(out, i, c, left)
                _write(out, i, d, right)


@compiled
def _affine_gradients(
    gradient, z, mean, inverse, gain, key1, key2, keep16, kept_scale, of_weight, of_bias
):
    """The sums over all images that batch norm's backward pass needs, which are the gradients of
    its weight and bias."""
    keep = uint32(keep16)
    channels = len(mean)
    blocks = (len(z) + BLOCK - 1) // BLOCK
    partial = np.empty((blocks, 2, WIDTH), np.float32)
    for block in prange(blocks):
        sums = np.zeros((2, WIDTH), np.float32)
        for i in range(block * BLOCK, min((block + 1) * BLOCK, len(z))):
            for c in range(HALF):
                d = c + HALF
                left, right = _read(gradient, i, c), _read(gradient, i, d)
                left, right = _kept(left, right, i, c, keep, key1, key2)
                sums[0, c] += left
                sums[0, d] += right
                sums[1, c] += left * _relu(_read(z, i, c))
                sums[1, d] += right * _relu(_read(z, i, d))
        partial[block] = sums
    total = _per_channel(partial, channels)
    for c in range(channels):
        of_bias[c] = kept_scale * total[0, c]
        of_weight[c] = kept_scale * (total[1, c] - mean[c] * total[0, c]) * inverse[c]


@compiled
def _backward(
    gradient, z, mean, inverse, gain, key1, key2, keep16, kept_scale, of_weight, of_bias, out
):
    """Ioffe and Szegedy, arXiv:1502.03167, p. 4, times the mask, through ReLU."""
    keep = uint32(keep16)
    scale, offset = np.empty(WIDTH, np.float32), np.empty(WIDTH, np.float32)
    slope = np.empty(WIDTH, np.float32)
    n = z.size / len(mean)
    for c in range(WIDTH):
        k = c % len(mean)
        scale[c] = gain[k] * inverse[k] * kept_scale
        slope[c] = -gain[k] * inverse[k] ** 2 * of_weight[k] / n
        offset[c] = -gain[k] * inverse[k] * of_bias[k] / n - slope[c] * mean[k]
    for block in prange((len(z) + BLOCK - 1) // BLOCK):
        for i in range(block * BLOCK, min((block + 1) * BLOCK, len(z))):
            for c in range(HALF):
                d = c + HALF
                left, right = _read(gradient, i, c), _read(gradient, i, d)
                left, right = _kept(left, right, i, c, keep, key1, key2)
                z_left, z_right = _read(z, i, c), _read(z, i, d)
                left = left * scale[c] + offset[c] + z_left * slope[c]
                right = right * scale[d] + offset[d] + z_right * slope[d]
                _write(out, i, c, ZERO if z_left <= ZERO else left)
                _write(out, i, d, ZERO if z_right <= ZERO else right)
