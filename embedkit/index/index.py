"""An open index: text, vectors or both in, Hits out.

A query's shortlist comes from the light codes (or, without a coarse level, from all rows), the fine rows give it its
scores, and ties are ordered as trec_eval does: the larger id first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedkit.encoder import Encoder
from embedkit.errors import ModelMismatch, UsageError
from embedkit.index.coarse import read_coarse, shortlist
from embedkit.index.documents import DocumentReader
from embedkit.index.fine import exact_shortlist, open_fine, score_shortlist
from embedkit.index.manifest import COARSE, DOCUMENTS, FINE, Manifest, check_files, check_sizes, read_manifest
from embedkit.storage import check_file
from embedkit.types import Document, Hits, Rows, Vectors
from embedkit.vectors import unit_rows


class Index:
    """Opened from a folder, read-only.

    encoder: called once, at the first query that is a text. query_options: further keywords of its `encode` for queries, such
    as a `prompt_name` for this kind of question.
    """

    def __init__(
        self,
        path: str | Path,
        encoder: Callable[[], Encoder] | None = None,
        query_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.manifest: Manifest = read_manifest(self.path)
        check_sizes(self.path, self.manifest)
        self._make_encoder, self._encoder = encoder, None  # type: Callable[[], Encoder] | None, Encoder | None
        self._fine = open_fine(self.path / FINE, len(self), self.dim)
        self._documents = DocumentReader(self.path / DOCUMENTS)
        self.query_options = dict(query_options or {})
        self._coarse: Any = None
        self._rows: Vectors | None = None  # all rows in float32, for exact search
        self._loading = threading.Lock()

    def __len__(self) -> int:
        return self.manifest.count

    @property
    def dim(self) -> int:
        return self.manifest.dim

    def search(self, queries: str | Sequence[str] | Vectors, k: int = 10, *, documents: bool = True) -> Hits:
        """The k best documents of each query.

        queries: one text, several texts, or vectors (dim,) or (n, dim) of the index's own space. documents=False leaves
        titles, texts and metadata where they are. Ties go to the larger id; with a coarse level, among its shortlist.
        Raises ModelMismatch when the encoder is not the one that made the rows, UsageError for a vector of another width
        or one that is not finite.
        """
        if k < 1:
            raise UsageError(f"k={k} came; expected at least 1.")
        vectors = self._vectors(queries)
        candidates, scores = self._shortlist(vectors, k)
        return self._hits(candidates, scores, k, documents)

    def get(self, ids: Sequence[str]) -> list[Document]:
        """The documents of these ids, in that order. Raises KeyError for an id that is not there."""
        found = self._documents.by_id(ids)
        return [found[identifier] for identifier in ids]

    def verify(self) -> None:
        """Reads every byte. Raises IntegrityError that names the first file that is missing, changed or foreign."""
        check_files(self.path, read_manifest(self.path))

    def bytes_on_disk(self) -> int:
        return sum(record["bytes"] for record in self.manifest.files.values())

    def bytes_in_ram(self) -> int:
        """What a search must hold: the codes, or for an exact search all rows as float32."""
        if self.manifest.coarse is None:
            return len(self) * self.dim * 4
        return int(self.manifest.files[COARSE]["bytes"])

    def info(self) -> Mapping[str, Any]:
        """The facts of the manifest, and sizes in bytes."""
        manifest = self.manifest
        return {
            "path": str(self.path),
            "documents": len(self),
            "dim": self.dim,
            "metric": manifest.metric,
            "unit_rows": manifest.unit_rows,
            "coarse": manifest.coarse,
            "fine": manifest.fine,
            "shortlist": manifest.shortlist,
            "texts": manifest.texts,
            "empty_texts": manifest.empty_texts,
            "model": manifest.source.model,
            "fingerprint": manifest.source.fingerprint,
            "bytes_in_ram": self.bytes_in_ram(),
            "bytes_on_disk": self.bytes_on_disk(),
            "created": manifest.created,
            "embedkit": manifest.embedkit,
        }

    def close(self) -> None:
        self._documents.close()

    def _vectors(self, queries: str | Sequence[str] | Vectors) -> Vectors:
        if isinstance(queries, np.ndarray):
            vectors = np.atleast_2d(queries).astype(np.float32)
        else:
            texts = [queries] if isinstance(queries, str) else list(queries)
            vectors = self.encoder().encode(texts, kind="query", **self.query_options)
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise UsageError(f"Queries of shape {vectors.shape} came; this index holds rows of width {self.dim}.")
        if not np.isfinite(vectors).all():
            raise UsageError("A query vector holds NaN or infinity; expected finite numbers.")
        return unit_rows(vectors) if self.manifest.metric == "cosine" else vectors

    def encoder(self) -> Encoder:
        """The model that made the rows, opened at the first call.

        Raises UsageError where the rows name no model, ModelMismatch where the encoder that opens is another.
        """
        source = self.manifest.source
        with self._loading:
            if self._encoder is None:
                if source.fingerprint is None or self._make_encoder is None:
                    raise UsageError(f"{self.path} was built from vectors that name no model; search it with vectors.")
                encoder = self._make_encoder()
                if encoder.fingerprint != source.fingerprint:
                    named = encoder.settings.get("model", "another model")
                    other = f"{named} with other settings" if named == source.model else named
                    raise ModelMismatch(
                        f"{self.path} was built by {source.fingerprint[:12]} ({source.model}), the query comes from "
                        f"{encoder.fingerprint[:12]} ({other}); search with --model {source.model} and the settings that "
                        f"built it, or build the index again."
                    )
                self._encoder = encoder
        return self._encoder

    def _shortlist(self, vectors: Vectors, k: int) -> tuple[Rows, Vectors]:
        if self.manifest.coarse is None:
            return exact_shortlist(vectors, self._all_rows(), k)
        candidates = shortlist(self._codes(), vectors, max(k, self.manifest.shortlist))
        return candidates, score_shortlist(vectors, self._fine, candidates)

    def _all_rows(self) -> Vectors:
        with self._loading:
            if self._rows is None:
                self._rows = np.ascontiguousarray(self._fine, dtype=np.float32)
        return self._rows

    def _codes(self) -> Any:
        with self._loading:
            if self._coarse is None:
                check_file(self.path / COARSE, self.manifest.files[COARSE])  # before faiss, which trusts what it reads
                self._coarse = read_coarse(self.path / COARSE, len(self))
        return self._coarse

    def _hits(self, candidates: Rows, scores: Vectors, k: int, documents: bool) -> Hits:
        """Cuts each shortlist to k, in the order of trec_eval. candidates and scores: (q, m)."""
        kept = [_at_or_above_kth(row, score, k) for row, score in zip(candidates, scores, strict=True)]
        ids = self._documents.ids(int(row) for rows, _ in kept for row in rows)
        ordered = [_trec_order(rows, score, ids)[:k] for rows, score in kept]
        padded = np.full((len(ordered), k), -np.inf, dtype=np.float32)
        for position, ranked in enumerate(ordered):
            padded[position, : len(ranked)] = [score for _, score in ranked]
        texts = self._documents.documents(row for ranked in ordered for row, _ in ranked) if documents else {}
        return Hits(
            ids=[[ids[row] for row, _ in ranked] for ranked in ordered],
            scores=padded,
            documents=[[texts[row] for row, _ in ranked] for ranked in ordered] if documents else None,
        )


def _at_or_above_kth(rows: Rows, scores: Vectors, k: int) -> tuple[Rows, Vectors]:
    real = rows >= 0
    rows, scores = rows[real], scores[real]
    if len(rows) > k:
        reached = scores >= np.partition(scores, len(scores) - k)[len(scores) - k]
        rows, scores = rows[reached], scores[reached]
    return rows, scores


def _trec_order(rows: Iterable[Any], scores: Iterable[Any], ids: Mapping[int, str]) -> list[tuple[int, float]]:
    """(row, score), best score first; equal scores by id, the larger first."""
    pairs = [(int(row), float(score)) for row, score in zip(rows, scores, strict=True)]
    return sorted(pairs, key=lambda pair: (pair[1], ids[pair[0]]), reverse=True)
