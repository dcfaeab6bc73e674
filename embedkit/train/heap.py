"""What was freed, given back to the system.

glibc holds what is freed between blocks that are not, and reuses little of it for tensors, which are aligned and of sizes that are new each
time: over the parts and blocks of a large batch that was as much memory again.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back() -> None:
    """Does nothing where the C library is not glibc."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
