"""One layer over the calls by which `storage` changes a disk: the k-th fails, or the machine goes down in it.

The files are real, and so is what a process sees of them; what would have outlived a power cut is kept beside: the bytes of
each file at its last fsync, the names in each folder at its last. `crash` then makes of the folder what a disk may hold:
of the writes and names since, any may be there, torn, or not (SQLite's crash VFS, and Lucene's MockDirectoryWrapper with
what it leaves to do: renames and removals whose folder was not fsynced are dropped, too). Opening and flock are not
counted; nothing is really fsynced.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

Change = tuple[int, bytes | None, int]  # position, bytes written there (None: cut to `position`), inode


class SimulatedCrash(BaseException):
    """The machine is off: nothing behind it is written any more."""


class Disk:
    """A folder, and which of its operations goes wrong. `count`: operations so far."""

    def __init__(self, folder: Path, fault: Callable[[int], BaseException | None] = lambda _: None) -> None:
        self.folder, self._fault, self.count = folder, fault, 0
        self.log: list[str] = []
        self._off = False
        self._lasting = {path.stat().st_ino: path.read_bytes() for path in folder.iterdir()}
        self._names = {path.name: path.stat().st_ino for path in folder.iterdir()}
        self._changes: list[Change] = []  # of bytes, since the last fsync of their file
        self._renames: list[dict[str, int | None]] = []  # of names (None: gone), since the last fsync of the folder
        self._kept: list[int] = []  # descriptors that keep inodes from being used again
        self._real = {name: getattr(os, name) for name in ("pwrite", "fsync", "ftruncate", "replace", "unlink", "open")}

    @contextmanager
    def watched(self) -> Iterator[Disk]:
        """A block in which the calls of storage go through this layer."""
        with patch.multiple(
            os,
            pwrite=self._pwrite,
            fsync=self._fsync,
            ftruncate=self._ftruncate,
            replace=self._replace,
            unlink=self._unlink,
            open=self._open,
        ):
            try:
                yield self
            finally:
                for descriptor in self._kept:
                    os.close(descriptor)

    def _step(self, what: str) -> None:
        if self._off:
            raise SimulatedCrash
        self.log.append(what)
        number, self.count = self.count, self.count + 1
        if (error := self._fault(number)) is not None:
            self._off = isinstance(error, SimulatedCrash)
            raise error

    def _inode(self, descriptor: int) -> int:
        return os.fstat(descriptor).st_ino

    def _pwrite(self, descriptor: int, data: Any, position: int) -> int:
        part = bytes(data)[: max(1, len(data) * 2 // 3)] if len(data) > 100 else bytes(data)  # short writes happen
        change = (position, part, self._inode(descriptor))
        if not self._off:
            self._changes.append(change)  # torn in the crash itself, too
        try:
            self._step("write")
        except OSError:
            self._changes.remove(change)
            raise
        return int(self._real["pwrite"](descriptor, part, position))

    def _ftruncate(self, descriptor: int, size: int) -> None:
        self._step("truncate")
        self._changes.append((size, None, self._inode(descriptor)))
        self._real["ftruncate"](descriptor, size)

    def _fsync(self, descriptor: int) -> None:
        self._step("fsync")
        inode = self._inode(descriptor)
        if inode == self.folder.stat().st_ino:
            self._names = {path.name: path.stat().st_ino for path in self.folder.iterdir()}
            self._renames.clear()
        else:
            self._changes = [change for change in self._changes if change[2] != inode]
            self._lasting[inode] = os.pread(descriptor, 1 << 24, 0)

    def _replace(self, source: Any, target: Any) -> None:
        self._step(f"rename {Path(source).name}")
        self._keep(target)
        self._renames.append({Path(source).name: None, Path(target).name: Path(source).stat().st_ino})
        self._real["replace"](source, target)

    def _unlink(self, path: Any) -> None:
        Path(path).stat()  # a missing file is no operation
        self._step(f"unlink {Path(path).name}")
        self._keep(path)
        self._renames.append({Path(path).name: None})
        self._real["unlink"](path)

    def _open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        new = bool(flags & os.O_CREAT) and not Path(path).exists()
        if new:
            self._step(f"create {Path(path).name}")
        elif self._off:
            raise SimulatedCrash
        descriptor = int(self._real["open"](path, flags, mode))
        if new:
            self._renames.append({Path(path).name: self._inode(descriptor)})
            self._lasting[self._inode(descriptor)] = b""
        return descriptor

    def _keep(self, path: Any) -> None:
        if Path(path).exists():
            self._kept.append(self._real["open"](path, os.O_RDONLY))

    def crash(self, draw: random.Random) -> None:
        """Leaves in the folder what a disk may hold after the power went. Call it behind the block."""
        names = dict(self._names)
        upto = draw.choice([0, len(self._renames), draw.randint(0, len(self._renames))])
        for number, change in enumerate(self._renames):
            if number < upto or draw.random() < 0.3:  # mostly in order, but no system promises it
                names.update({name: inode for name, inode in change.items() if inode is not None})
                gone = [name for name, inode in change.items() if inode is None]
                names = {name: inode for name, inode in names.items() if name not in gone}
        kept = [change for change in self._changes if draw.random() < draw.choice([0.0, 0.5, 1.0])]
        contents = {inode: self._after(inode, kept, draw) for inode in set(names.values())}
        for path in self.folder.iterdir():
            self._real["unlink"](path)
        for name, inode in names.items():
            (self.folder / name).write_bytes(contents[inode])

    def _after(self, inode: int, kept: list[Change], draw: random.Random) -> bytes:
        content = bytearray(self._lasting[inode])
        for position, data, of in kept:
            if of != inode:
                continue
            if data is None:
                del content[position:]
                content.extend(bytes(position - len(content)))
                continue
            torn = bytearray(data[: draw.choice([len(data), draw.randint(0, len(data))])])
            if torn and draw.random() < 0.2:
                torn[draw.randrange(len(torn))] ^= 0xFF  # a sector of garbage
            content.extend(bytes(max(0, position - len(content))))
            content[position : position + len(torn)] = torn
        return bytes(content)
