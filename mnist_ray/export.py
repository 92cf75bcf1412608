"""Write a checkpoint for other programs: `python -m mnist_ray.export CHECKPOINT --format FORMAT`.
Needs no Ray."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from mnist_ray import errors, storage, terminal
from mnist_ray.config import RunConfig


def parser() -> argparse.ArgumentParser:
    parser = terminal.command_parser(
        "export", "Write a checkpoint for other programs, with a model card beside it."
    )
    parser.add_argument("checkpoint", help="Folder or URI of a checkpoint, or of a run.")
    parser.add_argument(
        "--format",
        choices=["safetensors", "onnx", "pt2"],
        required=True,
        help="safetensors holds the weights; onnx and pt2 (PyTorch's own) the computation too,"
        " from pixels to probabilities.",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="Where to write it (default: mnist_ray with the format's name in this folder); the"
        " card gets this name with .md behind it.",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=RunConfig().data_dir,
        metavar="DIR",
        help="Folder of MNIST's files, for the accuracy in the card; fetched if missing"
        " (default: %(default)s).",
    )
    parser.add_argument("--verbose", action="store_true", help="Show the traceback of an error.")
    return parser


def main(argv: Sequence[str]) -> None:
    """Write the file and the card that the flags in `argv` ask for, and print their paths."""
    args = parser().parse_args(argv)
    output = args.output or Path(f"mnist_ray.{args.format}")
    from mnist_ray import learn, tables  # after the flags: torch takes seconds to import

    learn.check_format(args.format)
    with storage.writing("output", output) as file:
        checkpoint = tables.checkpoint_at(args.checkpoint)
        saved = learn.load_checkpoint(checkpoint)
        network = learn.load_model(saved)
        mnist = learn.load_mnist(saved.recipe, args.data_dir)
        score = learn.evaluate(network, learn.test_part(mnist))
        known = tables.trained_by(checkpoint)
        about = {
            "recipe": saved.recipe.model_dump_json(),
            "epoch": str(saved.state["epoch"]),
            "test_accuracy": str(score.accuracy),
            "trained": json.dumps(known, default=str),
        }
        layers = [(each.name, each.output, each.parameters) for each in learn.layers(network)]
        card = tables.model_card(
            file.name, args.format, saved.recipe, saved.epochs, score._asdict(), known, layers
        )
        content = learn.exported(network, args.format, about)
        storage.write(file, content)
        storage.write(file.with_name(f"{file.name}.md"), card.encode())
    print(f"{file}, {len(content) / 1000:.0f} kB\n{file}.md")


if __name__ == "__main__":
    raise SystemExit(errors.run(main))
