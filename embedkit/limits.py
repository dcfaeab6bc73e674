"""What is taken in at most, in one place: inputs may come from strangers, and a file of a few bytes can ask for all memory.

Each is far above what is met in practice and far below what a machine of 8 GB can hold. docs/security.md lists them.
"""

from __future__ import annotations

import os
import reprlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from embedkit.errors import EmbedkitError, UsageError

LINE = 16 << 20  # bytes of one line of a corpus, of ids, of judgements or of training data, unpacked
TEXT = 4 << 20  # bytes of one text in UTF-8, a long book; the worst text for a tokenizer, "!" alone, takes 3.7 GB then
NESTED = 50  # levels of lists and mappings within one another, in JSON and in YAML
SETTINGS = 1 << 20  # bytes of a recipe or of a task.yaml
FACTORY = 200  # characters of a faiss factory string, whose parser overflows the stack over long ones
FACTORY_NUMBER = 1 << 22  # the largest number in one: faiss makes as many lists before a row comes
YAML_VALUES = 10_000  # values of one of these, each alias counted as all that it stands for
CONFIG = 16 << 20  # bytes of a JSON file of a model, but for its tokenizer; libraries keep several copies of it
TOKENIZER = 1 << 30  # bytes of a tokenizer file
GROWTH = 64  # times its length that a tokenizer's replacements may make of a text
PARTS = 1000  # layers, heads or experts that the config of a model may ask for, each under one name
LABELS = 1_000_000  # labels of a model; each is a name in memory
MANIFEST = 256 << 20  # bytes of a JSON file that embedkit wrote: manifests, reports, caches
IMAGE = 256 << 20  # bytes of one image file
ANSWER = 64 << 20  # bytes of one answer of a server
SCORE = 1_000_000  # the most that a score of two texts may be, either way: beyond it float32 tells few apart
GRADE = 10_000  # of a judgement, above or below 0: trec_eval's time grows with its square, 2.7 s a query at 100,000
SHOWN = 80  # characters of a value in a message


@contextmanager
def open_regular(path: Path, error: type[EmbedkitError] = UsageError) -> Iterator[IO[bytes]]:
    """The bytes of a regular file. Raises `error` for a pipe or a device, on which a read may never end; what the system refuses
    is its own OSError."""
    # O_NONBLOCK: a pipe without a writer would not open otherwise
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = "folder" if stat.S_ISDIR(mode) else "pipe" if stat.S_ISFIFO(mode) else "device"
            raise error(f"{path} is a {kind}; expected a regular file.")
        stream = os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
    with stream:
        yield stream


def read_at_most(path: Path, limit: int, error: type[EmbedkitError] = UsageError) -> bytes:
    """The whole of a regular file. Raises `error` where it is none, or is longer than `limit` bytes."""
    with open_regular(path, error) as stream:
        # a read of `limit` bytes would take so much memory for any file
        content = stream.read() if os.fstat(stream.fileno()).st_size <= limit else None
    if content is None:
        raise error(f"{path} has more than {limit:,} bytes, the most that is read of such a file; is it the right one?")
    return content


_repr = reprlib.Repr()  # which stops at a few entries, so that aliases of aliases are never written out
_repr.maxstring = _repr.maxother = _repr.maxlong = SHOWN
_repr.maxlevel, _repr.maxlist, _repr.maxdict = 3, 6, 6


def shown(value: object) -> str:
    """A value in a message: on one line, cut where it is long, and made without writing out a huge one first."""
    try:
        text = _repr.repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
