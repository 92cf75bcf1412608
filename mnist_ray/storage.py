"""Files and folders of runs, on this machine or behind a URI like s3://bucket/path.

URIs go through pyarrow's file systems, as Ray's own storage does, so that one URI and one set of
credentials serve both. pyarrow is imported late, because `--help` would wait for the import.
"""

import contextlib
import fnmatch
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias
from urllib.parse import unquote

from mnist_ray.errors import UserError, reason


@dataclass(frozen=True)
class Remote:
    """A file or folder behind a URI, with the methods of pathlib.Path that runs need. Methods that
    use the network raise OSError."""

    root: str
    """The scheme and the bucket or host, like s3://bucket."""
    path: PurePosixPath
    """The path within the root."""
    query: str = ""
    """The file system's settings, like region=eu-west-1."""

    def __str__(self) -> str:
        query = f"?{self.query}" if self.query else ""
        return f"{self.root}/{self.path if self.path.parts else ''}{query}"

    def __truediv__(self, name: str | PurePosixPath) -> "Remote":
        return Remote(self.root, self.path / name, self.query)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def parent(self) -> "Remote":
        return Remote(self.root, self.path.parent, self.query)

    def exists(self) -> bool:
        return bool(self.info().type.name != "NotFound")

    def is_file(self) -> bool:
        return bool(self.info().type.name == "File")

    def is_dir(self) -> bool:
        return bool(self.info().type.name == "Directory")

    def glob(self, pattern: str) -> Iterator["Remote"]:
        """Yield the files and folders that match a pattern, sorted; `**` is not supported."""
        first, _, rest = pattern.partition("/")
        names = sorted(info.base_name for info in self.files(recursive=False))
        for name in fnmatch.filter(names, first):
            yield from (self / name).glob(rest) if rest else (self / name,)

    def read_bytes(self) -> bytes:
        with self.system.open_input_file(self.within) as stream:
            content: bytes = stream.read()
        return content

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def info(self) -> Any:
        return self.system.get_file_info(self.within)

    def files(self, recursive: bool) -> list[Any]:
        from pyarrow.fs import FileSelector

        selector = FileSelector(self.within, allow_not_found=True, recursive=recursive)
        return list(self.system.get_file_info(selector))

    @property
    def system(self) -> Any:
        return _system(self.root, self.query)[0]

    @property
    def within(self) -> str:
        """The path as pyarrow and Ray write it: for S3, it begins with the bucket."""
        return str(PurePosixPath(_system(self.root, self.query)[1]) / self.path)


Place: TypeAlias = Path | Remote

URI_FLAGS = re.DOTALL | re.IGNORECASE


@functools.lru_cache
def _system(root: str, query: str) -> tuple[Any, str]:
    """Return the file system of a root, and the root's path in it."""
    from pyarrow.fs import FileSystem

    system, path = FileSystem.from_uri(f"{root}/?{query}" if query else f"{root}/")
    return system, path


def place(field: str, text: "str | Place") -> Place:
    """Return the file or folder that the user gave as the setting `field`, by a path or a URI.
    Raises UserError where `text` is neither, or its bucket or host cannot be reached."""
    if isinstance(text, Remote):
        return text
    uri = str(text).strip()
    if not uri:
        raise UserError(f"{field} is empty; name a folder, or a URI like s3://bucket/path.")
    match = re.fullmatch(r"([a-z][a-z0-9+.-]*)://([^/?]*)/?([^?]*)\??(.*)", uri, URI_FLAGS)
    if not match or match[1].lower() == "file":
        return local(field, text, or_uri=" or a URI like s3://bucket/path")
    scheme, host, path, query = match.groups()
    if "@" in host:
        raise UserError(
            f"{field} has credentials in it, which would be printed and kept; set them where the"
            " machines look for them, for S3 in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    remote = Remote(f"{scheme.lower()}://{host}", PurePosixPath(path.strip("/")), query)
    try:
        if not Remote(remote.root, PurePosixPath(), query).is_dir():
            raise UserError(f"{field} {text} cannot be used: there is no {remote.root}.")
    except (OSError, ValueError) as error:
        raise UserError(f"{field} {text} cannot be used: {reason(error)}.") from None
    return remote


def local(field: str, text: str | Path, or_uri: str = "") -> Path:
    """Return the absolute path of the file or folder of this machine that the user gave as the
    setting `field`, by its path or as file:///path.

    Raises UserError for anything else, and for a folder that the user may not enter. `or_uri` is
    what else the field takes, for the error message.
    """
    uri, path = str(text).strip(), Path(text)
    # If `text` is a Path, it has single slashes only: pathlib turns file:///path into file:/path.
    if file := re.fullmatch(r"file:(?://([^/]*)(?=/)|(?!//))(/.*)", uri, URI_FLAGS):
        host, path_in_uri = file.groups()
        if host not in (None, "", "localhost"):
            raise UserError(
                f"{field} {text} cannot be used: it is on the host {host}; a folder of this machine"
                " has three slashes, like file:///home/me/runs."
            )
        path = Path(unquote(path_in_uri, errors="surrogateescape"))
    elif re.match(r"[a-z][a-z0-9+.-]*:/|(s3|gs|gcs|abfss?|hdfs)(:|//)|file:", uri, URI_FLAGS):
        raise UserError(
            f"{field} {text} cannot be used: it must be a path on this machine{or_uri}; put ./"
            " before a name that looks like a URI."
        )
    try:
        full = path.expanduser().resolve()
        is_folder = full.is_dir()  # raises if the name is too long, or a parent is not accessible
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{field} {path} cannot be used: {error}.") from None
    if is_folder and not os.access(full, os.X_OK):
        raise UserError(f"{field} {path} cannot be used: you may not enter that folder.")
    return full


def make(folder: Place) -> None:
    """Make a folder and its parents."""
    if isinstance(folder, Path):  # behind a URI, a folder exists once a file is in it
        folder.mkdir(parents=True, exist_ok=True)


def write(file: Place, content: bytes) -> None:
    """Write a file completely or not at all, replacing an existing one."""
    if isinstance(file, Remote):
        with file.system.open_output_stream(file.within) as stream:
            stream.write(content)
        return
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)  # it is still there if the disk was full


@contextlib.contextmanager
def writing(field: str, path: str | Path) -> Iterator[Path]:
    """Yield the absolute path of a file that the user wants written, as the setting `field`, and
    that the block makes. Raises UserError, before the block if possible, if it cannot be written.
    """
    full = local(field, path)
    try:
        if full.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        tempfile.TemporaryFile(dir=full.parent).close()
        yield full
    except OSError as error:
        raise UserError(
            f"{field} {path} cannot be written: {error.strerror}; name a file in a folder that"
            " exists."
        ) from None


def remove(folder: Place) -> None:
    """Delete a folder as far as possible; files that cannot be deleted stay, without an error."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            folder.system.delete_dir(folder.within)


def remove_file(file: Place) -> None:
    """Delete a file."""
    if isinstance(file, Path):
        file.unlink()
    else:
        file.system.delete_file(file.within)


def size(folder: Place) -> int:
    """Return the size of all files in a folder, in bytes."""
    if isinstance(folder, Remote):
        return sum(info.size or 0 for info in folder.files(recursive=True))
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def modified(file: Place) -> datetime:
    """Return when a file was last written, in UTC."""
    if isinstance(file, Remote):
        changed: datetime = file.info().mtime
        return changed
    return datetime.fromtimestamp(file.stat().st_mtime, UTC)


def relative(inner: str | Place, folder: Place) -> str:
    """Return the path of `inner` relative to `folder`. `inner` is a Place, or a path as Ray writes
    it, which for S3 begins with the bucket."""
    paths = [each.within if isinstance(each, Remote) else str(each) for each in (inner, folder)]
    return str(PurePosixPath(paths[0]).relative_to(paths[1]))
