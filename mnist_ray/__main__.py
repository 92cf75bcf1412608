"""The command `mnist-ray COMMAND …`, also `python -m mnist_ray COMMAND …`."""

import importlib
import sys
from collections.abc import Sequence

from mnist_ray import __version__, errors
from mnist_ray.terminal import completion, typed

COMMANDS = {
    "train": "train once, with Ray Train; without flags, the reference recipe",
    "tune": "search hyperparameters, with Ray Tune",
    "results": "show what studies and training runs found",
    "evaluate": "score a checkpoint, image by image",
    "predict": "say which digits are in pictures",
    "export": "write a checkpoint for other programs: safetensors, ONNX, PT2",
}
OPTIONS = {
    "--version": "show the version",
    "--completion SHELL": "print a script that completes commands and flags in bash, zsh or fish",
}


def main() -> int:
    command, *argv = sys.argv[1:] or ["--help"]
    if command in COMMANDS:
        # Only the command that runs is imported: Ray and torch take seconds.
        return errors.run(
            lambda argv: importlib.import_module(f"mnist_ray.{command}").main(argv), argv
        )
    if command == "--completion":
        return errors.run(_print_completion, argv)
    if command == "--version":
        print(f"mnist_ray {__version__}")
        return 0
    print(f"usage: {typed('COMMAND')} [--help] ...\n")
    for names in (COMMANDS, OPTIONS):
        width = max(map(len, names))
        print(*(f"  {name:<{width}}  {text}" for name, text in names.items()), "", sep="\n")
    if command in ("-h", "--help"):
        return 0
    print(f"error: {command} is not a command.", file=sys.stderr)
    return 2


def _print_completion(argv: Sequence[str]) -> None:
    commands = {
        name: (text, importlib.import_module(f"mnist_ray.{name}").parser())
        for name, text in COMMANDS.items()
    }
    print(completion(commands, *argv[:1]))


if __name__ == "__main__":
    raise SystemExit(main())
