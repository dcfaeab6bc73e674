"""The errors that embedkit raises: one sentence for a person, one exit code for a script.

Every message says what came, what was expected and the next step. The codes are a promise of the command line
(README, "Exit codes"); code 1 is left to defects of ours, which raise anything else.
"""

from __future__ import annotations

import errno
from typing import ClassVar

from embedkit.escapes import escaped


class EmbedkitError(Exception):
    """Base of all errors that embedkit raises on purpose.

    position: which of the inputs it is about, where it is about one of them.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, position: int | None = None) -> None:
        super().__init__(escaped(message))  # names of files, ids and values are strangers' texts
        self.position = position


class UsageError(EmbedkitError, ValueError):
    """The call itself is wrong: an unknown option, a missing file, settings that contradict each other."""

    exit_code = 2


class MissingDependency(EmbedkitError, ImportError):
    """An optional package is needed and absent; the message names the extra that brings it."""

    exit_code = 2


class DataError(EmbedkitError, ValueError):
    """The user's data cannot be read as it stands; the message names the file and the line."""

    exit_code = 3


class ModelError(EmbedkitError, RuntimeError):
    """The model cannot be loaded, or what it returns cannot be used."""

    exit_code = 4


class IntegrityError(EmbedkitError, RuntimeError):
    """An artefact is damaged, incomplete, or belongs to something else."""

    exit_code = 5


class ModelMismatch(IntegrityError):
    """A query comes from another vector space than the rows of the index."""


class Infeasible(EmbedkitError, RuntimeError):
    """A goal that nothing here can meet; what comes nearest has been said."""

    exit_code = 6


class Stopped(EmbedkitError, RuntimeError):
    """Nothing is wrong that running the command again could not mend: another writer, a full disk."""

    exit_code = 75


OUT_OF_MEMORY = (
    "out of memory",
    "bad_alloc",
    "failed to allocate",
    "can't alloc",
    "cannot allocate memory",
    "broken promise",  # what OpenVINO says to the requests that waited for the one that failed
)


def is_out_of_memory(error: BaseException) -> bool:
    """MemoryError, torch's own, and the errors in which the system and the allocators of C++ libraries say so."""
    if isinstance(error, MemoryError):
        return True
    told = str(error).lower() if isinstance(error, (RuntimeError, OSError)) else ""
    return any(phrase in told for phrase in OUT_OF_MEMORY)


def is_out_of_descriptors(error: BaseException) -> bool:
    """Whether the process may open no more files; a library that cannot be loaded says so in its text."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return True
    return isinstance(error, (OSError, RuntimeError, ImportError)) and "too many open files" in str(error).lower()


def is_full_disk(error: BaseException) -> bool:
    """Whether the system refused to write for want of space, of quota, or of room in one file."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
