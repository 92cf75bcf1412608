"""What fields are made of: validated once, with a sentence for each thing that is wrong.

Flags (`flags.py`), YAML files and search spaces all go through `build`, so a bad value has one
sentence wherever it comes from.
"""

import reprlib
import typing
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from typing_extensions import Self

from mnist_ray.errors import UserError, reason
from mnist_ray.storage import Place


class Config(BaseModel):
    """Base of the config classes: frozen, no unknown fields, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def replace(self, **changes: Any) -> Self:
        """A validated copy with `changes` applied; raises UserError."""
        return build(type(self), {**self.model_dump(), **changes})


C = TypeVar("C", bound=Config)

UNREADABLE = (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError)
"""What PyYAML raises: for bad syntax, an impossible date, an odd tag, a thousand brackets."""


def build(cls: type[C], values: Mapping[str, Any]) -> C:
    """`cls(**values)`, with a sentence for each thing wrong; raises UserError."""
    for name, value in values.items():
        if name in cls.model_fields:
            _refuse_bool(cls, name, value)
    try:
        return cls(**values)
    except ValidationError as error:
        raise UserError(" ".join(_sentence(cls, e) for e in error.errors()[:3])) from None


def _refuse_bool(cls: type[Config], name: str, value: Any) -> None:
    """Raise UserError where a field that is a number or a text is set to true or false."""
    annotation = cls.model_fields[name].annotation
    if isinstance(value, bool) and bool not in (typing.get_args(annotation) or (annotation,)):
        raise UserError(f"{name} is {str(value).lower()}, but must not be true or false.")


def field_value(cls: type[Config], name: str, value: Any) -> Any:
    """`value` in the type of the field `name` of `cls`, whatever the other fields are; raises
    UserError where the field cannot have it."""
    _refuse_bool(cls, name, value)
    field = cls.model_fields[name]
    annotated: Any = Annotated[field.annotation, field]
    kind: TypeAdapter[Any] = TypeAdapter(annotated, config=ConfigDict(allow_inf_nan=False))
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        raise UserError(_sentence(cls, {**error.errors()[0], "loc": (name,)})) from None


def read_yaml(path: Place) -> dict[str, Any]:
    """The fields in a recipe file; raises UserError if it is not a mapping of names to values."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
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
    """The range of a field in words, like `at least 0, at most 0.9`; empty where it has none."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return ", ".join(
        f"{word} {getattr(rule, name)}"
        for name, word in words.items()
        for rule in field.metadata
        if hasattr(rule, name)
    )


def shown(value: Any) -> str:
    """A value in an error message: on one line, and not too long."""
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
"""What a field takes, where its bounds do not say it."""


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
