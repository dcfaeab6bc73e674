"""How an index goes from one version to the next, and which versions still have readers.

All files of a version are written and fsynced under names that no earlier version has; then its manifest is renamed into
place, which is the only commit: a crash leaves the old version or the new one, and files that nobody names, which the next
commit removes. Readers hold the manifest that they opened; what only unheld older manifests name is removed.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedkit.errors import IntegrityError, UsageError
from embedkit.index.manifest import LOCK, OURS, Manifest, manifest_name, manifest_numbers, newest_number, read_manifest
from embedkit.storage import (
    SUFFIX,
    lock,
    publish,
    remove,
    remove_unheld,
    sealed_partial,
    shared_hold,
    sync_folder,
)

logger = logging.getLogger(__name__)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A block in which nobody else changes the index. Raises Stopped while another process does, UsageError where the folder
    cannot be written to."""
    try:
        with lock(folder / LOCK, folder):
            yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise UsageError(f"{folder} cannot be written to ({error.strerror}); copy the index to where it can.") from None


def commit(folder: Path, manifest: Manifest) -> None:
    """Publishes a version whose files are written, and removes what nobody reads any more. Call it while `writing`."""
    name = folder / manifest_name(manifest.number)
    partial = name.with_name(name.name + SUFFIX)
    with sealed_partial(partial) as stream:
        stream.write(manifest.sealed())
    sync_folder(folder)  # the names of all files, before the one that makes them count
    publish(partial, name)
    remove_old(folder, manifest)


def remove_old(folder: Path, manifest: Manifest) -> None:
    """Removes versions before this one that nobody holds, and files that no version names; what cannot be removed, the next
    commit tries again: this one is done."""
    try:
        _remove_old(folder, manifest)
    except OSError as error:
        logger.warning("Files that are no part of %s any more could not be removed (%s).", folder, error)


def _remove_old(folder: Path, manifest: Manifest) -> None:
    wanted = {manifest_name(manifest.number), *manifest.named_files(), *manifest.build_records()}
    for number in manifest_numbers(folder):
        if number != manifest.number and not remove_unheld(folder / manifest_name(number)):
            wanted |= {manifest_name(number), *_named_by(folder, number)}
    for job in ("build.", "add."):
        remove(folder / f"{job}manifest.json")
    sync_folder(folder)  # a manifest without its files would be damage
    for entry in sorted(folder.iterdir()):
        if entry.name not in wanted and (OURS.fullmatch(entry.name) or entry.name.startswith(("build.", "add."))):
            remove(entry)
    sync_folder(folder)


def _named_by(folder: Path, number: int) -> set[str]:
    try:
        manifest = read_manifest(folder, number)
        return {*manifest.named_files(), *manifest.build_records()}
    except IntegrityError:
        return set()


def open_version(folder: Path) -> tuple[Manifest, int]:
    """The newest version, and a descriptor that keeps its files from being removed until it is closed."""
    while True:
        number = newest_number(folder)
        if (hold := shared_hold(folder / manifest_name(number))) is not None:
            try:
                return read_manifest(folder, number), hold
            except BaseException:
                os.close(hold)
                raise
