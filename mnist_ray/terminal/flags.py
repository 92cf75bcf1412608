"""Command-line flags, made from the fields of the config classes, over a recipe file."""

import argparse
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnist_ray import search, storage, tables
from mnist_ray.config import PerWorker, Recipe, Resources, RunConfig, Seconds, check_batch
from mnist_ray.errors import UserError
from mnist_ray.fields import Config, bounds, build, read_yaml, shown
from mnist_ray.terminal import command

RESUME_MAY_CHANGE = ("time_budget", "track", "max_concurrent", *PerWorker.model_fields)
"""Settings that a resumed run need not have begun with, besides the fields of RunConfig: they
decide nothing that is learned."""


ENTRIES: dict[str, Mapping[str, search.Method | search.Policy]] = {
    "search": search.SAMPLERS,
    "scheduler": search.SCHEDULERS,
}
"""What a field can name, beside what its type says."""


def parse(
    argv: Sequence[str],
    kind: str,
    *classes: type[Config],
    description: str,
    defaults: Mapping[str, Any] | None = None,
) -> list[Any]:
    """One validated config of each class from the flags of the command `kind`; the last is a
    RunConfig.

    A flag wins over the recipe file, the file over `defaults`, those over the fields' own. A
    resumed run keeps the settings that it began with, of which those that decide what is learned
    cannot change. Raises UserError; argparse exits with 2 on an unknown flag.
    """
    defaults = defaults or {}
    owners = {name: cls for cls in classes for name in cls.model_fields}
    parser = argparse.ArgumentParser(
        prog=command.typed(kind), description=description, allow_abbrev=False
    )
    parser.add_argument("--config", metavar="FILE|URI", help="YAML file of these fields.")
    group: argparse._ActionsContainer = parser
    for name, cls in owners.items():
        if name in cls.groups:
            group = parser.add_argument_group(cls.groups[name])
        _add_flag(group, name, cls.model_fields[name], defaults)
    flags = vars(parser.parse_args(argv))
    recipe = flags.pop("config")
    texts = [name for name, cls in owners.items() if _is_text(cls.model_fields[name])]
    given = read_yaml(storage.place("config", recipe), texts) if recipe else {}
    given |= {name: value for name, value in flags.items() if value is not None}
    if flags.get("space"):
        given["space"] = _space(flags["space"])
    if unknown := sorted(set(given) - set(owners)):
        raise UserError(
            f"{shown(unknown[0])} in {recipe} is not a field; the fields are {', '.join(owners)}."
        )

    def configs(values: Mapping[str, Any]) -> list[Any]:
        built: dict[type, Any] = {cls: build(cls, _of(cls, values)) for cls in classes}
        if Recipe in built and Resources in built:
            check_batch(built[Recipe], built[Resources])
        return list(built.values())

    (run,) = (build(cls, _of(cls, given)) for cls in classes if issubclass(cls, RunConfig))
    if not run.resume:
        return configs({**defaults, **given})
    began = tables.recorded_settings(run, kind)
    needed = {name for name, cls in owners.items() if not issubclass(cls, RunConfig)}
    if odd := sorted(needed ^ set(began)):
        raise UserError(
            f"{kind}.yaml of {run.name} was written by another version of mnist_ray, or"
            f" changed: {shown(odd[0])} is {'not a field' if odd[0] in began else 'missing'}."
        )
    # A number of workers without a range takes back a range.
    both = {"min_workers": None} if "num_workers" in given else {}
    asked = configs({**began, **both, **given})
    for old, new in zip(configs({**began, **_of(type(run), given)}), asked, strict=True):
        may_change: tuple[str, ...] = RESUME_MAY_CHANGE
        if isinstance(old, Resources) and _within(old, new):
            may_change = (*may_change, "num_workers", "min_workers")
        for name in type(new).model_fields:
            was, value = getattr(old, name), getattr(new, name)
            if value != was and name not in may_change:
                raise UserError(
                    f"{name} is {shown(value)}, but {run.name} began with {shown(was)}; leave it"
                    " out, or choose another --name."
                )
    return asked


def _within(old: Resources, new: Resources) -> bool:
    """Whether `new` asks for a number of workers that `old` could have gone on with too."""
    least = new.min_workers or new.num_workers
    return (old.min_workers or old.num_workers) <= least and new.num_workers <= old.num_workers


def _of(cls: type[Config], values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in cls.model_fields}


def _add_flag(
    group: argparse._ActionsContainer, name: str, field: Any, defaults: Mapping[str, Any]
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
    repeated = {dict: " Give it once per dimension.", list: " Give it once per configuration."}
    if more := repeated.get(typing.get_origin(field.annotation)):
        text = field.description + more
    text = text.replace("%", "%%")  # argparse formats it
    if entries := ENTRIES.get(name):
        named = "; ".join(f"{each} {entry.says}" for each, entry in entries.items())
        text = f"{field.description} {named}. (default: {shown})"
    extra = field.json_schema_extra or {}
    flag = extra.get("flag", f"--{name.replace('_', '-')}")
    kinds = _kinds(field)
    if bool in kinds:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
    elif typing.get_origin(field.annotation) is dict:
        group.add_argument(flag, action="append", metavar="NAME=SPACE", help=text)
    elif typing.get_origin(field.annotation) is list:
        group.add_argument(flag, dest=name, action="append", metavar=extra["metavar"], help=text)
    elif typing.get_origin(field.annotation) is typing.Literal or name in ENTRIES:
        choices = "|".join(ENTRIES.get(name) or typing.get_args(field.annotation))
        group.add_argument(flag, metavar=choices, help=text)
    else:
        kind = {int: "N", float: "X", Path: "DIR", Seconds: "TIME"}.get(kinds[0], "NAME")
        kind = "DIR|URI" if name == "storage" else kind
        # Values stay text here: the config class turns them into numbers and checks them.
        group.add_argument(flag, metavar=kind, help=text)


def _kinds(field: Any) -> tuple[Any, ...]:
    """The types that a field can have."""
    is_union = typing.get_origin(field.annotation) in (typing.Union, types.UnionType)
    return typing.get_args(field.annotation) if is_union else (field.annotation,)


def _is_text(field: Any) -> bool:
    return any(kind in (str, Path) for kind in _kinds(field))


def _space(texts: Sequence[str]) -> dict[str, str]:
    """The dimensions, by the names of their fields; raises UserError."""
    space: dict[str, str] = {}
    for text in texts:
        name, equals, spec = text.partition("=")
        if not equals:
            raise UserError(f"space is {shown(text)!r}, but must be like lr=loguniform(0.003,0.3).")
        name = name.strip().replace("-", "_")
        if name in space:
            raise UserError(f"space has {shown(name)} twice; give it once.")
        space[name] = spec.strip()
    return space
