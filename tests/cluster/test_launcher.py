"""Ray's launcher and job server, for real: `ray up` over ssh, to a node that is on this machine.

`make launcher` runs these. The node has process ids of its own, because `ray stop`, with which
cluster.yaml begins, ends every process of Ray's that it finds; a /tmp/ray of its own; and a home in
a temporary folder. Nothing listens for ssh: a connection starts its own sshd.
"""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import yaml

from mnist_ray import tables
from mnist_ray.config import RunConfig
from mnist_ray.learn.data import Mnist

pytestmark = pytest.mark.launcher

REPOSITORY = Path(__file__).parent.parent.parent
SSHD = "/usr/sbin/sshd"
STUDY = ["--num-trials", "2", "--epochs", "1", "--train-size", "300", "--holdout", "101"]
STUDY = [*STUDY, "--confirm", "0"]


class Laptop(NamedTuple):
    """Where a user types, and the node that ssh reaches from there."""

    run: Callable[..., str]
    home: Path
    cluster: Path
    """The cluster.yaml."""


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory, mnist: Mnist) -> Iterator[Laptop]:
    needs = "needs root, the right to make namespaces, and Debian's openssh-server and rsync"
    if os.getuid() or not all(map(shutil.which, [SSHD, "ssh", "rsync", "unshare"])):
        pytest.skip(needs)
    for port in (6379, 8265, 52365):  # those of Ray that are always the same
        with socket.socket() as probe:
            taken = not probe.connect_ex(("127.0.0.1", port))
            assert not taken, f"port {port} is in use; another Ray runs here"
    home, node = tmp_path_factory.mktemp("laptop"), tmp_path_factory.mktemp("node")
    cluster = home / "cluster.yaml"
    cluster.write_text(yaml.safe_dump(local(_ssh(home, node))))
    _prepare(node)
    namespace = ["unshare", "--fork", "--kill-child", "--pid", "--mount", "--mount-proc"]
    begin = "mkdir -p /run/sshd && mkdir -p -m 777 /tmp/ray && mount -t tmpfs ray /tmp/ray"
    # Not sleep itself: its first process must wait for those that lose their parents.
    shell = ["bash", "-c", f"{begin} && echo ready && sleep infinity; exit"]
    with subprocess.Popen([*namespace, *shell], stdout=subprocess.PIPE) as machine:
        assert machine.stdout
        if machine.stdout.readline() != b"ready\n":
            pytest.skip(needs)
        (init,) = psutil.Process(machine.pid).children()
        inside = ["nsenter", f"--target={init.pid}", "--pid", "--mount", f"--wd={REPOSITORY}"]

        def run(*command: str | Path, code: int = 0) -> str:
            done = subprocess.run(
                [*inside, *command],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=300,
                env={**os.environ, "HOME": str(home), "PATH": _path(), "TMPDIR": str(home)},
            )
            print("$", *command, "\n" + done.stdout)  # shown if the test fails
            assert done.returncode == code
            return done.stdout

        yield Laptop(run, home, cluster)
        machine.kill()


def local(auth: dict[str, Any]) -> dict[str, Any]:
    """The repository's cluster.yaml, but for what only AWS has."""
    config = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
    for name in ("docker", "available_node_types", "head_node_type", "max_workers"):
        del config[name]
    provider = {"type": "local", "head_ip": "127.0.0.1", "worker_ips": []}
    return {**config, "provider": provider, "auth": auth}


def _ssh(home: Path, node: Path) -> dict[str, Any]:
    """A key of the laptop's, which opens the node alone."""
    for key in (home / "key", node / "host_key"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
        subprocess.run(make, check=True)
    (node / "sshd_config").write_text(
        f"HostKey {node}/host_key\nAuthorizedKeysFile {home}/key.pub\nStrictModes no\n"
        f"SetEnv HOME={node}\n"
    )
    return {
        "ssh_user": "root",
        "ssh_private_key": str(home / "key"),
        "ssh_proxy_command": f"{SSHD} -i -f {node}/sshd_config",
    }


def _prepare(node: Path) -> None:
    """A Python environment for the node to install into, with the dependencies of this one."""
    venv.create(node / "venv", symlinks=True)
    here, there = (
        sysconfig.get_path("purelib", vars={"base": b}) for b in (sys.prefix, f"{node}/venv")
    )
    (Path(there) / "here.pth").write_text(here)
    for name in ("pip", "ray"):
        _, rest = (Path(sys.prefix) / "bin" / name).read_text().split("\n", 1)
        script = node / "venv" / "bin" / name
        script.write_text(f"#!{node}/venv/bin/python\n{rest}")
        script.chmod(0o755)
    settings = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    exports = {**settings, "PATH": f"{node}/venv/bin:{os.environ['PATH']}"}
    (node / ".bashrc").write_text("".join(f"export {k}='{v}'\n" for k, v in exports.items()))
    (node / ".cache").mkdir()
    (node / ".cache" / "mnist_ray").symlink_to(RunConfig().data_dir.expanduser())


def _path() -> str:
    return f"{sys.prefix}/bin:{os.environ['PATH']}"


@pytest.fixture(scope="module")
def launched(laptop: Laptop) -> Laptop:
    laptop.run("ray", "get-auth-token", "--generate")
    shown = laptop.run("ray", "up", "--yes", laptop.cluster)
    assert "Ray runtime started" in shown
    return laptop


def test_a_study_over_ssh(launched: Laptop) -> None:
    run, home, cluster = launched
    shown = run("ray", "submit", cluster, "mnist_ray/tune.py", "--", *STUDY, "--name", "first")
    assert "best trial" in shown
    shown = run("ray", "exec", cluster, "python -m mnist_ray.results ~/mnist_ray_results/first")
    assert "accuracy" in shown
    run("ray", "rsync-down", cluster, "~/mnist_ray_results/first/", home / "first/")
    rows = tables.read(home / "first", tables.TRIALS).to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * 2
    assert {row["commit"] for row in rows} == {None}  # a node has no .git


def test_bad_input_over_ssh(launched: Laptop) -> None:
    run, _, cluster = launched
    shown = run("ray", "submit", cluster, "mnist_ray/tune.py", "--", "--lr", "x", code=1)
    assert "error: lr is" in shown


def submit(launched: Laptop, *job: str, code: int = 0) -> str:
    words = ["ray", "job", "submit", "--address=http://127.0.0.1:8265", "--working-dir=."]
    return launched.run("env", "RAY_AUTH_MODE=token", *words, "--", *job, code=code)


def test_a_job(launched: Laptop) -> None:
    shown = submit(launched, "python", "-m", "mnist_ray.tune", *STUDY, "--name", "second")
    assert "best trial" in shown
    assert "succeeded" in shown
    found = launched.run("ray", "exec", launched.cluster, "ls ~/mnist_ray_results/second")
    assert "trials.parquet" in found


def test_a_job_with_bad_input_fails(launched: Laptop) -> None:
    shown = submit(launched, "python", "-m", "mnist_ray.tune", "--num-trials", "0", code=1)
    assert "error: num_trials is 0" in shown
    assert "exit code 2" in shown


def test_a_job_without_the_token_is_refused(launched: Laptop) -> None:
    address = "--address=http://127.0.0.1:8265"
    shown = launched.run("ray", "job", "submit", address, "--", "echo", "hello", code=1)
    assert "token" in shown


def test_a_job_carries_this_code_and_little_else(launched: Laptop) -> None:
    look = "import mnist_ray.cluster.connect as c; print(bool(c.to_join()), c.__file__)"
    shown = submit(
        launched, "bash", "-c", f"du -sb --exclude=__pycache__ . && ls -A && python -c '{look}'"
    ).splitlines()
    (size,) = (int(line.split()[0]) for line in shown if line.endswith("\t."))
    assert size < 600_000  # most of it is the package
    assert {"mnist_ray", "experiments"} <= set(shown)
    assert not {".git", ".venv", "tests", "docs", "examples"} & set(shown)
    (joins,) = (line for line in shown if line.startswith("True "))
    assert "/working_dir_files/" in joins  # not what `ray up` installed


def test_nothing_is_left(launched: Laptop) -> None:
    launched.run("ray", "down", "--yes", launched.cluster)
    left = launched.run("ps", "-eo", "comm=").split()
    # The ssh connection stays for ten seconds.
    assert set(left) <= {"bash", "sleep", "ssh", "sshd", "ps"}
