"""Learning: MNIST, the network, the one training loop, checkpoints and scores.

Plain PyTorch. This part never imports Ray or another part.
"""

from typing import TYPE_CHECKING, Any

from mnist_ray.learn.checkpoint import Checkpoint
from mnist_ray.learn.checkpoint import load as load_checkpoint
from mnist_ray.learn.checkpoint import readable as readable_checkpoints
from mnist_ray.learn.checkpoint import save as save_checkpoint
from mnist_ray.learn.data import Mnist, Part, Splits, split, test_part
from mnist_ray.learn.data import load as load_mnist
from mnist_ray.learn.engine import (
    Metrics,
    State,
    computed_with,
    fit,
    resolve_precision,
    seconds_per_image,
)
from mnist_ray.learn.evaluation import Score, evaluate, predict
from mnist_ray.learn.fetch import torchvision_mnist
from mnist_ray.learn.model import Layer, ReluNormDropout, layers
from mnist_ray.learn.model import build as build_network
from mnist_ray.learn.plain import PlainLayer, plain_layers
from mnist_ray.learn.portable import check as check_format
from mnist_ray.learn.portable import exported
from mnist_ray.learn.process import has_gpu, wait_awake
from mnist_ray.learn.process import prepare as prepare_process
from mnist_ray.learn.scoring import Classifier, load_model, predictions, score_test
from mnist_ray.learn.scoring import Report as ScoreReport
from mnist_ray.learn.scoring import report as score_report

if TYPE_CHECKING:
    from mnist_ray.learn.picture import digit as digit_in
    from mnist_ray.learn.picture import read as read_picture

__all__ = [
    "Checkpoint",
    "Classifier",
    "Layer",
    "Metrics",
    "Mnist",
    "Part",
    "PlainLayer",
    "ReluNormDropout",
    "Score",
    "ScoreReport",
    "Splits",
    "State",
    "build_network",
    "check_format",
    "computed_with",
    "digit_in",
    "evaluate",
    "exported",
    "fit",
    "has_gpu",
    "layers",
    "load_checkpoint",
    "load_mnist",
    "load_model",
    "plain_layers",
    "predict",
    "predictions",
    "prepare_process",
    "read_picture",
    "readable_checkpoints",
    "resolve_precision",
    "save_checkpoint",
    "score_report",
    "score_test",
    "seconds_per_image",
    "split",
    "test_part",
    "torchvision_mnist",
    "wait_awake",
]


def __getattr__(name: str) -> Any:
    """Import what looks at pictures when it is asked for. SciPy's part for images takes a quarter
    of a second, and no trial needs it."""
    if name in ("digit_in", "read_picture"):
        from mnist_ray.learn import picture

        return picture.digit if name == "digit_in" else picture.read
    raise AttributeError(f"{__name__} has no {name}")
