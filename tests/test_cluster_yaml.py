from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def config() -> dict:
    return yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())


def test_it_is_valid_to_the_installed_ray(config: dict) -> None:
    validate_config(prepare_config(config))


def test_it_installs_the_tested_versions(config: dict) -> None:
    constraints = (REPOSITORY / "constraints.txt").read_text().splitlines()
    version = config["docker"]["image"].split(":")[1].split("-")[0]
    assert f"ray=={version}" in constraints
    assert any("-c constraints.txt" in command for command in config["setup_commands"])
