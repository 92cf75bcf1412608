"""The script with which a shell completes the commands and their flags."""

import argparse
from collections.abc import Mapping

from mnist_ray.errors import UserError
from mnist_ray.fields import shown
from mnist_ray.terminal.command import SCRIPT


def completion(commands: Mapping[str, tuple[str, argparse.ArgumentParser]], shell: str = "") -> str:
    """Return a script for `shell` that completes `commands`, of which each name leads to what the
    command does and to its parser. Raises UserError for a shell that is not known."""
    import shtab

    if shell not in shtab.SUPPORTED_SHELLS:
        raise UserError(
            f"completion is {shown(shell) or 'empty'}, but must be one of"
            f" {', '.join(shtab.SUPPORTED_SHELLS)}."
        )
    root = argparse.ArgumentParser(prog=SCRIPT)
    found = root.add_subparsers()
    for name, (text, parser) in commands.items():
        for action in parser._actions:
            values = action.metavar if isinstance(action.metavar, str) else ""
            if values and values == values.lower():
                # The config class checks a choice. Here it is only completed.
                action.choices = values.split("|")
            elif "FILE" in values or not action.option_strings:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif "DIR" in values:
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        found.add_parser(name, parents=[parser], add_help=False, help=text)
    script: str = shtab.complete(root, shell)
    return script
