"""A trained network in files that others read: safetensors, ONNX and PT2, PyTorch's own."""

import copy
import importlib
import io
import logging
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mnist_ray import restored
from mnist_ray.errors import UserError
from mnist_ray.learn.data import MEAN, STD

NEEDS = {"safetensors": ("safetensors",), "onnx": ("onnx", "onnxscript"), "pt2": ()}
"""The packages that writing each format needs, besides PyTorch."""


class FromPixels(nn.Module):
    """A network that takes images as MNIST has them, uint8 (n, 28, 28), and returns probabilities,
    float32 (n, 10)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.unsqueeze(1).float()
        log_probabilities: Tensor = self.network((pixels - 255 * MEAN) / (255 * STD))
        return log_probabilities.exp()


def check(form: str) -> None:
    """Raise UserError if a package that the format `form` needs is not installed."""
    for package in NEEDS[form]:
        try:
            importlib.import_module(package)
        except ImportError:
            raise UserError(
                f"format is {form}, but {package} is not installed; pip install"
                " 'mnist_ray[export]'."
            ) from None


def exported(network: nn.Module, form: str, about: Mapping[str, str]) -> bytes:
    """Return a network as a file of the format `form`, safetensors, onnx or pt2.

    A safetensors file has the weights alone, and `about` as its metadata. The others hold the
    computation of `FromPixels` in eval mode, in PyTorch's or ONNX's own operators.
    """
    check(form)
    # A copy in the usual layout, because the network's channels-last one is for training.
    network = copy.deepcopy(network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    network = network.requires_grad_(False).eval()
    if form == "safetensors":
        from safetensors.torch import save

        return bytes(save(network.state_dict(), metadata=dict(about)))
    network = FromPixels(network).eval()
    # Two images, because PyTorch takes a batch of one for a constant.
    images = (torch.zeros(2, 28, 28, dtype=torch.uint8),)
    shapes = ({0: torch.export.Dim("n", min=1)},)
    file = io.BytesIO()
    if form == "pt2":
        program = torch.export.export(network, images, dynamic_shapes=shapes)
        torch.export.save(program, file, extra_files=dict(about))
        return file.getvalue()
    with restored.log_level("torch.onnx", logging.ERROR), warnings.catch_warnings():
        # PyTorch's exporter calls what PyTorch has deprecated.
        warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec", FutureWarning)
        made = torch.onnx.export(
            network,
            images,
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
    assert made is not None
    proto = made.model_proto
    for name, text in about.items():
        proto.metadata_props.add(key=name, value=text)
    return bytes(proto.SerializeToString())
