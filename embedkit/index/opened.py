"""Which version an index holds open, and how it goes from one to the next while searches run."""

from __future__ import annotations

import logging
from pathlib import Path

from embedkit.errors import UsageError
from embedkit.index.lifetimes import forkable_lock
from embedkit.index.manifest import Manifest
from embedkit.index.snapshot import Snapshot

logger = logging.getLogger(__name__)


class Opened:
    """One version at a time, for several threads."""

    def __init__(self, path: Path, *, check: bool) -> None:
        self.path = path
        self._snapshot, self._closed = Snapshot(path, check=check), False
        self._committed: Manifest | None = None  # newer than what is open: by this index, which could not open it
        self._lock = forkable_lock()

    @property
    def manifest(self) -> Manifest:
        """Of the version that answers; also when it is closed."""
        return self._committed or self._snapshot.manifest

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def snapshot(self) -> Snapshot:
        """For who uses it while nobody else changes or closes the index."""
        if self._committed is not None:
            self._open_committed()
        if self._closed:
            raise self._is_closed()
        return self._snapshot

    def taken(self) -> Snapshot:
        """As `Snapshot.taken`. Raises UsageError where the index is closed."""
        while True:
            snapshot = self.snapshot
            if taken := snapshot.taken():
                return taken
            if snapshot is self._snapshot:  # else another thread went on to the next version
                raise self._is_closed()

    def follow(self, manifest: Manifest) -> None:
        """Goes on to a version that this index has committed. Raises nothing: the commit counts. What is in the way (too many open
        files, say) the next search meets, which tries again."""
        self._committed = manifest
        try:
            self._open_committed()
        except Exception as error:
            logger.warning(
                "Version %d of %s is committed, but cannot be opened yet (%s); the next search tries again.",
                manifest.number,
                self.path,
                error,
            )

    def close(self) -> None:
        self._closed = True
        self._snapshot.close()

    def _open_committed(self) -> None:
        with self._lock:
            if self._committed is None or self._closed:
                return
            before, after = self._snapshot, Snapshot(self.path, check=False)
            self._snapshot, self._committed = after, None
        before.close()
        if self._closed:  # meanwhile, by another thread
            after.close()

    def _is_closed(self) -> UsageError:
        return UsageError(f"{self.path} is closed; open it again.")
