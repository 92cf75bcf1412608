"""Ray still has every private name that mnist_ray uses, and one file has them all."""

import ast
import contextlib
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import mnist_ray
from mnist_ray.cluster import ray_private
from mnist_ray.cluster.ray_private import NAMES, WORDS, Private, missing

PACKAGE = Path(mnist_ray.__file__).parent
OTHERS = [path for path in PACKAGE.rglob("*.py") if path.name != "ray_private.py"]

DOCUMENTED = {
    "RAY_ADDRESS",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH",
    "RAY_TMPDIR",
    "RAY_TRAIN_V2_ENABLED",
}
"""Environment variables that Ray's documentation has."""


@pytest.mark.parametrize("private", [*NAMES, *WORDS], ids=lambda private: private.name)
def test_ray_has_it_still(private: Private) -> None:
    why = missing(private)
    assert why is None, why


@pytest.mark.parametrize(
    "gone",
    [
        Private("ray._private.worker", "print_to_nowhere", "be quiet; it would print"),
        Private("ray._private.nowhere", "print_to_stdstream", "be quiet; it would print"),
        Private("ray.tune.schedulers", "MedianStoppingRule.nothing", "be quiet; it would print"),
    ],
    ids=lambda gone: f"{gone.module}.{gone.name}",
)
def test_a_name_that_is_gone_is_told_in_a_sentence(
    gone: Private, monkeypatch: pytest.MonkeyPatch
) -> None:
    says = (
        f"Ray {version('ray')} has no {gone.name} in {gone.module}, which mnist_ray uses to be"
        " quiet; it would print."
    )
    assert missing(gone) == says
    monkeypatch.setattr(ray_private, "NAMES", (gone,))
    with pytest.raises(ImportError, match=re.escape(says)):
        getattr(ray_private, gone.name)
    # The same of an environment variable or an attribute, which are looked for in the source.
    monkeypatch.setattr(ray_private, "WORDS", (gone,))
    if not gone.module.endswith("nowhere") and "." in gone.name:
        assert missing(gone) == says


def test_what_is_no_name_of_rays_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no nonsense"):
        ray_private.nonsense  # noqa: B018


def test_a_name_is_replaced_for_a_block() -> None:
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    with contextlib.suppress(ZeroDivisionError), ray_private.replaced("ENABLE_RAY_CLUSTER", None):
        assert ray_constants.ENABLE_RAY_CLUSTER is None
        raise ZeroDivisionError
    assert ray_constants.ENABLE_RAY_CLUSTER is before


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_no_other_file_uses_what_is_private_to_ray(path: Path) -> None:
    text = path.read_text()
    module = re.compile(r"\bray\.(\w+\.)*(_\w+|v2|generated)\b|\bray\.tune\.result\b")
    assert not module.search(text), module.search(text)
    variables = set(re.findall(r"[\"'](?:RAY|TUNE)_\w+[\"']", text))
    assert {name.strip("\"'") for name in variables} <= DOCUMENTED


def listed() -> set[str]:
    return {private.name.rpartition(".")[2] for private in (*NAMES, *WORDS)}


def test_attributes_of_rays_objects_are_listed() -> None:
    # In the classes that are Ray's with something changed.
    rays = ("schedulers.py", "recorder.py")
    for tree in (ast.parse(path.read_text()) for path in OTHERS if path.name in rays):
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        own = {node.name for node in functions}
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        private = {name for name in used - own if re.match("_[a-z]", name)}
        assert private <= listed()


@pytest.mark.parametrize("private", [*NAMES, *WORDS], ids=lambda private: private.name)
def test_what_is_listed_is_used(private: Private) -> None:
    name = private.name.rpartition(".")[2]
    here = (PACKAGE / "cluster" / "ray_private.py").read_text()
    text = "".join(path.read_text() for path in OTHERS) + here[here.index("API_SERVER =") :]
    assert re.search(rf"\b(RAY_)?{name}\b", text), (
        f"nothing uses {private.name}; take it off the list"
    )


def test_the_versions_that_were_run_are_bounds() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    needs = [Requirement(text) for text in project["dependencies"]]
    (ray,) = (each for each in needs if each.name == "ray")
    assert ray.specifier.contains(version("ray"))
    assert {each.operator for each in ray.specifier} == {">=", "<"}
