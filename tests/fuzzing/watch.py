"""What a reader or a command must not do, seen by Python's own audit events: a socket to another machine, another process, a file
written, removed or made outside the folder that it was given."""

from __future__ import annotations

import os
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {  # event -> the places of the paths among its arguments
    "os.remove": (0,), "os.rename": (0, 1), "os.rmdir": (0,), "os.mkdir": (0,), "os.truncate": (0,), "os.link": (1,), "os.symlink": (1,),
    "os.chmod": (0,), "os.utime": (0,), "shutil.rmtree": (0,), "tempfile.mkstemp": (0,), "tempfile.mkdtemp": (0,), "sqlite3.connect": (0,),
}  # fmt: skip
PROCESSES = ("os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.fork", "subprocess.Popen")


class Watch:
    """Notes what happens while it is awake. allowed: the folders below which all may be written.
    deaf_to: the name of a thread that it does not listen to."""

    def __init__(self, deaf_to: str = "") -> None:
        self._deaf_to = deaf_to
        self.seen: list[str] = []
        self.allowed: tuple[str, ...] = ()
        self._awake = False
        sys.addaudithook(self._hear)

    def wake(self, *allowed: Path) -> None:
        self.allowed = (*(os.path.realpath(folder) for folder in allowed), "/dev/null", "/proc/self")
        self.seen, self._awake = [], True

    def sleep(self) -> list[str]:
        self._awake = False
        return self.seen

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._awake or threading.current_thread().name == self._deaf_to:
            return
        if event == "socket.__new__" and arguments[1] in (socket.AF_INET, socket.AF_INET6):
            self.seen.append(f"opens a socket at {' '.join(_places())}")
        elif event in ("socket.connect", "socket.getaddrinfo"):
            self.seen.append(f"{event} {arguments[1:3]!r:.80}")
        elif event.startswith(PROCESSES):
            self.seen.append(f"starts a process: {event} at {' '.join(_places())}")
        elif event == "open":
            path, _mode, flags = arguments
            if (flags if isinstance(flags, int) else 0) & WRITES:
                self._check("opens for writing", path, followed=not flags & os.O_NOFOLLOW)
        else:
            for place in CHANGES.get(event, ()):
                if not (event == "sqlite3.connect" and "mode=ro" in str(arguments[place])):
                    self._check(event, arguments[place], followed=event == "os.truncate")

    def _check(self, what: str, path: Any, *, followed: bool) -> None:
        if isinstance(path, int) or not isinstance(path, (str, bytes, os.PathLike)):
            return  # a descriptor that was opened before, or a database in memory
        name = os.fsdecode(path)
        if name in (":memory:", ""):
            return
        path = Path.cwd() / name
        real = os.path.realpath(path if followed else path.parent)
        real = real if followed else f"{real}/{path.name}"
        if not any(real == one or real.startswith(one + os.sep) for one in self.allowed):
            self.seen.append(f"{what} outside: {real} at {' '.join(_places())}")


def _places() -> list[str]:
    """Where the code stands, the innermost calls last."""
    return [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_stack()[-8:-2]]
