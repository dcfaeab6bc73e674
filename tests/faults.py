"""One layer over the calls by which `storage` changes a disk: the k-th fails, or the machine goes down in it.

The files are real, and so is what a process sees of them; what would have outlived a power cut is kept beside: the bytes of
each file at its last fsync, the names in each folder at its last. `crash` then makes of the folder what a disk may hold:
of the writes and names since, any may be there, torn, or not (SQLite's crash VFS, and Lucene's MockDirectoryWrapper with
what it leaves to do: renames and removals whose folder was not fsynced are dropped, too). What others write below the layer,
as SQLite does, has no order: until an fsync, such a file may be absent, old, cut off, or have sectors of zeros or garbage.
Opening and flock are not counted; nothing is really fsynced.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

Change = tuple[int, bytes | None, int]  # position, bytes written there (None: cut to `position`), inode
Rename = tuple[int, dict[str, int | None]]  # inode of the folder, what stands under its names then (None: nothing)
PATCHED = ("pwrite", "fsync", "ftruncate", "replace", "rename", "unlink", "open", "mkdir", "rmdir")
SECTOR = 512


class SimulatedCrash(BaseException):
    """The machine is off: nothing behind it is written any more."""


class Disk:
    """A folder with all below it, and which of its operations goes wrong. `count`: operations so far."""

    def __init__(self, folder: Path, fault: Callable[[int], BaseException | None] = lambda _: None) -> None:
        self.folder, self._fault, self.count = folder, fault, 0
        self.log: list[str] = []
        self._off = False
        self._lasting: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}  # inode of a folder -> what stands in it, durably
        for path in [folder, *folder.rglob("*")]:
            if path.is_dir():
                self._names[path.stat().st_ino] = _listed(path)
            else:
                self._lasting[path.stat().st_ino] = path.read_bytes()
        self._changes: list[Change] = []  # of bytes, since the last fsync of their file
        self._renames: list[Rename] = []  # of names, since the last fsync of their folder
        self._removed: dict[int, bytes] = {}  # inodes that have no name any more
        self._kept: list[int] = []  # descriptors that keep inodes from being used again
        self._real = {name: getattr(os, name) for name in PATCHED}

    @contextmanager
    def watched(self) -> Iterator[Disk]:
        """A block in which the calls of storage go through this layer."""
        with patch.multiple(os, **{name: getattr(self, f"_{name}") for name in PATCHED}):
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

    def _whole(self, path: Any, dir_fd: int | None) -> Path:
        """The absolute path that a call means."""
        return Path(path).absolute() if dir_fd is None else _opened(dir_fd) / path

    def _named(self, path: Path, inode: int | None) -> None:
        """Notes what stands under a name from now on."""
        self._renames.append((path.parent.stat().st_ino, {path.name: inode}))

    def _pwrite(self, descriptor: int, data: Any, position: int) -> int:
        part = bytes(data)[: max(1, len(data) * 2 // 3)] if len(data) > 100 else bytes(data)  # short writes happen
        was_off = self._off
        try:
            self._step("write")
        except SimulatedCrash:
            if not was_off:  # torn in the crash itself, too
                self._write(descriptor, part, position)
            raise
        return self._write(descriptor, part, position)

    def _write(self, descriptor: int, part: bytes, position: int) -> int:
        self._changes.append((position, part, self._inode(descriptor)))
        return int(self._real["pwrite"](descriptor, part, position))

    def _ftruncate(self, descriptor: int, size: int) -> None:
        self._step("truncate")
        self._changes.append((size, None, self._inode(descriptor)))
        self._real["ftruncate"](descriptor, size)

    def _fsync(self, descriptor: int) -> None:
        self._step("fsync")
        inode = self._inode(descriptor)
        if inode in self._names:
            self._names[inode] = _listed(_opened(descriptor))
            self._renames = [rename for rename in self._renames if rename[0] != inode]
        else:
            self._changes = [change for change in self._changes if change[2] != inode]
            self._lasting[inode] = os.pread(descriptor, 1 << 24, 0)

    def _replace(self, source: Any, target: Any) -> None:
        source, target = self._whole(source, None), self._whole(target, None)
        self._step(f"rename {source.name}")
        self._keep(target)
        assert source.parent == target.parent, "a rename between folders is not simulated"
        self._renames.append((source.parent.stat().st_ino, {source.name: None, target.name: source.stat().st_ino}))
        self._real["replace"](source, target)

    _rename = _replace

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        path = self._whole(path, dir_fd)
        path.lstat()  # a missing file is no operation
        self._step(f"unlink {path.name}")
        self._keep(path)
        self._named(path, None)
        self._real["unlink"](path)

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        path = self._whole(path, dir_fd)
        if not path.exists():
            self._step(f"mkdir {path.name}")
        self._real["mkdir"](path, mode)
        self._names[path.stat().st_ino] = {}
        self._named(path, path.stat().st_ino)

    def _rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        path = self._whole(path, dir_fd)
        self._step(f"rmdir {path.name}")
        self._kept.append(self._real["open"](path, os.O_RDONLY | os.O_DIRECTORY))
        self._named(path, None)
        self._real["rmdir"](path)

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        whole = self._whole(path, dir_fd)
        if not whole.is_relative_to(self.folder):
            return int(self._real["open"](path, flags, mode, dir_fd=dir_fd))
        new = bool(flags & os.O_CREAT) and not whole.exists()
        if new:
            self._step(f"create {whole.name}")
        elif self._off:
            raise SimulatedCrash
        descriptor = int(self._real["open"](path, flags, mode, dir_fd=dir_fd))
        if new:
            self._named(whole, self._inode(descriptor))
            self._lasting[self._inode(descriptor)] = b""
        return descriptor

    def _keep(self, path: Path) -> None:
        if path.is_file():
            self._kept.append(self._real["open"](path, os.O_RDONLY))
            self._removed[path.stat().st_ino] = path.read_bytes()

    # --- what is left -------------------------------------------------------------------------------------------------

    def crash(self, draw: random.Random) -> None:
        """Leaves in the folder what a disk may hold after the power went. Call it behind the block."""
        others = random.Random(f"{self.log} {draw.getstate()[1][-1]}")
        upto = draw.choice([0, len(self._renames), draw.randint(0, len(self._renames))])
        # mostly in order, but no system promises it
        done = [change for number, change in enumerate(self._renames) if number < upto or draw.random() < 0.3]
        kept = [change for change in self._changes if draw.random() < draw.choice([0.0, 0.5, 1.0])]
        current = dict(self._removed)
        for path in self.folder.rglob("*"):
            if path.is_dir():
                self._names.setdefault(path.stat().st_ino, {})
            else:
                current[path.stat().st_ino] = path.read_bytes()
        for path in [self.folder, *(path for path in self.folder.rglob("*") if path.is_dir())]:
            done += self._made_by_others(path, others)
        names = {inode: dict(entries) for inode, entries in self._names.items()}
        for folder, change in done:
            names[folder].update({name: inode for name, inode in change.items() if inode is not None})
            for name in [name for name, inode in change.items() if inode is None]:
                names[folder].pop(name, None)
        standing = {inode for entries in names.values() for inode in entries.values()} - set(names)
        contents = {inode: self._after(inode, kept, current[inode], draw, others) for inode in standing}
        root = self.folder.stat().st_ino
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        _lay_out(self.folder, root, names, contents)

    def _made_by_others(self, folder: Path, draw: random.Random) -> list[Rename]:
        """Some of the names that came below the layer."""
        inode, chance = folder.stat().st_ino, draw.choice([0.0, 0.5, 1.0])
        ours = set(self._names[inode]) | {name for of, change in self._renames if of == inode for name in change}
        return [
            (inode, {name: at}) for name, at in _listed(folder).items() if name not in ours and draw.random() < chance
        ]

    def _after(
        self, inode: int, kept: list[Change], current: bytes, draw: random.Random, others: random.Random
    ) -> bytes:
        lasting = self._lasting.get(inode, b"")
        if self._written(lasting, [change for change in self._changes if change[2] == inode]) != current:
            return _mangled(lasting, current, others)
        return self._written(lasting, [change for change in kept if change[2] == inode], draw)

    @staticmethod
    def _written(content: bytes, changes: list[Change], draw: random.Random | None = None) -> bytes:
        """draw: some of them are torn."""
        written = bytearray(content)
        for position, data, _ in changes:
            if data is None:
                del written[position:]
                written.extend(bytes(position - len(written)))
                continue
            torn = bytearray(data)
            if draw is not None:
                del torn[draw.choice([len(data), draw.randint(0, len(data))]) :]
                if torn and draw.random() < 0.2:
                    torn[draw.randrange(len(torn))] ^= 0xFF  # a sector of garbage
            written.extend(bytes(max(0, position - len(written))))
            written[position : position + len(torn)] = torn
        return bytes(written)


def _opened(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def _listed(folder: Path) -> dict[str, int]:
    return {path.name: path.lstat().st_ino for path in folder.iterdir()}


def _mangled(lasting: bytes, current: bytes, draw: random.Random) -> bytes:
    """What may lie on disk of a file that was written in an order that nobody knows."""
    kind = draw.choice(["whole", "lasting", "cut", "zeros", "garbage"])
    if kind == "whole":
        return current
    if kind == "lasting":
        return lasting
    if kind == "cut":
        return current[: draw.randint(0, len(current))]
    content = bytearray(current)
    for start in range(0, len(content), SECTOR):
        if draw.random() < 0.3:
            length = min(SECTOR, len(content) - start)
            content[start : start + length] = bytes(length) if kind == "zeros" else draw.randbytes(length)
    return bytes(content)


def _lay_out(folder: Path, inode: int, names: dict[int, dict[str, int]], contents: dict[int, bytes]) -> None:
    for name, entry in names[inode].items():
        if entry in names:
            (folder / name).mkdir()
            _lay_out(folder / name, entry, names, contents)
        else:
            (folder / name).write_bytes(contents[entry])
