"""What the README and the recipes claim is what the records have."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from mnist_ray import search
from mnist_ray.config import Recipe

REPOSITORY = Path(__file__).parent.parent
EXPERIMENTS = REPOSITORY / "experiments"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_have_the_tables_of_the_records() -> None:
    table = script("table")
    for page in table.PAGES:
        text = (REPOSITORY / page).read_text()
        assert table.between_marks(text)[0] == table.table(page), page


def test_one_evaluation_has_wilsons_interval() -> None:
    # By his formula, with z = 1.959964 and 9,941 of 10,000.
    assert script("table").described([0.9941]) == "99.41 % (99.24 to 99.54)"


@pytest.mark.parametrize("name", ["seed.yaml", "fast.yaml", "best.yaml"])
def test_a_recipe_claims_what_its_record_has(name: str) -> None:
    text = (EXPERIMENTS / name).read_text()
    rows = script("table").RECIPES[name].rows()
    claim = " ".join(re.findall(r"^# (.*)$", text, re.MULTILINE))
    assert f"{search.in_percent(list(rows['final_accuracy']))} of the test set" in claim
    assert f"n = {len(rows)}" in claim
    recipe = yaml.safe_load(text)
    for field in set(recipe) & set(rows):
        assert set(rows[field]) == {recipe[field]}, field
    assert set(rows["scored_on"]) == {"test"}
    Recipe(**recipe)


def test_every_record_is_listed_and_has_its_parts() -> None:
    listed = re.findall(r"\]\((20\d\d-[^)/]*)/README.md\)", (EXPERIMENTS / "README.md").read_text())
    folders = [path.name for path in EXPERIMENTS.glob("20*-*_*")]
    assert sorted(listed) == sorted(folders)
    dates = [name[:10] for name in listed]
    assert dates == sorted(dates, reverse=True)
    for name in folders:
        parts = {path.name for path in (EXPERIMENTS / name).iterdir()}
        assert {"README.md", "run.sh", "figure.svg"} <= parts, name
        assert any(part.endswith((".csv", ".parquet")) for part in parts), name
        assert "figure.svg" in (EXPERIMENTS / name / "README.md").read_text(), name
