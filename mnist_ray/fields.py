"""Reads and validates the fields of the config classes, with a sentence for each wrong value.

Command-line flags, YAML files and search spaces are all read here, so that a bad value gets the
same sentence wherever it comes from.
"""

import re
import reprlib
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from mnist_ray.errors import UserError, reason
from mnist_ray.storage import Place


class Config(BaseModel):
    """The base of the config classes: frozen, without unknown fields, NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    groups: ClassVar[Mapping[str, str]] = {}
    """The titles of the groups of flags in `--help`, by the first field of each group."""

    def replace(self, **changes: Any) -> Self:
        """Return a copy with `changes`; raises UserError where the copy is not valid."""
        return build(type(self), {**self.model_dump(), **changes})


C = TypeVar("C", bound=Config)

UNREADABLE = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)
"""What PyYAML raises for bad syntax, a bad number, an unknown tag, or a thousand brackets."""


class CoreLoader(yaml.SafeLoader):
    """Reads YAML by the core schema of YAML 1.2 (yaml.org/spec/1.2.2, section 10.3.2).

    PyYAML's own loaders read YAML 1.1, in which `1:4` is 64, `010` is 8, `1e-3` is a text, and `no`
    is false. Here, a key that is there twice is an error.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            twice = next(i for i, key in enumerate(keys) if key in keys[:i])
            raise yaml.constructor.ConstructorError(
                problem=f"{shown(keys[twice])} is there twice",
                problem_mark=node.value[twice][0].start_mark,
            )
        return mapping


TAG = "tag:yaml.org,2002:"
CORE = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
"""For each type other than text: the pattern of its values, and their possible first characters."""
CoreLoader.yaml_implicit_resolvers = {}  # drops the patterns of YAML 1.1
for _name, (_pattern, _first) in CORE.items():
    CoreLoader.add_implicit_resolver(TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)


def _int(loader: CoreLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _float(loader: CoreLoader, node: yaml.ScalarNode) -> float:
    text = loader.construct_scalar(node)
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


CoreLoader.add_constructor(TAG + "int", _int)
CoreLoader.add_constructor(TAG + "float", _float)


def parse_yaml(text: str, texts: Sequence[str] = ()) -> Any:
    """Return the value of the YAML in `text`; raises one of UNREADABLE.

    The values of the top-level keys in `texts` stay text, even if they look like numbers.
    """
    loader = CoreLoader(text)
    try:
        node = loader.get_single_node()
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if key.value in texts and value.tag in (TAG + "bool", TAG + "int", TAG + "float"):
                value.tag = TAG + "str"
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def build(cls: type[C], values: Mapping[str, Any]) -> C:
    """Return `cls(**values)`; raises UserError with a sentence for each wrong value, at most 3."""
    for name, value in values.items():
        if name in cls.model_fields:
            _refuse_bool(cls, name, value)
    try:
        return cls(**values)
    except ValidationError as error:
        raise UserError(" ".join(_sentence(cls, e) for e in error.errors()[:3])) from None


def _refuse_bool(cls: type[Config], name: str, value: Any) -> None:
    annotation = cls.model_fields[name].annotation
    if isinstance(value, bool) and bool not in (typing.get_args(annotation) or (annotation,)):
        raise UserError(f"{name} is {str(value).lower()}, but must not be true or false.")


def field_value(cls: type[Config], name: str, value: Any) -> Any:
    """Return `value` in the type of the field `name` of `cls`, without checking it against other
    fields. Raises UserError where the field cannot have it."""
    _refuse_bool(cls, name, value)
    field = cls.model_fields[name]
    annotated: Any = Annotated[field.annotation, field]
    kind: TypeAdapter[Any] = TypeAdapter(annotated, config=ConfigDict(allow_inf_nan=False))
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        raise UserError(_sentence(cls, {**error.errors()[0], "loc": (name,)})) from None


def read_yaml(path: Place, texts: Sequence[str] = ()) -> dict[str, Any]:
    """Return the fields in a YAML file. The values of the fields in `texts` stay text.

    Raises UserError where the file cannot be read, or does not map names to values.
    """
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"), texts)
    except OSError as error:
        raise UserError(f"config {path} cannot be read: {reason(error)}.") from None
    except UNREADABLE as error:
        first_line = " ".join(str(error).split())
        raise UserError(f"config {path} is not YAML: {first_line}.") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"config {path} must hold lines like `lr: 0.01`, one per field.")
    return values


def bounds(field: Any) -> str:
    """Return a field's bounds in words, like `at least 0, at most 0.9`; empty without bounds."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return ", ".join(
        f"{word} {getattr(rule, name)}"
        for name, word in words.items()
        for rule in field.metadata
        if hasattr(rule, name)
    )


def counted(number: float, thing: str) -> str:
    """Return "1 trial", "1,000 trials": a number with its noun in the singular or the plural."""
    return f"{number:,} {thing}{'s' * (number != 1)}"


def shown(value: Any) -> str:
    """Return a value as error messages show it: on one line, in at most 60 characters."""
    text = str(value) if isinstance(value, (str, int, float)) else reprlib.repr(value)
    text = " ".join(text.split())
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= 60 else text[:57] + "..."


NEEDED = {
    "name": "letters, digits, dots, dashes and underscores, at most 100, the first one a letter or"
    " digit",
    "track": "mlflow, mlflow=URI, wandb or wandb=PROJECT",
    "time_budget": "a time of at most 10000000 seconds, like 90s, 10m or 2h",
}
"""What each of these fields takes, because its bounds do not say it."""


def _sentence(cls: type[Config], error: Any) -> str:
    if not error["loc"]:  # from a model_validator: already a sentence
        return str(error["msg"]).removeprefix("Value error, ")
    name, value = str(error["loc"][0]), shown(error["input"])
    if error["type"] == "extra_forbidden":
        return f"{shown(name)} is not a field; the fields are {', '.join(cls.model_fields)}."
    field = cls.model_fields[name]
    if error["type"] == "literal_error":
        need = f"one of {', '.join(field.annotation.__args__)}"  # type: ignore[union-attr]
    elif error["type"] in ("bool_parsing", "bool_type"):
        need = "true or false"
    elif name in NEEDED:
        need = NEEDED[name]
    elif error["type"].startswith(("int", "float", "finite", "greater", "less")):
        kind = "a whole number" if "int" in str(field.annotation) else "a number"
        need = f"{kind}, {bounds(field)}"
    else:
        need = str(error["msg"])[0].lower() + str(error["msg"])[1:]
        return f"{'.'.join(map(str, error['loc']))} is {value}: {need}."
    return f"{name} is {value}, but must be {need}."
