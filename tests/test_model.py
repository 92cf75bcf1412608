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
    assert not any(isinstance(layer, (nn.BatchNorm2d, nn.Dropout)) for layer in network)


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
    assert [row.name for row in rows[:4]] == ["Conv2d 3x3", "ReLU", "BatchNorm2d", "Dropout"]


def test_it_returns_log_probabilities() -> None:
    network = model.build(TrainConfig()).eval()
    out = network(torch.randn(3, 1, 28, 28))
    assert out.shape == (3, 10)
    assert torch.allclose(out.exp().sum(1), torch.ones(3), atol=1e-5)


class TestDropout:
    @pytest.mark.parametrize("p", [1e-6, 1e-5, 0.1, 0.3, 0.9])
    def test_the_share_kept_and_the_scale_are_exact(self, p: float) -> None:
        torch.manual_seed(0)
        n = 2**22
        out = model.Dropout(p)(torch.ones(n))
        kept = (out != 0).double().mean().item()
        # By chance, and by the 16 bits that decide.
        assert kept == pytest.approx(1 - p, abs=4 * (p * (1 - p) / n) ** 0.5 + 1 / 65536)
        assert out.max() == pytest.approx(1 / (1 - p))
        assert set((out / out.max()).unique().tolist()) <= {0, 1}

    @pytest.mark.parametrize("lag", [1, 2, 4])
    def test_elements_are_independent_of_their_neighbours(self, lag: int) -> None:
        # Four elements share one random number, so neighbours are where a mistake would show.
        torch.manual_seed(0)
        kept = (model.Dropout(0.5)(torch.ones(2**22)) != 0).double()
        both = (kept[:-lag] * kept[lag:]).mean().item()
        assert both == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 2**22) ** 0.5)

    def test_it_is_off_in_eval(self) -> None:
        x = torch.randn(5, 7)
        assert model.Dropout(0.5).eval()(x) is x

    def test_the_seed_decides(self) -> None:
        def drop(seed: int) -> torch.Tensor:
            torch.manual_seed(seed)
            return model.Dropout(0.5)(torch.ones(1000))

        assert torch.equal(drop(1), drop(1))
        assert not torch.equal(drop(1), drop(2))

    @pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 5, 7), (0, 4)])
    @pytest.mark.parametrize("channels_last", [True, False])
    def test_the_gradient_passes_where_the_value_did(
        self, shape: tuple[int, ...], channels_last: bool
    ) -> None:
        x = torch.ones(shape)
        if channels_last and x.dim() == 4:
            x = x.to(memory_format=torch.channels_last)
        x.requires_grad_()
        out = model.Dropout(0.4)(x)
        out.sum().backward()
        assert torch.equal(x.grad, out.detach())

    def test_any_layout_will_do(self) -> None:
        x = torch.ones(6, 8)[:, ::2]
        assert set(model.Dropout(0.5)(x).unique().tolist()) <= {0.0, 2.0}
