"""Whole jobs, model and index put together: embed texts, build an index from a corpus, add to it, open it for questions."""

from embedkit.jobs.embedding import embed, embed_corpus
from embedkit.jobs.index_recipe import IndexRecipe
from embedkit.jobs.indexing import (
    add_to_index,
    build_index,
    check_begun,
    index_vectors,
    metric_of,
    open_index,
    source_of,
)
from embedkit.jobs.row_source import RowSource

__all__ = [
    "IndexRecipe",
    "RowSource",
    "add_to_index",
    "build_index",
    "check_begun",
    "embed",
    "embed_corpus",
    "index_vectors",
    "metric_of",
    "open_index",
    "source_of",
]
