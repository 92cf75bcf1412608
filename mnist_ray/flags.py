"""Command-line flags, made from the fields of the config classes, over a recipe file."""

import argparse
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnist_ray.config import Config, Seconds, bounds, build, read_yaml
from mnist_ray.errors import UserError, usable


def parse(
    argv: Sequence[str],
    *classes: type[Config],
    prog: str,
    description: str,
    defaults: Mapping[str, Any] | None = None,
    hide: Sequence[str] = (),
) -> list[Any]:
    """One validated config of each class from `argv`.

    A flag wins over the recipe file, the file over `defaults`, those over the fields' own. Fields
    in `hide` can be set by neither. Raises UserError; argparse exits with 2 on an unknown flag.
    """
    defaults = defaults or {}
    owners = {name: cls for cls in classes for name in cls.model_fields if name not in hide}
    parser = argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", type=Path, help="YAML file of these fields.")
    for name, cls in owners.items():
        _add_flag(parser, name, cls.model_fields[name], defaults)
    given = vars(parser.parse_args(argv))
    recipe = given.pop("config")
    values = dict(defaults)
    if recipe:
        values.update(read_yaml(usable("config", recipe)))
    values.update({name: value for name, value in given.items() if value is not None})
    if given.get("space"):
        values["space"] = dict(_dimension(text) for text in given["space"])
    if unknown := sorted(set(values) - set(owners)):
        raise UserError(
            f"{unknown[0]} in {recipe} is not a field; the fields are {', '.join(owners)}."
        )
    return [
        build(cls, {name: values[name] for name in values if owners[name] is cls})
        for cls in classes
    ]


def _add_flag(
    parser: argparse.ArgumentParser, name: str, field: Any, defaults: Mapping[str, Any]
) -> None:
    default = defaults.get(name, field.default)
    shown = (
        "none"
        if default is None
        else str(default).lower()
        if default in (True, False) and isinstance(default, bool)
        else default
    )
    limits = bounds(field)
    text = f"{field.description} ({limits + '; ' if limits else ''}default: {shown})"
    flag = f"--{name.replace('_', '-')}"
    kinds = (
        typing.get_args(field.annotation) if _is_union(field.annotation) else (field.annotation,)
    )
    if bool in kinds:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
    elif typing.get_origin(field.annotation) is dict:
        text = f"{field.description} Give it once per dimension."
        parser.add_argument(flag, action="append", metavar="NAME=SPACE", help=text)
    elif typing.get_origin(field.annotation) is typing.Literal:
        choices = "|".join(typing.get_args(field.annotation))
        parser.add_argument(flag, metavar=choices, help=text)
    else:
        kind = {int: "N", float: "X", Path: "DIR", Seconds: "TIME"}.get(kinds[0], "NAME")
        # Values stay text here: the config class turns them into numbers and checks them.
        parser.add_argument(flag, metavar=kind, help=text.replace("%", "%%"))


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _dimension(text: str) -> tuple[str, str]:
    name, equals, spec = text.partition("=")
    if not equals:
        raise UserError(f"space is {text!r}, but must be like lr=loguniform(0.003,0.3).")
    return name.strip().replace("-", "_"), spec.strip()
