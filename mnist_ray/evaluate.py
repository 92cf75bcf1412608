"""Score a checkpoint, image by image: `python -m mnist_ray.evaluate CHECKPOINT`. Without Ray."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mnist_ray import checkpoint, data, engine, errors, model
from mnist_ray.config import RunConfig
from mnist_ray.data import Mnist


class Report(NamedTuple):
    """`confusion[i, j]` counts images of digit i taken for j; `wrong` are (index, label, guess,
    probability of the guess), the most confident first."""

    score: engine.Score
    interval: tuple[float, float]
    confusion: Tensor
    wrong: list[tuple[int, int, int, float]]


def load_model(saved: checkpoint.Checkpoint) -> nn.Sequential:
    """The trained network of a checkpoint, in eval mode; raises UserError if the weights are not
    those of the network that its config builds."""
    network = model.build(saved.config)
    try:
        network.load_state_dict(saved.state["model"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise errors.UserError(
            f"checkpoint holds other weights than its config asks for: {str(error)[:200]}"
        ) from None
    return network.eval()


def score_test(folder: Path, mnist: Mnist) -> engine.Score:
    """Score a checkpoint on the test set."""
    return engine.evaluate(load_model(checkpoint.load(folder)), data.test_part(mnist))


def report(network: nn.Module, part: data.Part) -> Report:
    score = engine.evaluate(network, part)
    probabilities, guesses = engine.predict(network, part).exp().max(dim=1)
    labels = part.labels[part.indices].long()
    confusion = torch.zeros(10, 10, dtype=torch.int64)
    confusion.index_put_((labels, guesses), torch.ones_like(labels), accumulate=True)
    missed = torch.nonzero(guesses != labels).flatten()
    worst = missed[probabilities[missed].argsort(descending=True)]
    wrong = [
        (int(part.indices[i]), int(labels[i]), int(guesses[i]), float(probabilities[i]))
        for i in worst
    ]
    return Report(score, wilson(score.accuracy, score.images), confusion, wrong)


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share seen in n draws (Wilson, JASA 22, 1927, p. 209)."""
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mnist_ray.evaluate", description="Score a checkpoint, image by image."
    )
    parser.add_argument("checkpoint", type=Path, help="Folder of a checkpoint.")
    parser.add_argument(
        "--on",
        choices=["test", "holdout"],
        default="test",
        help="The images: the test set, or those that the run held out (default: test).",
    )
    parser.add_argument("--data-dir", type=Path, default=RunConfig().data_dir, metavar="DIR")
    parser.add_argument("--worst", type=int, default=10, metavar="N", help="Mistakes to list.")
    parser.add_argument("--verbose", action="store_true", help="Tracebacks.")
    args = parser.parse_args(argv)
    if args.worst < 0:
        raise errors.UserError(f"worst is {args.worst}, but must be at least 0.")
    saved = checkpoint.load(args.checkpoint)
    mnist = data.load(args.data_dir)
    if args.on == "test":
        part = data.test_part(mnist)
    else:
        if not saved.config.holdout:
            raise errors.UserError(f"checkpoint {args.checkpoint} held out no images (holdout 0).")
        part = data.split(mnist, saved.config.holdout, saved.config.train_size).score
    _print(report(load_model(saved), part), args.on, saved.state["epoch"], args.worst)


def _print(result: Report, scored_on: str, epoch: int, worst: int) -> None:
    low, high = result.interval
    print(
        f"{scored_on} accuracy {result.score.accuracy:.2%} of {result.score.images:,} images"
        f" (95 % interval {low:.2%} to {high:.2%}), loss {result.score.loss:.4f}, epoch {epoch}\n"
    )
    print("label   right   accuracy   taken for " + " ".join(f"{d:>4}" for d in range(10)))
    for digit, row in enumerate(result.confusion.tolist()):
        share = row[digit] / max(sum(row), 1)
        counts = " ".join(f"{count:>4}" if count else "   ." for count in row)
        print(f"{digit:>5} {row[digit]:>7} {share:>10.2%}             {counts}")
    print(f"\n{len(result.wrong)} wrong; the most confident mistakes:")
    for index, label, guess, probability in result.wrong[:worst]:
        print(f"  image {index:>5} is a {label}, taken for a {guess} with {probability:.1%}")


if __name__ == "__main__":
    raise SystemExit(errors.run(main))
