"""Say which digits are in pictures: `python -m mnist_ray.predict CHECKPOINT IMAGE …`. No Ray."""

import argparse
from collections.abc import Sequence
from typing import Any

from mnist_ray import errors, terminal

COLUMNS = ("file", "digit", "probability", "warning")

LIKELY = 0.6
"""A guess with a smaller probability than this is doubted."""


def parser() -> argparse.ArgumentParser:
    parser = terminal.command_parser("predict", "Say which digits are in pictures.")
    parser.add_argument("checkpoint", help="Folder or URI of a checkpoint, or of a run.")
    parser.add_argument(
        "image",
        nargs="+",
        help="PNG or JPEG file with one digit, dark on light or light on dark, of any size.",
    )
    parser.add_argument(
        "--format",
        choices=["table", "markdown", "csv", "json"],
        default="table",
        help="How to print what is found (default: table).",
    )
    parser.add_argument("--verbose", action="store_true", help="Show the traceback of an error.")
    return parser


def main(argv: Sequence[str]) -> None:
    """Print a row for each picture that the flags in `argv` name."""
    args = parser().parse_args(argv)
    import numpy as np  # after the flags: torch takes seconds to import
    import pyarrow as pa

    from mnist_ray import learn, tables

    saved = learn.load_checkpoint(tables.checkpoint_at(args.checkpoint))
    classifier = learn.Classifier(learn.load_model(saved), saved.recipe)
    found = [learn.digit_in(learn.read_picture(name)) for name in args.image]
    digits, probabilities = classifier.predict(np.stack([each.image for each in found]))
    rows = []
    for name, (_, doubt), digit, row in zip(
        args.image, found, digits.tolist(), probabilities, strict=True
    ):
        probability = float(row.max())
        doubt = doubt or ("" if probability >= LIKELY else "the guess is unsure")
        rows.append((name, digit, probability, f"no digit? {doubt}" if doubt else None))
    columns: dict[str, Any] = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
    if args.format in ("table", "markdown"):
        columns["probability"] = [f"{probability:.1%}" for probability in columns["probability"]]
    table = pa.table(columns | {"warning": pa.array(columns["warning"], pa.string())})
    print(tables.render(table, args.format))


if __name__ == "__main__":
    raise SystemExit(errors.run(main))
