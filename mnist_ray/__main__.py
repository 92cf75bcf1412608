"""The command `mnist-ray COMMAND …`, also `python -m mnist_ray COMMAND …`."""

import importlib
import sys

from mnist_ray import errors
from mnist_ray.terminal import typed

COMMANDS = {
    "train": "train once, with Ray Train; without flags, the reference recipe",
    "tune": "search hyperparameters, with Ray Tune",
    "results": "show what studies and training runs found",
    "evaluate": "score a checkpoint, image by image",
    "predict": "say which digits are in pictures",
    "export": "write a checkpoint for other programs: safetensors, ONNX, PT2",
}


def main() -> int:
    command, *argv = sys.argv[1:] or ["--help"]
    if command in COMMANDS:
        # Only the command that runs is imported: Ray and torch take seconds.
        return errors.run(
            lambda argv: importlib.import_module(f"mnist_ray.{command}").main(argv), argv
        )
    lines = (f"  {name:<10} {text}" for name, text in COMMANDS.items())
    print(f"usage: {typed('COMMAND')} [--help] ...", "", *lines, sep="\n")
    if command in ("-h", "--help"):
        return 0
    print(f"\nerror: {command} is not a command.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
