import pytest
import torch
from torch import nn

from mnist_ray import model
from mnist_ray.config import TrainConfig


def test_the_network_has_13808_parameters_and_no_bias_in_a_convolution() -> None:
    network = model.build(TrainConfig())
    assert sum(p.numel() for p in network.parameters()) == 13_808
    assert all(layer.bias is None for layer in network if isinstance(layer, nn.Conv2d))


def test_without_batch_norm_and_dropout_these_layers_are_gone() -> None:
    network = model.build(TrainConfig(batch_norm=False, dropout=0))
    assert sum(p.numel() for p in network.parameters()) == 13_584
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    network.train()
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(network(x), network(x))


def test_the_layer_table_adds_up() -> None:
    rows = model.layers(model.build(TrainConfig()))
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
    network = model.build(TrainConfig()).eval()
    out = network(torch.randn(3, 1, 28, 28))
    assert out.shape == (3, 10)
    assert torch.allclose(out.exp().sum(1), torch.ones(3), atol=1e-5)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_in_eval_mode_it_is_made_of_stock_layers(batch_norm: bool) -> None:
    config = TrainConfig(batch_norm=batch_norm, dropout=0.5)
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
