"""mteb, kept from making a folder in the home of whoever evaluates.

It makes the folder of its default cache of results when it is imported. Nothing here uses that cache, so every first import of
mteb goes through here; who uses mteb beside embedkit finds the cache where mteb would have it.
"""

from __future__ import annotations

import inspect
import os
import sys
import tempfile
from typing import Any

from embedkit.errors import MissingDependency

CACHE = "MTEB_CACHE"


def import_mteb() -> Any:
    """Raises MissingDependency where it is not installed."""
    if (known := sys.modules.get("mteb")) is not None:
        return known
    asked = os.environ.get(CACHE)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE] = folder
        try:
            import mteb
        except ImportError:
            raise MissingDependency(
                'mteb is not installed; from the project\'s folder, run pip install -e ".[eval]".'
            ) from None
        finally:
            del os.environ[CACHE]
            if asked is not None:
                os.environ[CACHE] = asked
    default = inspect.signature(mteb.evaluate).parameters["cache"].default
    default.cache_path = default.default_cache_path
    return mteb
