"""Generated bad input of every kind. A command exits with code 2, prints one line that names the
field or the file, and changes nothing."""

import contextlib
import io
import math
import shutil
import string
import struct
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mnist_ray import errors, evaluate, results, search, tables, train, tune
from mnist_ray.cluster import resume
from mnist_ray.config import STUDY_RECIPE, Recipe, Resources, RunConfig, TuneConfig
from mnist_ray.errors import UserError
from mnist_ray.learn import checkpoint
from mnist_ray.learn.checkpoint import Checkpoint
from mnist_ray.learn.fetch import FILES
from mnist_ray.learn.model import build


def many(examples: int) -> settings:
    slow = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=None, suppress_health_check=slow)


def refused(main: Any, *argv: str) -> str:
    """Check that a command refuses its input in one line, and return the line."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = errors.run(main, argv)
    lines = said.getvalue().splitlines()
    assert code == 2, said.getvalue()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert len(lines[0]) < 1000
    return lines[0]


def out_of_bounds(field: Any) -> st.SearchStrategy[Any]:
    """Return numbers outside the field's bounds."""
    found = []
    for rule in field.metadata:
        for name, sign, strict in (("ge", -1, 1), ("gt", -1, 0), ("le", 1, 1), ("lt", 1, 0)):
            if hasattr(rule, name):
                bound = getattr(rule, name)
                found.append(st.integers(strict, 10**30).map(lambda n, b=bound, s=sign: b + s * n))
    return st.one_of(found)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


def bad_values(field: Any) -> st.SearchStrategy[Any]:
    """Return values that are wrong for a field, both as a flag and in YAML."""
    kinds = typing.get_args(field.annotation) or (field.annotation,)
    words = TEXT.filter(lambda text: not _is_a_number(text) and text.strip())
    if typing.get_origin(field.annotation) is typing.Literal:
        return words.filter(lambda text: text not in kinds)
    if bool in kinds:
        return st.sampled_from(["perhaps", "2", "none"])
    if int in kinds:
        # Text with a colon may be a range of workers, like "1:4".
        words = words.filter(lambda text: ":" not in text)
        return out_of_bounds(field) | words | st.floats(0.1, 0.9)
    return out_of_bounds(field) | words | st.sampled_from([math.nan, math.inf, -math.inf])


def _is_a_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


FIELDS = {
    name: field
    for cls in (Recipe, Resources, TuneConfig, RunConfig)
    for name, field in cls.model_fields.items()
    if name
    not in ("space", "tries", "start_from", "track", "name", "data_dir", "storage", "time_budget")
    and name != "num_workers"
}


@st.composite
def bad_fields(draw: st.DrawFn) -> tuple[str, Any]:
    name = draw(st.sampled_from(sorted(FIELDS)))
    return name, draw(bad_values(FIELDS[name]))


def command_of(name: str) -> tuple[Any, str]:
    return (tune.main, "tune") if name in TuneConfig.model_fields else (train.main, "train")


@many(400)
@given(bad_fields())
def test_flags(bad: tuple[str, Any]) -> None:
    name, value = bad
    assume(bool not in (typing.get_args(FIELDS[name].annotation) or (FIELDS[name].annotation,)))
    main, _ = command_of(name)
    assert name in refused(main, f"--{name.replace('_', '-')}={value}")


@many(300)
@given(
    st.one_of(
        bad_fields().map(lambda bad: yaml.safe_dump(dict([bad]), allow_unicode=True).encode()),
        st.dictionaries(
            st.text(string.ascii_lowercase, min_size=3).map(lambda name: f"no_{name}"),
            st.integers() | st.text(string.ascii_letters),
            min_size=1,
        ).map(lambda values: yaml.safe_dump(values).encode()),
        st.lists(st.integers()).map(lambda values: yaml.safe_dump(values).encode()),
        st.sampled_from([b"lr: [", b"\xff\xfe\x00", b"a: &a [*a", b"--- !!python/object:os.x {}"]),
        st.binary(min_size=1).map(lambda content: b"\x00" + content),
        st.sampled_from([[], {}, [1], {"a": 1}]).map(
            lambda value: yaml.safe_dump({"lr": value}).encode()
        ),
    )
)
def test_recipes(tmp_path: Path, content: bytes) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(content)
    said = refused(tune.main, "--config", str(recipe))
    known = [*Recipe.model_fields, *Resources.model_fields, *TuneConfig.model_fields]
    known += RunConfig.model_fields
    assert str(recipe) in said or any(f"error: {name}" in said for name in known)
    assert recipe.read_bytes() == content
    assert list(tmp_path.iterdir()) == [recipe]


SPECS = st.one_of(
    TEXT,
    st.text("()[]{}0123456789.,-+e lograndiuntchoice'\"#&*!:", max_size=40),
    st.tuples(
        st.sampled_from(["uniform", "loguniform", "randint", "lograndint", "choice", "normal", ""]),
        st.lists(st.floats() | st.integers() | st.text("ab'[", max_size=3), max_size=3),
    ).map(lambda made: f"{made[0]}({', '.join(map(str, made[1]))})"),
)


@many(300)
@given(st.sampled_from([*Recipe.model_fields, "droput", "", "phase"]), SPECS)
def test_spaces(tmp_path: Path, name: str, spec: str) -> None:
    base = Recipe(**STUDY_RECIPE)
    with contextlib.suppress(UserError):
        search.parse({name: spec.strip()}, base)
        assume(False)  # it happens to be a valid space
    said = refused(tune.main, f"--space={name}={spec}", "--storage", str(tmp_path))
    assert "space has " in said
    assert not list(tmp_path.iterdir())


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """Return the bytes with some changed, cut off or inserted, or entirely other bytes."""
    place = st.integers(0, len(content) - 1)
    return st.one_of(
        st.tuples(place, st.integers(1, 255)).map(
            lambda at: content[: at[0]] + bytes([content[at[0]] ^ at[1]]) + content[at[0] + 1 :]
        ),
        place.map(lambda at: content[:at]),
        st.tuples(place, st.binary(min_size=1)).map(
            lambda at: content[: at[0]] + at[1] + content[at[0] :]
        ),
        st.binary(),
    )


@many(100)
@given(st.data())
def test_data_files(tmp_path: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(FILES)))
    magic = b"\x00\x00\x08\x01\x00\x00\x27\x10"
    content = data.draw(damaged(magic + bytes(100)))
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / name).write_bytes(content)
    said = refused(
        train.main, "--data-dir", str(tmp_path / "data"), "--storage", str(tmp_path / "runs")
    )
    assert f"{name} is damaged" in said
    assert (tmp_path / "data" / name).read_bytes() == content
    (tmp_path / "data" / name).unlink()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = Recipe(epochs=1)
    network = build(config)
    state = {"model": network.state_dict(), "optimizer": {}, "epoch": 1}
    folder = tmp_path_factory.mktemp("saved")
    checkpoint.save(folder, Checkpoint(state, config, [{"epoch": 1}], "0"))
    return folder


@many(200)
@given(data=st.data())
def test_checkpoints(saved: Path, tmp_path: Path, data: st.DataObject) -> None:
    original = (saved / checkpoint.FILE).read_bytes()
    content = data.draw(damaged(original))
    (tmp_path / checkpoint.FILE).write_bytes(content)
    try:
        loaded = checkpoint.load(tmp_path)
    except UserError:
        said = refused(evaluate.main, str(tmp_path))
        assert f"checkpoint {tmp_path}" in said
    else:  # the damaged byte has no meaning, like a file's date in the archive
        weights = checkpoint.load(saved).state["model"]
        assert all(
            torch.equal(value, weights[name]) for name, value in loaded.state["model"].items()
        )
    assert (tmp_path / checkpoint.FILE).read_bytes() == content


@many(150)
@given(data=st.data())
def test_results_tables(tmp_path: Path, data: st.DataObject) -> None:
    row = tables.trial_row(Recipe().model_dump(), [], run="a", trial=0, status="failed")
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    (tmp_path / "run").mkdir()
    tables.write(tmp_path / "run", [row], [])
    path = tmp_path / "run" / tables.TRIALS
    content = data.draw(damaged(path.read_bytes()))
    path.write_bytes(content)
    # Either the file is refused, or the damaged byte is none that the commands need.
    for read in (results.main, lambda argv: resume.ended(Path(*argv)) and None):
        said = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            code = errors.run(read, [str(tmp_path / "run")])
        assert code == 0 or f"error: path {path}" in said.getvalue()
        assert code in (0, 2)
    assert path.read_bytes() == content


def test_a_flipped_bit_is_not_another_accuracy(tmp_path: Path) -> None:
    row = tables.trial_row(Recipe().model_dump(), [], run="a", trial=0, final_accuracy=0.125)
    tables.write(tmp_path, [row], [])
    path = tmp_path / tables.TRIALS
    content = path.read_bytes()
    at = content.index(struct.pack("<d", 0.125))
    path.write_bytes(content[:at] + b"\x01" + content[at + 1 :])
    assert f"path {path}" in refused(results.main, str(tmp_path))


@many(100)
@given(st.binary(max_size=60).filter(lambda content: b"\x00" in content) | TEXT.map(str.encode))
def test_what_a_study_began_with(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "old").mkdir(exist_ok=True)
    began = tmp_path / "old" / "tune.yaml"
    began.write_bytes(content)
    said = refused(tune.main, "--resume", "--name", "old", "--storage", str(tmp_path))
    assert "tune.yaml" in said
    assert began.read_bytes() == content
