"""Durable files. Nothing else in embedkit writes an artefact.

A file or folder is written under `NAME.partial` in the same folder, its bytes are fsynced, and it is renamed into place,
after which the folder itself is fsynced: a crash leaves the old state or the new one, and at most a `.partial` that the
next writer clears away. The `.partial` carries an advisory lock (flock) that dies with its owner, so two writers of one
name cannot meet. Cost: two fsyncs a file, one read of it for its checksum.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from embedkit.errors import DataError, IntegrityError, Stopped, UsageError

SUFFIX = ".partial"
HEADER = 128  # bytes; long enough for every header that NpyWriter writes, and a multiple of 64 as the format asks


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under `path`, replacing what is there, once the block ends without an error.

    Raises Stopped while another process writes the same path, UsageError where a device or pipe stands there.
    """
    with atomic_files(path) as (stream,):
        yield stream


@contextmanager
def atomic_files(*paths: Path) -> Iterator[tuple[IO[bytes], ...]]:
    """Several files that belong together. All are durable before the first is renamed, and they are renamed in the order
    given: put the one that vouches for the others first, then a crash between two renames shows as a checksum that does not
    fit, never as a mixture that passes. Raises what `atomic_file` raises.
    """
    targets = [_writable(path) for path in paths]
    with ExitStack() as stack:
        streams = [stack.enter_context(_partial_file(target)) for target in targets]
        yield tuple(streams)
        for stream in streams:
            stream.flush()
            os.fsync(stream.fileno())
        for stream, target in zip(streams, targets, strict=True):
            Path(stream.name).replace(target)
        for folder in dict.fromkeys(target.parent for target in targets):
            sync_folder(folder)


def _writable(path: Path) -> Path:
    """Where a file under this name lies, its links followed and its folder made."""
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise UsageError(f"{path} is no regular file; choose another name.")
    _make_folder(target.parent)
    return target


@contextmanager
def _partial_file(target: Path) -> Iterator[IO[bytes]]:
    """An empty, locked file beside the target, gone at the end unless it was renamed."""
    partial = target.with_name(target.name + SUFFIX)
    with _lock(partial, os.O_RDWR | os.O_CREAT) as descriptor:
        os.ftruncate(descriptor, 0)  # what a crashed writer left
        identity = os.fstat(descriptor).st_ino
        try:
            with partial.open("r+b") as stream:
                yield stream
        finally:
            if partial.exists() and partial.stat().st_ino == identity:
                partial.unlink()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder, filled at the path that the block is given, that appears under `path` once the block ends well.

    Raises UsageError when `path` is there already, Stopped while another process builds it.
    """
    path = path.absolute()
    check_absent(path)
    _make_folder(path.parent)
    partial = path.with_name(path.name + SUFFIX)
    with _folder_lock(partial):
        try:
            check_absent(path)  # another may have published it before we held the lock
            _empty(partial)  # what a crashed writer left
            yield partial
            _sync_tree(partial)
            partial.rename(path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_folder(path.parent)


def check_absent(path: Path) -> None:
    """Raises UsageError when something stands at `path`."""
    if path.exists():
        raise UsageError(f"{path} is there already; choose another name, or remove it first.")


@contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    with _lock(folder, os.O_RDONLY | os.O_DIRECTORY):
        yield


@contextmanager
def _lock(path: Path, flags: int) -> Iterator[int]:
    """Holds `path` against other processes for the length of the block; the kernel lets go when its owner dies."""
    descriptor = os.open(path, flags, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            still_there = path.stat().st_ino == os.fstat(descriptor).st_ino
        except (BlockingIOError, FileNotFoundError):
            still_there = False  # held by another process, or published by it between the open and the lock
        if not still_there:
            raise Stopped(
                f"Another process is writing {path.with_suffix('')}; wait for it to end, then run this again."
            )
        yield descriptor
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """The folder and its parents, each durable in the one above."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _sync_tree(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            _sync_tree(entry)
        else:
            with entry.open("rb") as stream:
                os.fsync(stream.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable: a rename is not, until its folder is fsynced."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class NpyWriter:
    """Appends blocks of rows to a `.npy` file whose number of rows is not known in advance."""

    def __init__(self, stream: IO[bytes], dim: int, dtype: str) -> None:
        self.count, self.dim, self.dtype = 0, dim, np.dtype(dtype).newbyteorder("<")
        self._stream = stream
        stream.write(bytes(HEADER))

    def append(self, rows: np.ndarray[Any, Any]) -> None:
        """rows: (n, dim), converted to the dtype of the file."""
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise DataError(f"Rows of shape {rows.shape} came, rows of width {self.dim} were expected.")
        self._stream.write(np.ascontiguousarray(rows, dtype=self.dtype).data)
        self.count += len(rows)

    def finish(self) -> None:
        """Writes the header that makes the bytes an array (n, dim)."""
        fields = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.count, self.dim)}
        text = repr(fields).encode("ascii")
        self._stream.seek(0)
        self._stream.write(b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + text.ljust(HEADER - 11) + b"\n")
        self._stream.seek(0, os.SEEK_END)


def file_record(path: Path) -> dict[str, Any]:
    """{"bytes": size, "sha256": hex digest}: what a manifest says of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
        return {"bytes": stream.tell(), "sha256": digest.hexdigest()}


def check_size(path: Path, record: Mapping[str, Any]) -> None:
    """Raises IntegrityError when the file is missing or not of the recorded length: before it is mapped into memory,
    where a missing page would kill the process."""
    size = path.stat().st_size if path.is_file() else None
    if size != record["bytes"]:
        state = "is missing" if size is None else f"has {size} bytes"
        raise IntegrityError(f"{path} {state}, its manifest says {record['bytes']}; restore it or build it again.")


def check_file(path: Path, record: Mapping[str, Any]) -> None:
    """Raises IntegrityError when the file is missing or any byte of it differs from what was recorded."""
    check_size(path, record)
    if file_record(path)["sha256"] != record["sha256"]:
        raise IntegrityError(
            f"{path} has changed since it was written (SHA-256 differs); restore it or build it again."
        )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Publishes `content` as JSON, with its own checksum under "checksum"."""
    with atomic_file(path) as stream:
        stream.write(sealed_json(content))


def sealed_json(content: Mapping[str, Any]) -> bytes:
    """`content` as JSON, with its own checksum under "checksum"."""
    if "checksum" in content:
        raise ValueError("The field 'checksum' is the file's own.")
    body = json.loads(json.dumps(content, allow_nan=False))  # as read_json will see it: names are strings
    body["checksum"] = _checksum(body)
    return json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote. Raises IntegrityError when it is not JSON any more, or its checksum does not fit."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        intact = isinstance(body, dict) and body.pop("checksum", None) == _checksum(body)
    except (ValueError, RecursionError):
        intact = False
    if not intact:
        raise IntegrityError(f"{path} is damaged (its checksum does not fit); restore it or build it again.")
    return dict(body)


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
