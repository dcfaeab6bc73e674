"""What becomes of documents in the sparse leg: terms of their texts, weights of a model, or weights from a file."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from embedkit.corpus.formats import jsonl_rows, open_bytes
from embedkit.encoder import SparseEncoder
from embedkit.errors import DataError, ModelError, UsageError
from embedkit.index.documents import DocumentReader
from embedkit.index.manifest import Bm25
from embedkit.index.postings import Block
from embedkit.index.sparse import Weights
from embedkit.index.tokens import Analyzer, check
from embedkit.index.writer import Entries
from embedkit.types import Content, Kind

AT_ONCE = 4096  # texts, or lines of a file
ENCODED = 512  # texts that a model is given at once
BM25 = "bm25"
HEAVIEST = float(np.finfo(np.float32).max)


def bm25_settings(asked: str) -> Bm25:
    """Of "bm25" or "bm25:k1=1.2,b=0.75,stem=german,stop=none". Raises UsageError for what cannot be."""
    found: dict[str, Any] = {}
    for pair in filter(None, asked.removeprefix(BM25).removeprefix(":").split(",")):
        name, given, value = pair.partition("=")
        if not given or name not in Bm25.__dataclass_fields__:
            raise UsageError(f"{asked!r} came; expected for example bm25:k1=1.2,b=0.75,stem=german,stop=none.")
        try:
            found[name] = float(value) if name in ("k1", "b") else value
        except ValueError:
            raise UsageError(f"{name}={value} came in {asked!r}; expected a number.") from None
    settings = Bm25(**found)
    check(settings)
    return settings


def text_entries(settings: Bm25) -> Entries:
    """The terms of the texts, as often as they stand there."""

    def entries(reader: DocumentReader) -> Iterator[Block]:
        analyzer, documents, base = Analyzer(settings), reader.stream(), 0
        while block := list(itertools.islice(documents, AT_ONCE)):
            terms, numbers, places = analyzer.numbered([document.full_text for document in block])
            pairs, counts = np.unique(places * max(len(terms), 1) + numbers, return_counts=True)
            places, numbers = np.divmod(pairs, max(len(terms), 1))
            yield Block(terms, numbers, places + base, counts)
            base += len(block)

    return entries


def encoded_entries(encoder: SparseEncoder) -> Entries:
    """The weights that a model gives the texts."""

    def entries(reader: DocumentReader) -> Iterator[Block]:
        documents, base = reader.stream(), 0
        while block := list(itertools.islice(documents, ENCODED)):
            rows = encoded(encoder, [document.full_text for document in block], "document")
            used, numbers = np.unique(rows.indices, return_inverse=True)
            places = np.repeat(np.arange(len(block)), np.diff(rows.indptr))
            yield Block([encoder.vocabulary[column] for column in used], numbers, places + base, rows.data)
            base += len(block)

    return entries


def encoded(encoder: SparseEncoder, texts: Sequence[str], kind: Kind) -> Any:
    """A scipy csr_matrix (texts, vocabulary) of weights over 0. Raises ModelError for weights that are none."""
    rows = encoder.encode(texts, kind=kind).tocsr()
    if rows.shape != (len(texts), len(encoder.vocabulary)):
        raise ModelError(f"The sparse model gave {rows.shape} weights for {len(texts)} texts.")
    rows.sum_duplicates()
    rows.eliminate_zeros()
    if len(rows.data) and not (np.isfinite(rows.data).all() and rows.data.min() > 0):
        raise ModelError(
            "The sparse model gave weights that are negative or no number; expected weights of at least 0."
        )
    return rows


def asked_weights(encoder: SparseEncoder, texts: Sequence[str]) -> list[dict[str, float]]:
    """The weights that a model gives the terms of queries."""
    rows = encoded(encoder, texts, "query")
    return [
        {encoder.vocabulary[column]: float(weight) for column, weight in zip(row.indices, row.data, strict=True)}
        for row in rows
    ]


def file_entries(path: Path) -> Entries:
    """The weights of a file, which may have more documents than a segment, in any order. They are held in memory."""

    def entries(reader: DocumentReader) -> Iterator[Block]:
        terms: dict[str, int] = {}
        numbers, documents, weights = list[int](), list[int](), list[float]()
        seen = np.zeros(reader.count, dtype=bool)
        lines = read_weights(path)
        while block := list(itertools.islice(lines, AT_ONCE)):
            known = reader.numbers([identifier for _, identifier, _ in block])
            for where, identifier, given in block:
                if (number := known.get(identifier)) is None:
                    continue
                if seen[number]:
                    raise DataError(
                        f"{where}: the id {identifier!r} came before; give each document one row of weights."
                    )
                seen[number] = True
                numbers += [terms.setdefault(term, len(terms)) for term in given]
                documents += [number] * len(given)
                weights += given.values()
        if not seen.all():
            (missing,) = reader.ids([int(np.argmin(seen))]).values()
            raise DataError(f"{path} has no weights of the document {missing!r}; give every document a row.")
        order = np.argsort(documents, kind="stable")
        yield Block(list(terms), *(np.array(part)[order] for part in (numbers, documents, weights)))

    return entries


def read_weights(path: Path) -> Iterator[tuple[str, str, dict[str, float]]]:
    """(place, id, weights over 0) of a jsonl file with rows {"id": ..., "weights": {term: weight}}.

    Raises DataError for a row that is none, UsageError where there is no file."""
    if not path.is_file():
        raise UsageError(f"{path} is not there; expected bm25, a sparse model, or a jsonl file of ids and weights.")
    with open_bytes(path) as stream:
        for where, row in jsonl_rows(stream, path.name):
            identifier, weights = row.get("id", row.get("_id")), row.get("weights")
            if not isinstance(identifier, (str, int)) or not isinstance(weights, dict):
                raise DataError(f'{where}: expected {{"id": ..., "weights": {{term: weight, ...}}}}.')
            yield where, str(identifier), checked_weights(weights, where)


def checked_weights(weights: Mapping[str, Any], where: str) -> dict[str, float]:
    """Those over 0. Raises DataError for one that is no number or under 0."""
    for term, weight in weights.items():
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number or not 0 <= weight <= HEAVIEST or math.isnan(weight):
            raise DataError(f"{where}: the weight of {term!r} is {weight!r}; expected a number of at least 0.")
    return {term: float(weight) for term, weight in weights.items() if np.float32(weight) > 0}


def texts_of(queries: Iterable[Content]) -> list[str]:
    """What of queries is made of terms. Raises UsageError for an image without a text."""
    texts = [query if isinstance(query, str) else query.text for query in queries]
    if None in texts:
        raise UsageError("An image has no terms; give a text beside it, sparse_queries=, or mode='dense'.")
    return cast(list[str], texts)


def query_weights(queries: Iterable[Any], asked: Callable[[list[str]], Sequence[Weights]]) -> list[Weights]:
    """Weights of queries that are texts, which `asked` turns to weights all at once, or are weights already."""
    given = list(queries)
    texts = [query for query in given if isinstance(query, str)]
    found = iter(asked(texts) if texts else ())
    return [next(found) if isinstance(query, str) else checked_weights(query, "A query") for query in given]
