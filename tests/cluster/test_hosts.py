"""Two machines: each with a network, processes, shared memory and a folder of its own, joined by a
cable; all of it namespaces of this one. `make launcher` runs these.
"""

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

import psutil
import pytest
from conftest import SECRET

from mnist_ray.learn.data import Mnist

pytestmark = pytest.mark.launcher

REPOSITORY = Path(__file__).parent.parent.parent
HEAD, OTHER = "10.97.0.1", "10.97.0.2"
ENVIRONMENT = {
    "RAY_ADDRESS": f"{HEAD}:6379",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_ENDPOINT_URL": f"http://{HEAD}:5000",
    "GLOO_SOCKET_IFNAME": "eth0",  # both have this machine's name, by which they would look it up
}
SMALL = ["--train-size", "2000", "--holdout", "101", "--batch-size", "50", "--epochs", "2"]


class Host:
    """A machine of its own, until `stop`. It sees this one's files, but for `own` folders."""

    def __init__(self, *own: Path) -> None:
        namespaces = ["--net", "--pid", "--mount", "--mount-proc", "--fork", "--kill-child"]
        folders = " ".join(map(str, own))
        mounts = f"for each in {folders}; do mkdir -p $each; mount -t tmpfs none $each; done"
        # Not sleep itself: its first process must wait for those that lose their parents.
        shell = f"set -e; {mounts}; ip link set lo up; echo ready; sleep infinity; exit"
        self.process = subprocess.Popen(
            ["unshare", *namespaces, "bash", "-c", shell], stdout=subprocess.PIPE
        )
        assert self.process.stdout
        if self.process.stdout.readline() != b"ready\n":
            pytest.skip("needs the right to make namespaces")
        (init,) = psutil.Process(self.process.pid).children()
        self.pid = init.pid
        self.network = os.readlink(f"/proc/{self.pid}/ns/net")

    def start(self, *command: str) -> "Command":
        return Command(self, command)

    def run(self, *command: str) -> str:
        """What it says; it must end well."""
        process = self.start(*command)
        said = process.end()
        assert process.returncode == 0, said
        return said

    def stop(self) -> None:
        self.process.kill()  # and with it all that runs there
        self.process.communicate()


class Command(subprocess.Popen[bytes]):
    """A command as it runs on a host. What it says goes to a file, because what it leaves running
    would hold a pipe open."""

    def __init__(self, host: Host, command: Sequence[str]) -> None:
        enter = ["nsenter", f"--target={host.pid}", "--net", "--pid", "--mount"]
        path = f"{sys.prefix}/bin:{os.environ['PATH']}"
        self.output = TemporaryFile()  # noqa: SIM115, because `end` closes it
        super().__init__(
            [*enter, f"--wd={REPOSITORY}", *command],
            stdout=self.output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ENVIRONMENT, "PATH": path},
        )

    def end(self) -> str:
        with self.output:
            self.wait(timeout=240)
            self.output.seek(0)
            return self.output.read().decode()


class Hosts(NamedTuple):
    head: Host
    other: Host
    local: Path
    """A folder that each has one of."""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory, mnist: Mnist) -> Iterator[Hosts]:
    """A Ray cluster of two nodes with a core each, and an S3 server on the first."""
    if os.getuid() or not all(map(shutil.which, ["unshare", "nsenter", "ip"])):
        pytest.skip("needs root, and Debian's util-linux and iproute2")
    local = tmp_path_factory.mktemp("local")
    own = (Path("/tmp/ray"), Path("/dev/shm"), local)
    head, other = Host(*own), Host(*own)
    cable = ["ip", "link", "add", "eth0", "netns", str(head.pid), "type", "veth"]
    subprocess.run([*cable, "peer", "name", "eth0", "netns", str(other.pid)], check=True)
    for host, address in ((head, HEAD), (other, OTHER)):
        host.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
    server = head.start("python", "-m", "moto.server", "-H", HEAD, "-p", "5000")
    make = "import pyarrow.fs as f; s, _ = f.FileSystem.from_uri('s3://bucket/?allow_bucket_"
    head.run("python", "-c", make + "creation=true'); s.create_dir('bucket')")
    more = ["--num-cpus=1", "--disable-usage-stats"]
    head.run("ray", "start", "--head", "--port=6379", f"--node-ip-address={HEAD}", *more)
    other.run("ray", "start", f"--address={HEAD}:6379", f"--node-ip-address={OTHER}", *more)
    yield Hosts(head, other, local)
    head.stop()
    other.stop()
    server.wait()
    server.output.close()


def where_it_ran(process: Command, title: str) -> set[str]:
    """The networks in which processes of that title were seen while `process` ran."""
    seen = set()
    while process.poll() is None:
        for each in psutil.process_iter(["cmdline"]):
            if any(title in word for word in each.info["cmdline"] or []):
                try:
                    seen.add(os.readlink(f"/proc/{each.pid}/ns/net"))
                except OSError:  # it has ended
                    continue
        time.sleep(0.2)
    return seen


def test_a_study_over_both(hosts: Hosts) -> None:
    flags = [*SMALL, "--num-trials", "4", "--scheduler", "fifo", "--confirm", "0"]
    flags = [*flags, "--storage", "s3://bucket/runs", "--name", "study"]
    study = hosts.head.start("python", "-m", "mnist_ray.tune", *flags)
    ran = where_it_ran(study, "ImplicitFunc")
    said = study.end()
    assert study.returncode == 0, said
    assert "4 trials, 2 at a time" in said
    assert ran == {hosts.head.network, hosts.other.network}
    # Results come back to any machine.
    table = hosts.other.run("python", "-m", "mnist_ray.results", "s3://bucket/runs/study")
    assert table.count("ok") == 4
    hosts.other.run("python", "-m", "mnist_ray.tune", "--resume", *flags)


def test_training_over_both(hosts: Hosts) -> None:
    flags = [*SMALL, "--num-workers", "2", "--storage", "s3://bucket/runs", "--name", "two"]
    training = hosts.head.start("python", "-m", "mnist_ray.train", *flags)
    ran = where_it_ran(training, "RayTrainWorker")
    said = training.end()
    assert training.returncode == 0, said
    assert "2 workers with 1 core each" in said
    assert "ok: held-out accuracy" in said
    assert ran == {hosts.head.network, hosts.other.network}


@pytest.mark.parametrize("command", ["train", "tune"])
def test_a_folder_that_the_other_does_not_have_is_refused(hosts: Hosts, command: str) -> None:
    refused = hosts.head.start(
        "python", "-m", f"mnist_ray.{command}", "--storage", str(hosts.local / "runs")
    )
    said = refused.end()
    assert refused.returncode == 2, said
    joined, *_, last = said.splitlines()
    assert joined == f"joined the Ray cluster at {HEAD}:6379: 2 nodes, 2 CPUs"
    assert last.startswith(f"error: storage {hosts.local}/runs is not shared: node {OTHER} does")
    assert list((hosts.local / "runs").glob("*")) == []
