"""What describes clusters elsewhere: cluster.yaml for AWS, rayjob.yaml for Kubernetes."""

import itertools
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from mnist_ray.config import PerWorker, Recipe, RunConfig, TuneConfig
from mnist_ray.terminal import flags

REPOSITORY = Path(__file__).parent.parent
KUBERNETES = REPOSITORY / "experiments" / "cluster"


@pytest.fixture
def config() -> dict:
    return yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())


@pytest.fixture
def job() -> dict:
    return yaml.safe_load((KUBERNETES / "rayjob.yaml").read_text())


@pytest.fixture
def version() -> str:
    """The tested Ray."""
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    (found,) = (line.removeprefix("ray==") for line in lines if line.startswith("ray=="))
    return found


def test_it_is_valid_to_the_installed_ray(config: dict) -> None:
    validate_config(prepare_config(config))


def test_it_installs_the_tested_versions(config: dict, version: str) -> None:
    assert config["docker"]["image"] == f"rayproject/ray:{version}-py311"
    assert any("-c constraints.txt" in command for command in config["setup_commands"])


def test_every_dependency_has_a_tested_version() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    del extras["wandb"]  # nothing here tests it
    asked = [*project["dependencies"], *itertools.chain(*extras.values())]
    needed = [re.split(r"[^\w.-]", each)[0].lower() for each in asked]
    lines = (REPOSITORY / "constraints.txt").read_text().lower().splitlines()
    tested = {line.partition("==")[0].replace("_", "-") for line in lines if "==" in line}
    assert {name.replace("_", "-") for name in needed} - {"mnist-ray"} <= tested


def test_no_node_is_left_to_the_security_group_that_ray_opens_to_the_world(config: dict) -> None:
    for node in config["available_node_types"].values():
        assert node["node_config"]["SecurityGroupIds"]


def containers(job: dict) -> list[dict]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [each for group in groups for each in group["template"]["spec"]["containers"]]


def test_the_job_is_one(job: dict) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["metadata"]["name"]
    (workers,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    # A study uses what is there when it starts.
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"] > 0
    for each in containers(job):
        resources = each["resources"]
        assert resources["requests"] == resources["limits"]
        assert set(resources["limits"]) == {"cpu", "memory"}


def test_the_job_runs_a_command_of_ours(job: dict) -> None:
    python, m, module, *words = shlex.split(job["spec"]["entrypoint"])
    assert (python, m, module) == ("python", "-m", "mnist_ray.tune")
    flags.parse(words, "tune", Recipe, TuneConfig, PerWorker, RunConfig, description="")
    assert words[words.index("--storage") + 1].startswith("s3://")  # or the results go with it


def test_the_job_has_the_tested_versions(job: dict, version: str) -> None:
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == version
    images = {each["image"] for each in containers(job)}
    assert {image.split(":")[1] for image in images} == {version}
    dockerfile = (KUBERNETES / "Dockerfile").read_text()
    assert f"FROM rayproject/ray:{version}-py311\n" in dockerfile
    assert dockerfile.count(*images) == 1
    assert "-c constraints.txt" in dockerfile
