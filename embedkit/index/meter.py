"""What a build takes: seconds of each phase, and the peak of its memory.

The memory is the anonymous memory of the process (resident, not of files: mapped rows may leave at any time), read from /proc
twenty times a second by a thread that lives as long as a phase, above what the process held before the first one. Where there is
no /proc, it is not measured.
"""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATM = Path("/proc/self/statm")
EVERY_SECONDS = 0.05


def anonymous_bytes() -> int | None:
    """Resident memory of this process that belongs to no file."""
    try:
        _, resident, shared, *_ = STATM.read_text().split()
    except OSError:
        return None
    return (int(resident) - int(shared)) * resource.getpagesize()


class Meter:
    """Of one build. watches_memory: a thread costs a small commit more than its rows do."""

    def __init__(self, *, watches_memory: bool = True) -> None:
        self.seconds: dict[str, float] = {}  # by phase, in order
        self.core_seconds: dict[str, float] = {}  # of the processor, by all threads together
        self.peaks: dict[str, int] = {}  # bytes above what there was before, by phase; none where nobody can say
        self._before = anonymous_bytes() if watches_memory else None

    @property
    def peak(self) -> int | None:
        return max(self.peaks.values(), default=None)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What the block takes is counted under this name."""
        started, used, ended = time.perf_counter(), time.process_time(), threading.Event()
        watcher = threading.Thread(target=self._watch, args=(name, ended), daemon=True)
        if self._before is not None:
            watcher.start()
        try:
            yield
        finally:
            ended.set()
            if self._before is not None:
                watcher.join()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
            self.core_seconds[name] = self.core_seconds.get(name, 0.0) + time.process_time() - used

    def _watch(self, name: str, ended: threading.Event) -> None:
        assert self._before is not None
        while True:
            last = ended.wait(EVERY_SECONDS)
            self.peaks[name] = max(self.peaks.get(name, 0), (anonymous_bytes() or 0) - self._before)
            if last:
                return
