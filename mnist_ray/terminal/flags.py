"""Command-line flags: one for each field of the config classes, and a recipe file for them all."""

import argparse
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnist_ray import search
from mnist_ray.config import (
    RECIPES,
    PerWorker,
    Recipe,
    Resources,
    RunConfig,
    Seconds,
    check_batch,
    config_file,
)
from mnist_ray.errors import UserError
from mnist_ray.fields import Config, bounds, build, read_yaml, shown
from mnist_ray.terminal import command

RESUME_MAY_CHANGE = (
    *search.CHANGEABLE,
    *("track", "max_concurrent", "trials_per_gpu"),
    *PerWorker.model_fields,
)
"""Settings that a resumed run may change, as it may all of RunConfig: they do not affect what was
learned so far."""

REGISTRIES: dict[str, Mapping[str, search.Method | search.Policy]] = {
    "search": search.SAMPLERS,
    "scheduler": search.SCHEDULERS,
}
"""The registries of the fields whose value is a name in one."""

METAVARS = {
    "num_workers": "N|MIN:MAX",
    "space": "NAME=SPACE",
    "storage": "DIR|URI",
    "track": "mlflow|wandb",
}
"""How `--help` writes the value of a flag, where the type of the field does not say it."""


NO_DEFAULTS: Mapping[str, Any] = types.MappingProxyType({})


def parser(
    kind: str,
    *classes: type[Config],
    description: str,
    defaults: Mapping[str, Any] = NO_DEFAULTS,
) -> argparse.ArgumentParser:
    """Return the parser of the command `kind`, with a flag for each field of `classes`. `defaults`
    win over the defaults of the fields."""
    made = command.parser(kind, description, usage="%(prog)s [-h] [--FLAG VALUE ...]")
    made.add_argument(
        "--config",
        metavar="FILE|URI|NAME",
        help="YAML file with a value for any of the fields below, like `batch_size: 64`, or a"
        f" recipe by its name: {', '.join(RECIPES)}. A flag wins over it.",
    )
    group: argparse._ActionsContainer = made
    for cls in classes:
        for name, field in cls.model_fields.items():
            if title := cls.groups.get(name):
                group = made.add_argument_group(title)
            _add_flag(group, name, field, defaults)
    return made


def parse(
    argv: Sequence[str],
    kind: str,
    *classes: type[Config],
    description: str,
    defaults: Mapping[str, Any] = NO_DEFAULTS,
) -> list[Any]:
    """Return one validated config per class, from the flags `argv` of the command `kind`. One of
    the classes is a RunConfig.

    A flag wins over the recipe file; `settle` says what wins over what besides. Raises UserError.
    An unknown flag ends the process with exit code 2.
    """
    owners = {name: cls for cls in classes for name in cls.model_fields}
    fields = {name: cls.model_fields[name] for name, cls in owners.items()}
    arguments = parser(kind, *classes, description=description, defaults=defaults)
    flags = vars(arguments.parse_args(argv))
    file = flags.pop("config")
    texts = [name for name, field in fields.items() if {str, Path} & {*_kinds(field)}]
    given = read_yaml(config_file(file), texts) if file else {}
    given |= {name: value for name, value in flags.items() if value is not None}
    if flags.get("space"):
        given["space"] = _space(flags["space"])
    if unknown := sorted(set(given) - set(owners)):
        raise UserError(
            f"{shown(unknown[0])} in {file} is not a field; the fields are {', '.join(owners)}."
        )
    return settle(given, kind, *classes, defaults=defaults)


def settle(
    given: Mapping[str, Any],
    kind: str,
    *classes: type[Config],
    defaults: Mapping[str, Any] = types.MappingProxyType({}),
) -> list[Any]:
    """Return one validated config per class for a run of `kind`, from the fields that are `given`.
    One of the classes is a RunConfig.

    What is given wins over `defaults`, and `defaults` over the defaults of the fields. A resumed
    run keeps its recorded settings; changing one that affects what is learned is an error. Raises
    UserError.
    """
    owners = {name: cls for cls in classes for name in cls.model_fields}

    def configs(values: Mapping[str, Any]) -> list[Any]:
        built: dict[type, Any] = {cls: build(cls, _of(cls, values)) for cls in classes}
        if Recipe in built and Resources in built:
            check_batch(built[Recipe], built[Resources])
        return list(built.values())

    run_class = next(cls for cls in classes if issubclass(cls, RunConfig))
    run = build(run_class, _of(run_class, given))
    if not run.resume:
        return configs({**defaults, **given})
    from mnist_ray import tables  # only for a resumed run: pyarrow takes a while to import

    recorded = tables.recorded_settings(run, kind)
    needed = {name for name, cls in owners.items() if cls is not run_class}
    if odd := sorted((needed ^ set(recorded)) - set(run_class.model_fields)):
        raise UserError(
            f"{kind}.yaml of {run.name} was written by another version of mnist_ray, or changed:"
            f" {shown(odd[0])} is {'not a field' if odd[0] in recorded else 'missing'}."
        )
    # A plain number of workers replaces a recorded range.
    no_range = {"min_workers": None} if "num_workers" in given else {}
    asked = configs({**recorded, **no_range, **given})
    for old, new in zip(configs({**recorded, **_of(run_class, given)}), asked, strict=True):
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
    """Tell whether every number of workers that `new` allows is one that `old` allows."""
    fewest = new.min_workers or new.num_workers
    return (old.min_workers or old.num_workers) <= fewest and new.num_workers <= old.num_workers


def _of(cls: type[Config], values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in cls.model_fields}


def _add_flag(
    group: argparse._ActionsContainer, name: str, field: Any, defaults: Mapping[str, Any]
) -> None:
    kinds, origin = _kinds(field), typing.get_origin(field.annotation)
    registry = REGISTRIES.get(name, {})
    text = field.description
    if registry:
        text += f" {'; '.join(f'{each} {entry.says}' for each, entry in registry.items())}."
    repeated = {dict: " Give it once per dimension.", list: " Give it once per configuration."}
    if origin in repeated:
        text += repeated[origin]
    else:
        default = defaults.get(name, field.default)
        if default is None or isinstance(default, bool):
            default = str(default).lower()
        limits = bounds(field)
        text += f" ({limits + '; ' if limits else ''}default: {default})"
    extra = field.json_schema_extra or {}
    options: dict[str, Any] = {"help": text.replace("%", "%%")}  # argparse formats it
    if bool in kinds:
        options["action"] = argparse.BooleanOptionalAction
    else:
        # Values stay text here: the config class turns them into numbers and checks them.
        choices = typing.get_args(field.annotation) if origin is typing.Literal else registry
        of_type = {int: "N", float: "X", Path: "DIR", Seconds: "TIME"}.get(kinds[0], "NAME")
        metavar = extra.get("metavar") or METAVARS.get(name, of_type)
        options["metavar"] = "|".join(choices) or metavar
        options["action"] = "append" if origin in repeated else "store"
    group.add_argument(extra.get("flag", f"--{name.replace('_', '-')}"), dest=name, **options)


def _kinds(field: Any) -> tuple[Any, ...]:
    """Return the types that a field can have."""
    is_union = typing.get_origin(field.annotation) in (typing.Union, types.UnionType)
    return typing.get_args(field.annotation) if is_union else (field.annotation,)


def _space(texts: Sequence[str]) -> dict[str, str]:
    """Return the dimensions as written, such as loguniform(0.003,0.3), by the fields that they
    vary. Raises UserError."""
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
