"""Score a checkpoint, image by image: `python -m mnist_ray.evaluate CHECKPOINT`. Needs no Ray."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_ray import errors, search, terminal
from mnist_ray.config import RunConfig

if TYPE_CHECKING:
    from mnist_ray.learn import ScoreReport


def parser() -> argparse.ArgumentParser:
    parser = terminal.command_parser("evaluate", "Score a checkpoint, image by image.")
    parser.add_argument("checkpoint", help="Folder or URI of a checkpoint, or of a run.")
    parser.add_argument(
        "--on",
        choices=["test", "holdout"],
        default="test",
        help="Score the test set, or the training images that the run held out (default: test).",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=RunConfig().data_dir,
        metavar="DIR",
        help="Folder of MNIST's files; fetched if missing (default: %(default)s).",
    )
    parser.add_argument(
        "--worst",
        type=int,
        default=10,
        metavar="N",
        help="How many mistakes to list (at least 0; default: %(default)s).",
    )
    parser.add_argument("--verbose", action="store_true", help="Show the traceback of an error.")
    return parser


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    if args.worst < 0:
        raise errors.UserError(f"worst is {args.worst}, but must be at least 0.")
    from mnist_ray import learn, tables  # after the flags: torch takes seconds to import

    saved = learn.load_checkpoint(tables.checkpoint_at(args.checkpoint))
    mnist = learn.load_mnist(saved.recipe, args.data_dir)
    if args.on == "test":
        part = learn.test_part(mnist)
    elif saved.recipe.holdout:
        part = learn.split(mnist, saved.recipe.holdout, saved.recipe.train_size).score
    else:
        raise errors.UserError(f"checkpoint {args.checkpoint} has no holdout; leave out --on.")
    report = learn.score_report(learn.load_model(saved), part)
    _print(report, args.on, saved.state["epoch"], args.worst)


def _print(report: "ScoreReport", scored_on: str, epoch: int, worst: int) -> None:
    images = int(report.confusion.sum())
    low, high = search.wilson(int(report.confusion.trace()), images)
    print(
        f"{scored_on} accuracy {report.score.accuracy:.2%} of {images:,} images"
        f" (95 % interval {low:.2%} to {high:.2%}), loss {report.score.loss:.4f}, epoch {epoch}\n"
    )
    print("label   right   accuracy   taken for " + " ".join(f"{d:>4}" for d in range(10)))
    for digit, row in enumerate(report.confusion.tolist()):
        accuracy = row[digit] / max(sum(row), 1)
        counts = " ".join(f"{count:>4}" if count else "   ." for count in row)
        print(f"{digit:>5} {row[digit]:>7} {accuracy:>10.2%}             {counts}")
    print(f"\n{len(report.wrong)} wrong; the most confident mistakes:")
    for index, label, guess, probability in report.wrong[:worst]:
        print(f"  image {index:>5} is a {label}, taken for a {guess} with {probability:.1%}")


if __name__ == "__main__":
    raise SystemExit(errors.run(main))
