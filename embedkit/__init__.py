"""From raw documents to retrieval whose quality is proven.

Names are loaded when first used: `import embedkit` costs numpy, not torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from embedkit.version import __version__

if TYPE_CHECKING:
    from embedkit.corpus import Fields, read_corpus
    from embedkit.encoder import Encoder
    from embedkit.encoders import load
    from embedkit.encoders.doctor.examination import doctor
    from embedkit.encoders.doctor.parity import parity
    from embedkit.errors import EmbedkitError
    from embedkit.eval import evaluate
    from embedkit.export import export_index
    from embedkit.index import Index
    from embedkit.jobs import build_index, embed, open_index
    from embedkit.types import Document, Hits, Report
    from embedkit.vectors import Ranges

_HOMES = {
    "Document": "embedkit.types",
    "EmbedkitError": "embedkit.errors",
    "Encoder": "embedkit.encoder",
    "Fields": "embedkit.corpus",
    "Hits": "embedkit.types",
    "Index": "embedkit.index",
    "Ranges": "embedkit.vectors",
    "Report": "embedkit.types",
    "build_index": "embedkit.jobs",
    "doctor": "embedkit.encoders.doctor.examination",
    "embed": "embedkit.jobs",
    "evaluate": "embedkit.eval",
    "export_index": "embedkit.export",
    "load": "embedkit.encoders",
    "open_index": "embedkit.jobs",
    "parity": "embedkit.encoders.doctor.parity",
    "read_corpus": "embedkit.corpus",
}

__all__ = [
    "Document",
    "EmbedkitError",
    "Encoder",
    "Fields",
    "Hits",
    "Index",
    "Ranges",
    "Report",
    "__version__",
    "build_index",
    "doctor",
    "embed",
    "evaluate",
    "export_index",
    "load",
    "open_index",
    "parity",
    "read_corpus",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'embedkit' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
