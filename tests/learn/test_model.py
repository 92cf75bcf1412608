import pytest
import torch
from torch import nn

from mnist_ray.config import Recipe
from mnist_ray.learn import kernels, model


def test_the_network_has_13808_parameters_and_no_bias_in_a_convolution() -> None:
    network = model.build(Recipe())
    assert sum(p.numel() for p in network.parameters()) == 13_808
    assert all(layer.bias is None for layer in network if isinstance(layer, nn.Conv2d))


def test_batch_norm_and_dropout_can_be_switched_off() -> None:
    network = model.build(Recipe(batch_norm=False, dropout=0))
    assert sum(p.numel() for p in network.parameters()) == 13_584
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    network.train()
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(network(x), network(x))


def test_the_layer_table_adds_up() -> None:
    rows = model.layers(model.build(Recipe()))
    assert sum(row.parameters for row in rows) == 13_808
    convolutions = [(row.output, row.parameters) for row in rows if row.name.startswith("Conv")]
    assert convolutions == [
        ((16, 26, 26), 144),
        ((32, 24, 24), 4608),
        ((10, 24, 24), 320),
        ((16, 10, 10), 1440),
        ((16, 8, 8), 2304),
        ((16, 6, 6), 2304),
        ((16, 6, 6), 2304),
        ((10, 1, 1), 160),
    ]
    assert [row.name for row in rows[:4]] == ["Conv2d 3x3", "ReluNormDropout"] * 2


def test_it_returns_log_probabilities() -> None:
    network = model.build(Recipe()).eval()
    out = network(torch.randn(3, 1, 28, 28))
    assert out.shape == (3, 10)
    assert torch.allclose(out.exp().sum(1), torch.ones(3), atol=1e-5)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_in_eval_mode_it_is_made_of_stock_layers(batch_norm: bool) -> None:
    config = Recipe(batch_norm=batch_norm, dropout=0.5)
    network = model.build(config)
    network(torch.randn(8, 1, 28, 28))  # moves the running statistics
    network.eval()
    x = expected = torch.randn(3, 1, 28, 28)
    for layer in network:
        if isinstance(layer, model.ReluNormDropout):
            expected = expected.relu()
            expected = layer.norm(expected) if layer.norm else expected
        else:
            expected = layer(expected)
    assert torch.equal(network(x), expected)


# Odd sizes, one with a single pixel, and a size whose number of elements 32 divides.
@pytest.mark.parametrize("size", [(3, 1, 1), (2, 5, 7), (3, 13, 3), (4, 4, 8)])
@pytest.mark.parametrize("channels", range(1, 65))
def test_with_any_number_of_channels_it_trains_as_pytorchs_layers_do(
    channels: int, size: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    b, h, w = size
    x, gradient = torch.randn(b, channels, h, w), torch.randn(b, channels, h, w)
    for batch_norm in (True, False):
        layer = model.ReluNormDropout(channels, batch_norm, p=0.0)
        norm = nn.BatchNorm2d(channels) if batch_norm else nn.Identity()
        with torch.no_grad():
            for norms in (layer.norm, norm):
                if isinstance(norms, nn.BatchNorm2d):
                    norms.weight.copy_(torch.linspace(0.5, 2, channels))
                    norms.bias.copy_(torch.linspace(-1, 1, channels))
        one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        out, expected = layer(one * 1), norm((other * 1).relu())
        used = any(
            "ReluNormDropout" in type(node).__name__
            for node in (out.grad_fn, out.grad_fn.next_functions[0][0])
        )
        assert used == (32 % channels == 0 and x.numel() % 32 == 0)
        out.backward(gradient)
        expected.backward(gradient)
        assert torch.allclose(out, expected, rtol=1e-4, atol=1e-5)
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-4)
        ours, theirs = layer.state_dict(), norm.state_dict(prefix="norm.")
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert torch.allclose(value, theirs[name], rtol=1e-4, atol=1e-6)
        for our, their in zip(layer.parameters(), norm.parameters(), strict=True):
            assert torch.allclose(our.grad, their.grad, rtol=1e-4, atol=1e-4)


def test_dropout_of_any_number_of_channels_keeps_the_right_fraction() -> None:
    for channels in (10, 16, 20, 33, 64):
        torch.manual_seed(0)
        out = model.ReluNormDropout(channels, False, p=0.25)(torch.ones(64, channels, 32, 32))
        assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
        assert (out != 0).double().mean().item() == pytest.approx(0.75, abs=0.01)


def test_every_layer_of_the_network_trains_by_the_compiled_loops() -> None:
    for batch in (1, 3, 64):  # an epoch's last batch may have any size
        x = torch.randn(batch, 1, 28, 28)
        for layer in model.build(Recipe()):
            if isinstance(layer, model.ReluNormDropout):
                assert kernels.fits(x)
            x = layer(x)
