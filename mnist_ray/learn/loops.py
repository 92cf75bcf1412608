"""The loops of `kernels.py`, which Numba compiles for the CPU.

A loop sees a tensor as a matrix of `WIDTH` columns, in the order in which its elements lie in
memory: channels last. Numba does not know bfloat16, so a bfloat16 tensor comes as its bits in a
uint16 matrix. Each element is read into float32, computed in float32, and rounded when written.

Numba compiles anew when this file changes, but not when a file changes that this one imports.
Whatever is compiled must therefore stand here.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import float32, njit, prange, types, uint16, uint32
from numba.extending import overload

WIDTH = 32
"""Columns of the matrix: a tensor's channels, repeated until they fill a row. A fixed multiple of
every vector register's width, so that the compiler unrolls inner loops."""

HALF = WIDTH // 2
"""Columns `c` and `c + HALF` of a row share one hash, which decides whether dropout keeps them."""

BLOCK = 512
"""Rows that one thread sums in float32. Blocks are then added in float64, always in the same order,
so that the number of threads changes no bit."""

ZERO = float32(0)


def compiled(loop: Callable[..., Any]) -> Callable[..., Any]:
    """Return `loop`, to be compiled at its first call: importing a module must not write files, and
    Numba creates its cache folder as soon as it is handed a function."""
    options: dict[str, Any] = {"parallel": True, "error_model": "numpy", "fastmath": {"contract"}}

    @functools.cache
    def compile_loop() -> Callable[..., Any]:
        try:
            return njit(loop, cache=True, **options)  # type: ignore[no-any-return]
        except RuntimeError:  # Numba finds no folder that it may write its cache to
            return njit(loop, **options)  # type: ignore[no-any-return]

    return lambda *args: compile_loop()(*args)


def _read(array, i, c):
    """Return an element as float32."""


@overload(_read)
def _compile_read(array, i, c):
    if array.dtype == types.uint16:

        def read(array, i, c):
            return np.uint32(np.uint32(array[i, c]) << uint32(16)).view(float32)

    else:

        def read(array, i, c):
            return array[i, c]

    return read


def _write(array, i, c, x):
    """Set an element to float32 `x`; a bfloat16 one to the nearest, ties to even."""


@overload(_write)
def _compile_write(array, i, c, x):
    if array.dtype == types.uint16:

        def write(array, i, c, x):
            bits = np.float32(x).view(uint32)
            odd = uint32(uint32(bits >> uint32(16)) & uint32(1))
            # NaN stays NaN: arithmetic makes only NaNs whose low bits are 0, so nothing carries.
            array[i, c] = uint16(uint32(bits + uint32(0x7FFF) + odd) >> uint32(16))

    else:

        def write(array, i, c, x):
            array[i, c] = x

    return write


@njit(inline="always")
def _hash(x):
    """Return the hash lowbias32 (Wellons, "Prospecting for Hash Functions", nullprogram.com, 2018)
    of a uint32."""
    x = uint32(x ^ (x >> uint32(16)))
    x = uint32(x * uint32(0x21F0AAAD))
    x = uint32(x ^ (x >> uint32(15)))
    x = uint32(x * uint32(0x735A2D97))
    return uint32(x ^ (x >> uint32(15)))


@njit(inline="always")
def _relu(x):
    return ZERO if x <= ZERO else x  # NaN stays NaN


@njit(inline="always")
def _dropout(left, right, i, c, keep, key1, key2):
    """Return the elements at columns c and c + HALF of row i, or 0 for each that is dropped."""
    if key1 is None:
        return left, right
    position = uint32(uint32(i * HALF) + uint32(c))
    bits = _hash(uint32(_hash(uint32(position + key1)) + key2))
    return (
        left if (bits & uint32(0xFFFF)) < keep else ZERO,
        right if (bits >> uint32(16)) < keep else ZERO,
    )


@njit
def _sum_by_channel(partial, channels):
    """Return float64 sums (2, channels) of what each block summed by column, float32
    (blocks, 2, WIDTH)."""
    total = np.zeros((2, channels))
    for block in range(len(partial)):
        for c in range(WIDTH):
            total[0, c % channels] += partial[block, 0, c]
            total[1, c % channels] += partial[block, 1, c]
    return total


@compiled
def moments(z, eps, momentum, mean, inverse_std, running_mean, running_var):
    """Set each channel's mean and 1 / standard deviation of relu(z), as batch norm uses them in
    training, and update its running statistics."""
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
    total = _sum_by_channel(partial, channels)
    n = z.size / channels
    for c in range(channels):
        mean[c] = total[0, c] / n
        variance = max(total[1, c] / n - mean[c] ** 2, 0.0)
        inverse_std[c] = 1 / np.sqrt(variance + eps)
        running_mean[c] += momentum * (mean[c] - running_mean[c])
        running_var[c] += momentum * (variance * n / max(n - 1, 1) - running_var[c])


@compiled
def forward(z, mean, inverse_std, gain, shift, key1, key2, keep, kept_scale, out):
    """Set `out` to dropout(gain * (relu(z) - mean) * inverse_std + shift)."""
    scale, offset = np.empty(WIDTH, np.float32), np.empty(WIDTH, np.float32)
    for c in range(WIDTH):
        k = c % len(mean)
        scale[c] = gain[k] * inverse_std[k] * kept_scale
        offset[c] = (shift[k] - mean[k] * gain[k] * inverse_std[k]) * kept_scale
    for i in prange(len(z)):
        for c in range(HALF):
            d = c + HALF
            left = _relu(_read(z, i, c)) * scale[c] + offset[c]
            right = _relu(_read(z, i, d)) * scale[d] + offset[d]
            left, right = _dropout(left, right, i, c, keep, key1, key2)
            _write(out, i, c, left)
            _write(out, i, d, right)


@compiled
def affine_gradients(
    gradient, z, mean, inverse_std, gain, key1, key2, keep, kept_scale, grad_gain, grad_shift
):
    """Set the gradients of batch norm's gain and shift, of which `backward` makes the gradient of
    its input."""
    channels = len(mean)
    blocks = (len(z) + BLOCK - 1) // BLOCK
    partial = np.empty((blocks, 2, WIDTH), np.float32)
    for block in prange(blocks):
        sums = np.zeros((2, WIDTH), np.float32)
        for i in range(block * BLOCK, min((block + 1) * BLOCK, len(z))):
            for c in range(HALF):
                d = c + HALF
                left, right = _read(gradient, i, c), _read(gradient, i, d)
                left, right = _dropout(left, right, i, c, keep, key1, key2)
                sums[0, c] += left
                sums[0, d] += right
                sums[1, c] += left * _relu(_read(z, i, c))
                sums[1, d] += right * _relu(_read(z, i, d))
        partial[block] = sums
    total = _sum_by_channel(partial, channels)
    for c in range(channels):
        grad_shift[c] = kept_scale * total[0, c]
        grad_gain[c] = kept_scale * (total[1, c] - mean[c] * total[0, c]) * inverse_std[c]


@compiled
def backward(
    gradient, z, mean, inverse_std, gain, key1, key2, keep, kept_scale, grad_gain, grad_shift, out
):
    """Set `out` to the gradient of z: `gradient` through dropout, batch norm (Ioffe and Szegedy,
    arXiv:1502.03167, p. 4) and ReLU."""
    scale, offset = np.empty(WIDTH, np.float32), np.empty(WIDTH, np.float32)
    slope = np.empty(WIDTH, np.float32)
    n = z.size / len(mean)
    for c in range(WIDTH):
        k = c % len(mean)
        scale[c] = gain[k] * inverse_std[k] * kept_scale
        slope[c] = -gain[k] * inverse_std[k] ** 2 * grad_gain[k] / n
        offset[c] = -gain[k] * inverse_std[k] * grad_shift[k] / n - slope[c] * mean[k]
    for i in prange(len(z)):
        for c in range(HALF):
            d = c + HALF
            left, right = _read(gradient, i, c), _read(gradient, i, d)
            left, right = _dropout(left, right, i, c, keep, key1, key2)
            z_left, z_right = _read(z, i, c), _read(z, i, d)
            left = left * scale[c] + offset[c] + z_left * slope[c]
            right = right * scale[d] + offset[d] + z_right * slope[d]
            _write(out, i, c, ZERO if z_left <= ZERO else left)
            _write(out, i, d, ZERO if z_right <= ZERO else right)
