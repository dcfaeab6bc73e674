"""Durable files. Nothing else in embedkit writes an artefact.

A file is written under `NAME.partial` in the same folder, its bytes are fsynced, and it is renamed into place, after which
the folder itself is fsynced: a crash leaves the old state or the new one, and at most a `.partial` that the next writer
clears away. The `.partial` carries an advisory lock (flock) that dies with its owner, so two writers of one
name cannot meet. Cost: two fsyncs a file, one read of it for its checksum.

A job that must survive its own death writes in steps of its own instead, with `PositionalFile`, `sealed_partial`, `rename`
and `remove`; what it may assume after a crash is only what it had fsynced, file or folder.

Links. The name that a user gives for an output may be a link: its caller asks `writable` where that leads, and the file appears
there. All other names are ours, and a folder that came from elsewhere may hold a link under any of them: a new file takes the
place of whatever stands under its name (a link goes, what it points to stays), and one that is gone on with must be a regular
file with no other name, or IntegrityError is raised. Reading follows links, as the cache of the hub needs it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypedDict

import numpy as np

from embedkit.errors import IntegrityError, Stopped, UsageError
from embedkit.limits import MANIFEST, read_at_most
from embedkit.typed import checked, parsed
from embedkit.types import is_unicode

SUFFIX = ".partial"
BLOCK = 1 << 24  # bytes that have a SHA-256 of their own in `block_record`
HEADER = 128  # bytes; long enough for every header that `npy_header` writes, and a multiple of 64 as the format asks


class FileRecord(TypedDict):
    """What a manifest says of a file."""

    bytes: int
    sha256: str  # hex digest


class BlockRecord(TypedDict):
    """What a manifest says of a large file: a change in it is found and named without reading all of it twice."""

    bytes: int
    block: int
    sha256: list[str]  # hex digest of each block


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under `path`, replacing what is there, once the block ends without an error.

    Raises Stopped while somebody else writes the same path, UsageError where a folder, device or pipe stands there.
    """
    _refuse_irregular(path)
    make_folder(path.parent)
    with _partial_file(path) as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
        Path(stream.name).replace(path)
        sync_folder(path.parent)


def writable(path: Path) -> Path:
    """Where a file lies under a name that a user gave, links followed and its folder made."""
    target = Path(os.path.realpath(path))
    _refuse_irregular(target)
    make_folder(target.parent)
    return target


def _refuse_irregular(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no regular file; choose another name.")


@contextmanager
def _partial_file(target: Path) -> Iterator[IO[bytes]]:
    """An empty, locked file beside the target, gone at the end unless it was renamed."""
    partial = target.with_name(target.name + SUFFIX)
    if os.path.lexists(partial):
        _clear_leftover(partial, target)
    with _lock(partial, target, os.O_EXCL) as descriptor:
        identity = os.fstat(descriptor).st_ino
        try:
            with partial.open("r+b") as stream:
                yield stream
        finally:
            if partial.exists() and partial.stat().st_ino == identity:
                partial.unlink()


def _clear_leftover(partial: Path, target: Path) -> None:
    """Removes what a crashed writer left, or somebody put there. Raises Stopped where it is a living writer's."""
    if partial.is_symlink() or not partial.is_file():
        partial.unlink()
        return
    with _lock(partial, target):
        partial.unlink()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, that appears under `path` with all its files, durably, once the block ends without an error.

    What stood there is removed before, so that a crash leaves a whole folder or none. The caller keeps other writers away.
    """
    partial = path.with_name(path.name + SUFFIX)
    if os.path.lexists(partial):  # what a crashed writer left
        remove_folder(partial)
    make_folder(partial)
    try:
        yield partial
        for inside in (*partial.rglob("*"), partial):
            (sync_folder if inside.is_dir() else sync_file)(inside)
        if os.path.lexists(path):
            remove_folder(path)
        rename(partial, path)
        sync_folder(path.parent)
    finally:
        if partial.exists():
            remove_folder(partial)


def check_is_text(path: Path) -> None:
    """Raises UsageError for a path that is not UTF-8: manifests, Arrow and faiss cannot name it."""
    if not is_unicode(str(path)):
        raise UsageError(f"{path} is no name in UTF-8; choose another, or rename what lies there.")


def check_absent(path: Path) -> None:
    """Raises UsageError when something stands at `path`."""
    if path.exists():
        raise UsageError(f"{path} is there already; choose another name, or remove it first.")


@contextmanager
def lock(path: Path, output: Path) -> Iterator[None]:
    """Holds `path`, a file that nobody ever writes to, against other writers of `output`: for these it raises Stopped."""
    with _lock(path, output):
        yield


@contextmanager
def _lock(path: Path, output: Path, flags: int = 0) -> Iterator[int]:
    """A descriptor of `path`, made where it is not there, held for the length of the block; the kernel lets go when its owner
    dies. It is this process's alone: a forked child has no part in it (`_forget_locks`)."""
    with _opened(path, flags) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            still_there = path.stat().st_ino == os.fstat(descriptor).st_ino
        except (BlockingIOError, FileNotFoundError):
            still_there = False  # held by another, or published by it between the open and the lock
        if not still_there:
            raise _other_writer(output, _identity(descriptor))
        _locked[descriptor] = _identity(descriptor)
        try:
            yield descriptor
        finally:
            if _locked.pop(descriptor, None):  # not in a child, where another file may have the number now
                fcntl.flock(
                    descriptor, fcntl.LOCK_UN
                )  # of all copies, those in the arms of a child that is just being made too


def refuse_held(path: Path, output: Path) -> None:
    """Raises Stopped while somebody else holds the file, if there is one, as the lock of `output`."""
    with suppress(FileNotFoundError), path.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _other_writer(output, _identity(stream.fileno())) from None


_locked: dict[int, tuple[int, int]] = {}  # descriptor -> file, of the locks that this process holds


def _identity(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def _forget_locks() -> None:
    """In a forked child: a lock would live as long as the last copy of its descriptor, longer than the write."""
    for descriptor in list(_locked):
        del _locked[descriptor]
        os.close(descriptor)


os.register_at_fork(after_in_child=_forget_locks)


def _other_writer(output: Path, file: tuple[int, int] | None = None) -> Stopped:
    who = "Another thread of this process" if file in list(_locked.values()) else "Another process"
    return Stopped(f"{who} is writing {output}; wait for it to end, then run this again.")


@contextmanager
def _opened(path: Path, flags: int = 0) -> Iterator[int]:
    """A descriptor of a regular file, made where it is not there. Raises IntegrityError for a link, device or pipe."""
    owner = os.getpid()
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | flags, 0o666)
    except OSError as error:
        if error.errno == errno.EEXIST:  # another was faster
            raise _other_writer(path) from None
        if error.errno != errno.ELOOP:
            raise
        raise _foreign(path) from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _foreign(path)
        yield descriptor
    finally:
        if os.getpid() == owner:  # a child that was forked in the block has closed it, or has no use for it
            os.close(descriptor)


def _foreign(path: Path) -> IntegrityError:
    return IntegrityError(
        f"{path} is a link or no regular file, and embedkit writes through none inside a folder; remove it."
    )


def make_folder(folder: Path) -> None:
    """The folder and its parents, each durable in the one above."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        try:
            sync_folder(folder.parent)
        except OSError:
            with suppress(OSError):  # somebody has put something there
                folder.rmdir()
            raise


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable: a rename is not, until its folder is fsynced."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class PositionalFile:
    """A file that is written and read at positions, without a buffer. An OSError of it names the file."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor

    @property
    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def write(self, position: int, data: bytes | memoryview) -> None:
        """All of `data`, in as many calls as the system makes of it."""
        if not memoryview(data).nbytes:
            return  # which cannot be cast
        rest = memoryview(data).cast("B")
        with _named(self.path):
            while rest:
                written = os.pwrite(self._descriptor, rest, position)
                rest, position = rest[written:], position + written

    def read(self, position: int, length: int) -> bytes:
        """`length` bytes, or those up to the end of the file."""
        parts = []
        with _named(self.path):
            while length and (part := os.pread(self._descriptor, length, position)):
                parts.append(part)
                position, length = position + len(part), length - len(part)
        return b"".join(parts)

    def truncate(self, size: int) -> None:
        with _named(self.path):
            os.ftruncate(self._descriptor, size)

    def sync(self) -> None:
        """What was written so far outlives a crash of the machine, once this returns."""
        with _named(self.path):
            os.fsync(self._descriptor)


@contextmanager
def positional_file(path: Path) -> Iterator[PositionalFile]:
    """Opens the file at `path`, or makes an empty one; its name is durable once its folder is fsynced."""
    with _opened(path) as descriptor:
        _refuse_shared(path, descriptor)
        yield PositionalFile(path, descriptor)


@contextmanager
def new_file(path: Path) -> Iterator[PositionalFile]:
    """An empty file in place of whatever stands at `path`."""
    remove(path)
    with _opened(path, os.O_EXCL) as descriptor:
        yield PositionalFile(path, descriptor)


@contextmanager
def locked_file(path: Path, output: Path) -> Iterator[PositionalFile]:
    """As `positional_file`, held against other writers of `output`: for these it raises Stopped."""
    with _lock(path, output) as descriptor:
        _refuse_shared(path, descriptor)
        yield PositionalFile(path, descriptor)


def _refuse_shared(path: Path, descriptor: int) -> None:
    if os.fstat(descriptor).st_nlink > 1:
        raise IntegrityError(
            f"{path} has another name (a hard link), under which it would change too; put a copy in its place."
        )


@contextmanager
def sealed_partial(path: Path) -> Iterator[IO[bytes]]:
    """A new stream into `path`, replacing what is there; all of it is fsynced when the block ends without an error."""
    # the appender is closed before the descriptor: what is still in the buffer after an error goes nowhere
    with new_file(path) as file, _Appender(file) as raw:
        stream = io.BufferedWriter(raw, 1 << 20)
        yield stream
        stream.flush()
        file.sync()


class _Appender(io.RawIOBase):
    def __init__(self, file: PositionalFile) -> None:
        self._file, self._end = file, 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._end

    def write(self, data: Any) -> int:
        self._file.write(self._end, data)
        self._end += len(data)
        return len(data)


def sync_file(path: Path) -> None:
    """Makes durable what another library wrote there."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        with _named(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def shared_hold(path: Path) -> int | None:
    """A descriptor that keeps `remove_unheld` from the file until it is closed, by its owner's death too; None where the file
    is not there any more."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    # some network folders know no locks; then nothing there is removed by another machine either
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # waits where `remove_unheld` is about to remove it
    if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
        return descriptor
    os.close(descriptor)
    return None


def remove_unheld(path: Path) -> bool:
    """Removes the file unless somebody has a `shared_hold` on it; whether it is gone."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove(path)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.ENOLCK, errno.EOPNOTSUPP):
            return False
        raise
    else:
        return True
    finally:
        os.close(descriptor)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Calls on a descriptor raise an OSError that does not say of which file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def publish(source: Path, target: Path) -> None:
    """Renames within a folder, durably. What is opened for that is opened before: an error before the rename is one of before, and
    what the disk says afterwards is all that is left to go wrong."""
    descriptor = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        rename(source, target)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Durable once the folder is fsynced."""
    os.replace(source, target)  # noqa: PTH105


def remove_folder(folder: Path) -> None:
    """With all that is in it, and durably; of a link, or of a file in its place, itself alone."""
    if folder.is_symlink() or not folder.is_dir():
        folder.unlink()
    else:
        shutil.rmtree(folder)
    sync_folder(folder.parent)


def remove(path: Path) -> None:
    """Also where there is nothing. Durable once the folder is fsynced."""
    path.unlink(missing_ok=True)


def npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """HEADER bytes that make what follows them an array of this shape."""
    fields = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    text = repr(fields).encode("ascii")
    return b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + text.ljust(HEADER - 11) + b"\n"


def file_record(path: Path) -> FileRecord:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
        return {"bytes": stream.tell(), "sha256": digest.hexdigest()}


def check_size(path: Path, record: FileRecord | BlockRecord) -> None:
    """Raises IntegrityError when the file is missing or not of the recorded length: before it is mapped into memory,
    where a missing page would kill the process."""
    size = path.stat().st_size if path.is_file() else None
    if size != record["bytes"]:
        state = "is missing" if size is None else f"has {size} bytes"
        raise IntegrityError(f"{path} {state}, its manifest says {record['bytes']}; restore it or build it again.")


def check_file(path: Path, record: FileRecord) -> None:
    """Raises IntegrityError when the file is missing or any byte of it differs from what was recorded."""
    check_size(path, record)
    if file_record(path)["sha256"] != record["sha256"]:
        raise IntegrityError(
            f"{path} has changed since it was written (SHA-256 differs); restore it or build it again."
        )


def block_record(path: Path) -> BlockRecord:
    digests = []
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(BLOCK):
            digests.append(hashlib.sha256(block).hexdigest())
        return {"bytes": stream.tell(), "block": BLOCK, "sha256": digests}


def check_blocks(path: Path, record: BlockRecord) -> None:
    """Raises IntegrityError when the file is missing, or names the first bytes that differ from what was recorded."""
    check_size(path, record)
    with path.open("rb", buffering=0) as stream:
        for number, digest in enumerate(record["sha256"]):
            block = stream.read(record["block"])
            if hashlib.sha256(block).hexdigest() != digest:
                start = number * record["block"]
                raise IntegrityError(
                    f"{path} has changed since it was written (SHA-256 of its bytes {start} to {start + len(block)} "
                    f"differs); restore it or build it again."
                )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Publishes `content` as JSON, with its own checksum under "checksum"."""
    with atomic_file(path) as stream:
        stream.write(sealed_json(content))


def sealed_json(content: Mapping[str, Any]) -> bytes:
    """`content` as JSON, with its own checksum under "checksum". Its block "times" is left out of that, so that two runs
    of the same work, at other times, have the same checksum."""
    if "checksum" in content:
        raise ValueError("The field 'checksum' is the file's own.")
    body = json.loads(json.dumps(content, allow_nan=False))  # as read_json will see it: names are strings
    body["checksum"] = _checksum(body)
    return json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def read_json(path: Path, kind: Any = dict[str, Any]) -> dict[str, Any]:
    """What `write_json` wrote, of this type, a mapping (see `typed`). Raises IntegrityError when it is not JSON any more, its checksum does
    not fit, or it says something else."""
    content = read_at_most(path, MANIFEST, IntegrityError)
    try:
        body = parsed(content)
        if re.search(rb"\\u[dD]", content):  # half of a surrogate pair is no text that could be written again
            json.dumps(body, ensure_ascii=False).encode()
        intact = isinstance(body, dict) and body.pop("checksum", None) == _checksum(body)
    except ValueError:
        intact = False
    if not intact:
        raise IntegrityError(f"{path} is damaged (its checksum does not fit); restore it or build it again.")
    found: dict[str, Any] = checked(body, kind, path)
    return found


def _checksum(body: Mapping[str, Any]) -> str:
    lasting = {key: value for key, value in body.items() if key != "times"}
    return hashlib.sha256(json.dumps(lasting, sort_keys=True, ensure_ascii=True, allow_nan=False).encode()).hexdigest()
