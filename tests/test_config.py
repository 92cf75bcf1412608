import math
import re
from pathlib import Path
from typing import Literal

import pytest
import yaml
from pydantic import Field

from mnist_ray import errors, search, train, tune
from mnist_ray.config import (
    RECIPES,
    STUDY_RECIPE,
    PerWorker,
    Recipe,
    Resources,
    RunConfig,
    TuneConfig,
    check_batch,
)
from mnist_ray.errors import UserError
from mnist_ray.fields import Config, bounds, parse_yaml, read_yaml
from mnist_ray.terminal import flags


def parse(*argv: str, **options: object) -> list:
    return flags.parse(
        list(argv), "train", Recipe, Resources, RunConfig, description="d", **options
    )


def test_defaults_are_the_reference_recipe() -> None:
    recipe = read_yaml(RECIPES["reference"])
    assert Recipe(**recipe) == Recipe()
    assert (Recipe().epochs, Recipe().holdout) == (20, 0)
    # A study around it must not inherit a choice of held-out images.
    assert "holdout" not in recipe


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("dropout", 1.5, "dropout is 1.5, but must be a number, at least 0, at most 0.9."),
        ("momentum", -1, "momentum is -1, but must be a number, at least 0, below 1."),
        ("batch_size", 0, "batch_size is 0, but must be a whole number, at least 1, at most 8192."),
        ("batch_size", 12.5, "batch_size is 12.5, but must be a whole number"),
        ("lr", math.nan, "lr is nan, but must be a number, above 0, at most 10."),
        ("lr", "fast", "lr is fast, but must be a number"),
        ("epochs", None, "epochs is None, but must be a whole number"),
        ("schedule", "cosine", "schedule is cosine, but must be one of constant, one-cycle."),
        ("batch_norm", "perhaps", "batch_norm is perhaps, but must be true or false."),
        ("droput", 0.1, "droput is not a field; the fields are lr, momentum,"),
        ("train_size", 60_001, "train_size is 60001, but must be a whole number, at least 1"),
    ],
)
def test_a_bad_value_is_named_with_its_bound(field: str, value: object, says: str) -> None:
    with pytest.raises(UserError) as caught:
        Recipe().replace(**{field: value})
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"holdout": 10_000, "train_size": 50_001}, "leaves 50000 of 60000"),
        ({"batch_size": 128, "train_size": 100}, "more than the 100 training images"),
        ({"nesterov": True, "momentum": 0}, "nesterov is on, but momentum is 0"),
        ({"num_workers": "1:4", "min_workers": 2}, "num_workers is 1:4, but min_workers is 2"),
        ({"num_workers": 2, "min_workers": 3}, "min_workers is 3, more than num_workers, 2"),
    ],
)
def test_fields_that_disagree_are_refused(changes: dict, says: str) -> None:
    cls = Resources if "num_workers" in changes else Recipe
    with pytest.raises(UserError) as caught:
        cls().replace(**changes)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("batch_size", "workers", "says"),
    [
        (65, "2", "batch_size is 65, which 2 workers cannot share equally; make it a multiple"),
        (1, "1:2", "batch_size is 1, fewer images than num_workers, 2, and each needs at least"),
        (7, "1:8", "batch_size is 7, fewer images than num_workers, 8, and each needs at least"),
        (65, "1:2", None),
        (66, "2", None),
    ],
)
def test_workers_that_cannot_share_a_batch_are_refused(
    batch_size: int, workers: str, says: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, resources = Recipe(batch_size=batch_size), Resources().replace(num_workers=workers)
    argv = ["--batch-size", str(batch_size), "--num-workers", workers]
    if says is None:
        check_batch(recipe, resources)
        assert parse(*argv)[:2] == [recipe, resources]
        return
    for refuse in (lambda: check_batch(recipe, resources), lambda: parse(*argv)):
        with pytest.raises(UserError) as caught:
            refuse()
        assert says in str(caught.value)
    if workers == "2":  # a study takes no range of workers
        argv = ["--batch-size", str(batch_size), "--workers-per-trial", workers]
        assert errors.run(tune.main, argv) == 2
        assert says in capsys.readouterr().err


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("lr: 0.5\nmomentum: 0.5\n")
    config, *_ = parse("--config", str(file), "--lr", "0.7", defaults={"lr": 0.1, "dropout": 0.3})
    assert (config.lr, config.momentum, config.dropout) == (0.7, 0.5, 0.3)


@pytest.mark.parametrize("value", [True, False])
def test_flags_switch_on_and_off(value: bool) -> None:
    config, *_ = parse("--batch-norm" if value else "--no-batch-norm")
    assert config.batch_norm is value


CLASSES = Recipe, TuneConfig, Resources, RunConfig


def test_every_field_has_a_flag_whose_help_states_bounds_and_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        flags.parse(["--help"], "any", *CLASSES, description="d")
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for cls in CLASSES:
        for name, field in cls.model_fields.items():
            assert f"--{'try' if name == 'tries' else name.replace('_', '-')}" in text
            assert bounds(field) in text
            assert str(field.description) in text


def test_help_shows_the_flags_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    groups = {}
    for main in (train.main, tune.main):
        with pytest.raises(SystemExit):
            main(["--help"])
        options, *titled = re.split(r"^(\S.*):$", capsys.readouterr().out, flags=re.M)[2:]
        assert re.findall(r"^  (--[a-z-]+)", options, re.M) == ["--version", "--config"]
        groups[main] = {
            title: re.findall(r"^  (--[a-z-]+)", text, re.M)
            for title, text in zip(titled[::2], titled[1::2], strict=True)
        }
    for main, flags_of in groups.items():
        recipe = [flag for title in flags_of if "recipe" in title for flag in flags_of[title]]
        assert recipe == [f"--{name.replace('_', '-')}" for name in Recipe.model_fields]
        assert list(flags_of)[-2:] == ["resources", "run"]
        # The flags of a study come first: whoever types --help after tune looks for them.
        assert next(iter(flags_of)).startswith("study") == (main is tune.main)
    assert groups[train.main]["resources"] == [
        *("--cpus-per-worker", "--use-gpu", "--num-workers", "--min-workers")
    ]
    assert groups[tune.main]["resources"] == ["--cpus-per-worker", "--use-gpu"]
    assert next(iter(groups[tune.main].values()))[0] == "--num-trials"


def test_a_group_begins_at_a_field() -> None:
    for cls in CLASSES:
        assert cls.groups
        assert set(cls.groups) <= set(cls.model_fields)
        assert next(iter(cls.model_fields)) in cls.groups


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("lr: 0.1\nlearning_rate: 0.1\n", "learning_rate in"),
        ("- 1\n", "must hold lines like"),
        ("lr: [\n", "is not YAML"),
        ("!!python/object/apply:os.system ['true']\n", "is not YAML"),
        ("lr: true\n", "lr is true, but must not be true or false."),
        ("lr: !!bool abc\n", "is not YAML"),
        ("lr: " + "[" * 3000, "is not YAML"),
        (f"lr: {'x' * 5000}\n", "xxx..., but must be a number"),
        ("lr: 20\n", "lr is 20, but must be a number, above 0, at most 10."),
        ("lr: 0.1\nseed: 1\nlr: 0.2\n", "is not YAML: lr is there twice in"),
        ("lr: 0.1\n'lr': 0.2\n", "lr is there twice"),
        ("space: {lr: 'choice(1)', dropout: 'choice(0)', lr: 'choice(2)'}\n", "lr is there twice"),
        ("lr: {a: [{b: 1, b: 2}]}\n", "b is there twice"),
        ("batch_size: 1:4\n", "batch_size is 1:4, but must be a whole number"),
        ("seed: 0b11\n", "seed is 0b11, but must be a whole number"),
        ("lr: yes\n", "lr is yes, but must be a number"),
        ("epochs: !!int 1:4\n", "is not YAML"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(content)
    with pytest.raises(UserError) as caught:
        parse("--config", str(file))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        *[(text, text) for text in ("1:4", "1:4:30", "2026-11-26", "1_000", "0b11", "1e", "=")],
        *[(text, text) for text in ("yes", "No", "on", "OFF", "y", "nUll", "<<", "1.2.3", "0o8")],
        *[("064", 64), ("010", 10), ("-0", 0), ("+12", 12), ("0o17", 15), ("0x1F", 31)],
        *[("1e-3", 0.001), ("1E3", 1000.0), ("1.", 1.0), ("+.5", 0.5), ("-1.5e+2", -150.0)],
        *[("-.inf", -math.inf), (".Inf", math.inf)],
        *[("~", None), ("null", None), ("", None), ("true", True), ("FALSE", False)],
        *[("'064'", "064"), ('"true"', "true"), ("!!int 010", 10), ("!!str 10", "10")],
    ],
)
def test_yaml_is_read_by_the_core_schema_of_1_2(written: str, value: object) -> None:
    read = parse_yaml(f"a: [{{b: {written}}}]")["a"][0]["b"]
    assert (type(read), read) == (type(value), value)


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("num_workers: 1:4", "num_workers", 4),
        ("num_workers: 1:4", "min_workers", 1),
        ("batch_size: 064", "batch_size", 64),
        ("batch_size: 1_000", "batch_size", 1000),
        ("seed: 010", "seed", 10),
        ("lr: 1e-3", "lr", 0.001),
        ("batch_norm: no", "batch_norm", False),
        ("batch_norm: off", "batch_norm", False),
        ("use_gpu: ~", "use_gpu", None),
        ("name: 2026-11-26", "name", "2026-11-26"),
        ("name: 007", "name", "007"),
        ("name: 1e3", "name", "1e3"),
        ("name: true", "name", "true"),
        ("name: null", "name", None),
        ("storage: 2026", "storage", "2026"),
        ("data_dir: 2026", "data_dir", Path("2026")),
    ],
)
def test_a_file_says_what_people_mean_by_it(
    line: str, field: str, value: object, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"{line}\n")
    values = {}
    for each in parse("--config", str(file)):
        values |= each.model_dump()
    assert values[field] == value


@pytest.mark.parametrize(
    "flags",
    [
        ["--space", "lr=choice(0.1)", "--space", "lr=choice(0.2)"],
        ["--space", "batch-size=choice(64)", "--space", "batch_size=choice(64)"],
        ["--space", " batch_size =choice(64)", "--space", "batch-size=choice(128)"],
    ],
)
def test_a_dimension_is_given_once(flags: list[str]) -> None:
    with pytest.raises(UserError, match=r"space has (lr|batch_size) twice; give it once\."):
        parse_tune(*flags)


def parse_tune(*argv: str) -> list:
    classes = Recipe, TuneConfig, PerWorker, RunConfig
    return flags.parse(list(argv), "tune", *classes, description="d", defaults=STUDY_RECIPE)


def test_values_of_a_space_are_read_like_those_of_a_file() -> None:
    base = Recipe(**STUDY_RECIPE)
    space = {
        "lr": "loguniform(1e-3, .1)",
        "batch_size": "choice(064, 0x80, 1_000)",
        "batch_norm": "choice(yes, no)",
    }
    read = search.parse(space, base)
    assert read["lr"].values == (0.001, 0.1)
    assert read["batch_size"].values == (64, 128, 1000)
    assert read["batch_norm"].values == (True, False)
    with pytest.raises(UserError, match="batch_size is 1:4"):
        search.parse({"batch_size": "choice(1:4, 64)"}, base)


def test_settings_that_were_written_are_read_again(tmp_path: Path) -> None:
    space = {"lr": "loguniform(1e-3, 0.1)", "batch_norm": "choice(yes, no)"}
    for config in (
        Recipe(lr=1e-5, weight_decay=1e-20, seed=2**32 - 1),
        Resources(use_gpu=False, min_workers=1, num_workers=4),
        TuneConfig(space=space, track="mlflow=1:4", time_budget=1e7),
    ):
        file = tmp_path / "settings.yaml"
        file.write_text(yaml.safe_dump(config.model_dump(), sort_keys=False))
        assert type(config)(**read_yaml(file)) == config


class Percent(Config):
    """Every kind of field, with text in it that argparse would take for a format."""

    switch: bool = Field(True, description="100 % on, %d.")
    kind: Literal["5%", "%s"] = Field("5%", description="How many %.")
    table: dict[str, str] = Field({}, description="A % of it, 100%.")
    text: str = Field("%(prog)s", description="50% %s.")
    number: float | None = Field(None, ge=0, description="In %(default)s %.")


def test_a_per_cent_sign_in_a_description_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        flags.parse(["--help"], "train", Percent, RunConfig, description="99.4 % of %s in 20 %.")
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "99.4 % of %s in 20 %." in text
    assert "(default: %(prog)s)" in text
    assert "%%" not in text
    for field in Percent.model_fields.values():
        assert str(field.description) in text


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    with pytest.raises(UserError, match=f"config {missing} is neither a file nor one of the rec"):
        parse("--config", str(missing))


def test_a_recipe_of_the_package_is_taken_by_its_name_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "best").mkdir()  # a run's folder, for example
    for name, file in RECIPES.items():
        assert parse("--config", name)[0] == Recipe(**read_yaml(file)), name
        assert name in flags.parser("train", Recipe, RunConfig, description="d").format_help()
    (tmp_path / "fast").write_text("epochs: 7\n")
    assert parse("--config", "fast")[0] == Recipe(epochs=7)


def test_an_abbreviated_or_unknown_flag_is_refused() -> None:
    for flag in ("--drop", "--droput"):
        with pytest.raises(SystemExit) as ended:
            parse(flag, "0.1")
        assert ended.value.code == 2


@pytest.mark.parametrize("name", ["num_workers", "min_workers"])
def test_a_study_says_its_number_of_workers_in_one_way(tmp_path: Path, name: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"{name}: 2\n")
    with pytest.raises(UserError, match=f"{name} in .* is not a field"):
        tune.main(["--config", str(file)])
    with pytest.raises(SystemExit) as ended:
        tune.main([f"--{name.replace('_', '-')}", "2"])
    assert ended.value.code == 2


def test_the_recipe_of_a_study_is_valid_and_survives_yaml() -> None:
    config = Recipe(**STUDY_RECIPE)
    assert Recipe(**yaml.safe_load(yaml.safe_dump(config.model_dump()))) == config
