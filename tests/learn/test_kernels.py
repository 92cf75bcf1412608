"""Compare the compiled loops with PyTorch's layers in float64, and check dropout's randomness."""

import numba
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mnist_ray.learn import kernels, process


def tensor(*shape: int) -> torch.Tensor:
    return torch.randn(shape).to(memory_format=torch.channels_last)


def norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 2, channels))
        layer.bias.copy_(torch.linspace(-1, 1, channels))
    return layer


def dropped_ones(shape: tuple[int, ...], p: float, seed: int) -> torch.Tensor:
    """Return ones after dropout alone."""
    torch.manual_seed(seed)
    return kernels.relu_norm_dropout(torch.ones(shape), None, p)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("shape", [(1, 16, 6, 6), (64, 16, 10, 10), (33, 32, 24, 24)])
def test_it_is_relu_batch_norm_and_dropout(
    shape: tuple[int, ...], batch_norm: bool, p: float
) -> None:
    torch.manual_seed(0)
    x, gradient = tensor(*shape), tensor(*shape)
    ours = norm(shape[1]) if batch_norm else None
    theirs = norm(shape[1]).double() if batch_norm else nn.Identity()
    mask = dropped_ones(shape, p, seed=1).double()

    mine = x.clone().requires_grad_()
    torch.manual_seed(1)
    out = kernels.relu_norm_dropout(mine, ours, p)
    out.backward(gradient)
    exact = x.double().requires_grad_()
    expected = theirs(F.relu(exact)) * mask
    expected.backward(gradient.double())

    assert torch.allclose(out.double(), expected, atol=1e-5)
    assert torch.allclose(mine.grad.double(), exact.grad, atol=1e-5)
    if ours is not None:
        for one, other in (
            (ours.weight.grad, theirs.weight.grad),
            (ours.bias.grad, theirs.bias.grad),
            (ours.running_mean, theirs.running_mean),
            (ours.running_var, theirs.running_var),
        ):
            assert torch.allclose(one.double(), other, rtol=1e-5, atol=1e-3)
        assert ours.num_batches_tracked == theirs.num_batches_tracked


@pytest.mark.parametrize("batch_norm", [True, False])
def test_bfloat16_is_float32_rounded_once(batch_norm: bool) -> None:
    shape = (33, 16, 26, 26)

    def run(dtype: torch.dtype) -> list[torch.Tensor]:
        torch.manual_seed(0)
        x, gradient = tensor(*shape).bfloat16(), tensor(*shape).bfloat16()
        x[0, 0, 0, :2] = torch.tensor([torch.inf, torch.nan])
        x = x.to(dtype).requires_grad_()
        layer = norm(16) if batch_norm else None
        out = kernels.relu_norm_dropout(x, layer, 0.3)
        assert out.dtype == dtype
        out.backward(gradient.to(dtype))
        sums = [] if layer is None else [layer.weight.grad, layer.running_mean, layer.running_var]
        return [out.bfloat16(), x.grad.bfloat16(), *sums]

    for half, full in zip(run(torch.bfloat16), run(torch.float32), strict=True):
        assert torch.equal(half.isnan(), full.isnan())
        assert torch.equal(half.nan_to_num(), full.nan_to_num())


def test_the_number_of_threads_changes_no_bit() -> None:
    def run(threads: int) -> list[torch.Tensor]:
        process.prepare(threads)
        assert (torch.get_num_threads(), numba.get_num_threads()) == (threads, threads)
        torch.manual_seed(0)
        x, gradient, layer = (
            tensor(64, 16, 26, 26).requires_grad_(),
            tensor(64, 16, 26, 26),
            norm(16),
        )
        out = kernels.relu_norm_dropout(x, layer, 0.2)
        out.backward(gradient)
        assert torch.get_num_threads() == threads
        return [out, x.grad, layer.weight.grad, layer.bias.grad, layer.running_var]

    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("Numba has one thread here, one per core: there is no second to compare with")
    both = zip(run(1), run(2), strict=True)
    assert all(torch.equal(one, two) for one, two in both)


@pytest.mark.parametrize(
    "x",
    [
        *[torch.ones(32, channels, 4, 4) for channels in (3, 10, 20, 33, 64)],
        torch.ones(1, 16, 1, 1),  # half a row
        torch.ones(3, 32, 5, 5).double(),
        torch.ones(3, 32, 5, 5).half(),
    ],
    ids=lambda x: f"{x.dtype}-{tuple(x.shape)}",
)
def test_a_tensor_that_does_not_fit_is_refused(x: torch.Tensor) -> None:
    for layer in (None, norm(x.shape[1])):
        with pytest.raises(ValueError, match="does not fit; channels must divide 32"):
            kernels.relu_norm_dropout(x, layer, 0.1)


def test_nan_is_not_hidden() -> None:
    x = tensor(2, 16, 6, 6)
    x[0, 0, 0, 0] = float("nan")
    assert kernels.relu_norm_dropout(x, None, 0.0).isnan().sum() == 1
    assert kernels.relu_norm_dropout(x, norm(16), 0.0).isnan().any()


def test_the_memory_layout_changes_no_bit() -> None:
    torch.manual_seed(0)
    x, gradient = torch.randn(2, 6, 10, 16), torch.randn(2, 6, 10, 16)

    def run(x: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.detach().requires_grad_()
        torch.manual_seed(1)
        out = kernels.relu_norm_dropout(x, norm(16), 0.2)
        out.backward(gradient)
        return out, x.grad

    last = run(x.permute(0, 3, 1, 2), gradient.permute(0, 3, 1, 2))
    first = run(x.permute(0, 3, 1, 2).contiguous(), gradient.permute(0, 3, 1, 2).contiguous())
    assert torch.equal(last[0], first[0])
    assert torch.equal(last[1], first[1])


class TestDropout:
    SHAPE = (16, 32, 96, 96)
    N = 16 * 32 * 96 * 96

    @pytest.mark.parametrize("p", [0.0, 1e-6, 1e-4, 0.1, 0.3, 0.9])
    def test_the_fraction_kept_and_the_scale_are_exact(self, p: float) -> None:
        out = dropped_ones(self.SHAPE, p, seed=0)
        kept = (out != 0).double().mean().item()
        # The margin is four standard deviations, and half a step of the 16 bits that decide.
        assert kept == pytest.approx(1 - p, abs=4 * (p * (1 - p) / self.N) ** 0.5 + 1 / 131072)
        assert set(out.unique().tolist()) <= {0.0, torch.tensor(1 / (1 - p)).item()}

    @pytest.mark.parametrize("lag", [1, 2, 16, 32, 64, 1024, 32 * 96, 32 * 96 * 96])
    def test_elements_are_independent_of_each_other(self, lag: int) -> None:
        # One hash decides two elements, which are 16 apart in memory.
        kept = (dropped_ones(self.SHAPE, 0.5, seed=0) != 0).double().permute(0, 2, 3, 1).flatten()
        both = (kept[:-lag] * kept[lag:]).mean().item()
        assert both == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / self.N) ** 0.5)

    def test_masks_of_different_steps_are_independent(self) -> None:
        torch.manual_seed(0)
        masks = torch.stack(
            [
                kernels.relu_norm_dropout(torch.ones(64, 32, 24, 24), None, 0.5) != 0
                for _ in range(8)
            ]
        )
        agree = torch.corrcoef(masks.flatten(1).double())
        agree.fill_diagonal_(0)
        assert agree.abs().max() < 4.5 / masks[0].numel() ** 0.5

    def test_every_channel_and_image_is_dropped_as_often(self) -> None:
        kept = (dropped_ones(self.SHAPE, 0.1, seed=3) != 0).double()
        for dims in ((0, 2, 3), (1, 2, 3), (0, 1, 2)):
            fractions = kept.mean(dims)
            noise = (0.09 * len(fractions) / self.N) ** 0.5
            assert (fractions - 0.9).abs().max() < 5 * noise

    def test_the_seed_decides_the_mask(self) -> None:
        one, same, other = (dropped_ones((2, 16, 6, 6), 0.5, seed) for seed in (1, 1, 2))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
