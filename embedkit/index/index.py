"""An open index: text, vectors, both, or a stored document in, Hits out.

A query's shortlist comes from the light codes of each segment (or, without these, from all rows), the fine rows give it its
scores, and ties are ordered as trec_eval does: the larger id first. An index is one version, whatever is written meanwhile.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np

from embedkit.corpus import Fields, read_corpus
from embedkit.encoder import Encoder, OnLong, SparseEncoder, contents
from embedkit.errors import ModelMismatch, Stopped, UsageError
from embedkit.index.built import build_facts
from embedkit.index.calibration import Settings
from embedkit.index.embedding import embedded
from embedkit.index.faiss_import import faiss_threads
from embedkit.index.fusion import Fusion
from embedkit.index.hits import as_hits
from embedkit.index.ids import several
from embedkit.index.lifetimes import forkable_lock
from embedkit.index.manifest import DOCUMENTS, FINE, POSTED, WEIGHTS, Manifest, Method, check_files
from embedkit.index.modes import Candidates, Mode, Ready, check_mode, found, hybrid_candidates
from embedkit.index.opened import Opened
from embedkit.index.queries import compared, narrowed
from embedkit.index.ranking import Group
from embedkit.index.snapshot import Asked, Snapshot
from embedkit.index.sparse import Weights
from embedkit.index.sparse_input import asked_weights, encoded_entries, file_entries, query_weights, texts_of
from embedkit.index.update import Change, add_rows, changing
from embedkit.index.versions import remove_old
from embedkit.index.where import all_fields
from embedkit.index.writer import Entries
from embedkit.types import Document, Hits, Vectors

ON_DISK = (DOCUMENTS, POSTED, WEIGHTS)
Filter = Mapping[str, Any]
SparseQueries = str | Sequence[str | Weights]


class Index:
    """Opened from a folder, which may be read-only. `search` may be called from several threads.

    encoder: called once, at the first query that is a text; sparse_encoder: likewise, for a sparse leg by a model. query_options:
    further keywords of the encoder's `encode` for queries, such as a `prompt_name` for this kind of question. threads: of one
    search; all cores when left out. check: read every byte of the index first, and raise IntegrityError where one has changed;
    codes, ids and postings are always checked before they are used, rows and texts only so.
    """

    def __init__(
        self,
        path: str | Path,
        encoder: Callable[[], Encoder] | None = None,
        query_options: Mapping[str, Any] | None = None,
        *,
        threads: int | None = None,
        check: bool = False,
        sparse_encoder: Callable[[], SparseEncoder] | None = None,
    ) -> None:
        self.path, self.threads = Path(path), threads
        self._make_encoder, self._encoder = encoder, None  # type: Callable[[], Encoder] | None, Encoder | None
        self._make_sparse, self._sparse = sparse_encoder, None  # type: Callable[[], SparseEncoder] | None, SparseEncoder | None
        self.query_options = dict(query_options or {})
        self._loading = forkable_lock()
        self._opened = Opened(self.path, check=check)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, in this process or in another one, is the newest version at the same path, opened with the same settings: what is
        open does not travel."""
        if self._opened.closed:
            raise UsageError(f"{self.path} is closed, and cannot be copied or sent to a process; open it again.")
        again = functools.partial(Index, threads=self.threads, sparse_encoder=self._make_sparse)
        return again, (self.path.absolute(), self._make_encoder, self.query_options)

    @property
    def manifest(self) -> Manifest:
        """Of the version that is open."""
        return self._opened.manifest

    @property
    def snapshot(self) -> Snapshot:
        """The version that is open, for what measures it, and neither closes nor changes the index meanwhile."""
        return self._opened.snapshot

    def close(self) -> None:
        """Lets its version go, with the last search that is running; a writer may remove it then. Nothing can be asked afterwards."""
        self._opened.close()

    def __enter__(self) -> Index:
        self._opened.snapshot  # noqa: B018  it is open
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.manifest.documents

    @property
    def dim(self) -> int:
        return self.manifest.dim

    # --- search -------------------------------------------------------------------------------------------------------

    def search(
        self,
        queries: Any = None,
        k: int = 10,
        *,
        like: str | Sequence[str] | None = None,
        where: Filter | None = None,
        group: Group | None = "best",
        min_score: float | None = None,
        documents: bool = True,
        explain: bool = False,
        shortlist: int | None = None,
        probes: int | None = None,
        mode: Mode = "dense",
        sparse_queries: SparseQueries | None = None,
        fusion: Method | None = None,
        weight: float | None = None,
    ) -> Hits:
        """The k best documents of each query: a text, an image, several of them, or vectors. k beyond the rows of the index means
        all of them.

        queries: one or several of what the index's model reads (texts, images as pathlib.Path or PIL, dicts of both), or vectors
        (dim,) or (n, dim) of its space. like: instead, ids of stored documents; each is left out of its own hits. where: only
        documents whose metadata pass ({"year": {"gte": 2020}}, see `where.py`). group: "best" ranks documents by their best
        passage, "mean" by the mean over all of theirs (with a coarse level, among the documents that the best passages belong
        to), None returns passages ("doc#3"). min_score: leaves out what scores less. documents=False leaves titles, texts and
        metadata where they are. explain: says of each hit its score and rank by every leg, and which terms carried it.
        shortlist, probes: candidates verified and inverted lists visited, instead of what the index was held to when it was built.

        mode: "dense", "sparse" (needs a sparse leg) or "hybrid", which takes the best of both legs, gives each its exact score by
        either, and fuses these; both rank documents. sparse_queries: what the sparse leg is asked instead of the texts of
        `queries`: other texts, or {term: weight}. fusion: "minmax" or "rrf", weight: the dense leg's share, instead of those that
        are stored (minmax and 0.5, until `set_fusion`).

        Ties go to the larger id; with a coarse level, among its shortlist. Raises ModelMismatch when the encoder is not the
        one that made the rows, UsageError for a vector of another width or one that is not finite, for a filter that cannot be
        read, or an id that is not there.
        """
        for name, value in (("k", k), ("shortlist", shortlist), ("probes", probes)):
            if value is not None and value < 1:
                raise UsageError(f"{name}={value} came; expected at least 1.")
        if group not in ("best", "mean", None):
            raise UsageError(f"group={group!r} came; expected 'best', 'mean' or None.")
        check_mode(mode, group, like)
        if mode == "dense" and (queries is None) == (like is None):
            raise UsageError("Give either queries or like=, the ids of stored documents.")
        with self._opened.taken() as snapshot:  # another thread may change the index meanwhile
            k = min(k, snapshot.row_count)
            asked = Asked(None if where is None else snapshot.where(where), group, shortlist, probes)
            ready = self._ready(snapshot, mode, queries, sparse_queries, like)
            # for one query, several threads would wait for each other
            with faiss_threads(self.threads if ready.queries > 1 else 1):
                fused_by = self._fusion(snapshot.manifest, fusion, weight) if mode == "hybrid" else Fusion()
                ranked, explained = found(snapshot, ready, k, asked, fused_by)
                if min_score is not None:
                    ranked = ranked.where(ranked.scores >= min_score)
                explanations = explained(ranked) if explain else None
            return as_hits(snapshot, ranked, k, group, documents, explanations, passages=mode != "sparse")

    def _ready(
        self,
        snapshot: Snapshot,
        mode: Mode,
        queries: Any,
        sparse_queries: SparseQueries | None,
        like: str | Sequence[str] | None,
    ) -> Ready:
        weights = None
        if mode != "dense":
            snapshot.sparse()  # there is one
            asked = sparse_queries
            if asked is None:
                if queries is None or isinstance(queries, np.ndarray):
                    raise UsageError(f"mode={mode!r} needs texts, or sparse_queries= beside vectors.")
                asked = texts_of(contents(queries))
            given = [asked] if isinstance(asked, (str, Mapping)) else list(asked)
            weights = query_weights(given, lambda texts: self._asked_weights(snapshot, texts))
        if mode == "sparse":
            return Ready(None, weights, [])
        own = [] if like is None else [like] if isinstance(like, str) else list(like)
        if queries is None and mode == "hybrid":
            raise UsageError("mode='hybrid' needs queries for the dense leg: texts or vectors.")
        vectors = snapshot.stored_vectors(own) if queries is None else self._vectors(queries)
        if weights is not None and len(weights) != len(vectors):
            raise UsageError(f"{len(weights)} sparse queries came with {len(vectors)} queries; give one for each.")
        return Ready(compared(vectors, self.manifest.metric), weights, own)

    def _fusion(self, manifest: Manifest, method: Method | None, weight: float | None) -> Fusion:
        stored = Fusion() if manifest.sparse is None else Fusion(manifest.sparse.fusion, manifest.sparse.weight)
        chosen = Fusion(stored.method if method is None else method, stored.weight if weight is None else weight)
        chosen.check()
        return chosen

    def _asked_weights(self, snapshot: Snapshot, texts: Sequence[str]) -> Sequence[Weights]:
        sparse = self.manifest.sparse
        if sparse is not None and sparse.bm25 is not None:
            return [snapshot.sparse().asked(text) for text in texts]
        return asked_weights(self.sparse_encoder(), texts)

    def candidates(
        self, queries: Any, k: int = 10, *, sparse_queries: SparseQueries | None = None
    ) -> list[tuple[list[str], Candidates]]:
        """What a hybrid search for k chooses from: of each query the ids, and their scores by both legs."""
        with self._opened.taken() as snapshot:
            ready = self._ready(snapshot, "hybrid", queries, sparse_queries, None)
            assert ready.vectors is not None and ready.weights is not None
            found = hybrid_candidates(snapshot, ready.vectors, ready.weights, min(k, snapshot.row_count), Asked())
            return [(snapshot.document_ids(some.keys), some) for some in found]

    def get(self, ids: Sequence[str] | str) -> list[Document]:
        """The documents of these ids, in that order. Raises KeyError for an id that is not there."""
        ids = several(ids)
        with self._opened.taken() as snapshot:
            try:
                keys = snapshot.keys(ids)
            except UsageError as error:
                raise KeyError(str(error)) from None
            return snapshot.documents(np.array([keys[identifier] for identifier in ids], dtype=np.int64))

    # --- facts --------------------------------------------------------------------------------------------------------

    def verify(self) -> None:
        """Reads every byte. Raises IntegrityError that names the first file, and its bytes, that are missing or changed, or a
        file that does not belong there."""
        with self._opened.taken() as snapshot:
            check_files(self.path, snapshot.manifest)

    def bytes_on_disk(self) -> int:
        return sum(record["bytes"] for record in self.manifest.named_files().values())

    def bytes_in_ram(self) -> int:
        """What a search must hold, mapped or not: codes, ids, terms, and which rows are whose; of a segment without codes, its rows."""
        return sum(
            record["bytes"]
            for segment in self.manifest.segments
            for part, record in segment.files.items()
            if part not in (ON_DISK if segment.coarse is None else (*ON_DISK, FINE))
        )

    def info(self) -> Mapping[str, Any]:
        """The facts of the manifest, and sizes in bytes."""
        with self._opened.taken() as snapshot:
            return self._facts(snapshot)

    def _facts(self, snapshot: Snapshot) -> Mapping[str, Any]:
        manifest = snapshot.manifest
        return {
            "path": str(self.path),
            "version": manifest.number,
            "documents": len(self),
            "rows": sum(segment.rows for segment in manifest.segments),
            "deleted": sum(segment.deleted for segment in manifest.segments),
            "dim": manifest.dim,
            "metric": manifest.metric,
            "unit_rows": manifest.unit_rows,
            "coarse": manifest.coarse,
            "fine": manifest.fine,
            "segments": [
                {
                    "number": segment.number,
                    "documents": segment.documents - segment.deleted,
                    "coarse": segment.coarse,
                    "probes": segment.probes,
                    "shortlist": segment.shortlist,
                    "recall": segment.recall,
                }
                for segment in manifest.segments
            ],
            "sparse": None if manifest.sparse is None else asdict(manifest.sparse),
            "recipe": None if manifest.recipe is None else asdict(manifest.recipe),
            "texts": manifest.texts,
            "empty_texts": sum(segment.empty_texts for segment in manifest.segments),
            "fields": all_fields(segment.documents for segment in snapshot.segments),
            "model": manifest.source.model,
            "fingerprint": manifest.source.fingerprint,
            "bytes_in_ram": self.bytes_in_ram(),
            "bytes_on_disk": self.bytes_on_disk(),
            "builds": build_facts(self.path, manifest),
            "created": manifest.created,
            "embedkit": manifest.embedkit,
        }

    # --- queries ------------------------------------------------------------------------------------------------------

    def vectors(self, queries: Any) -> Vectors:
        """(n, dim) of texts, images or vectors, as they are compared. Raises what `search` raises."""
        return compared(self._vectors(queries), self.manifest.metric)

    def _vectors(self, queries: Any) -> Vectors:
        if isinstance(queries, np.ndarray):
            vectors = queries if queries.ndim > 1 else queries[None]
        else:
            vectors = self.encoder().encode(contents(queries), kind="query", **self.query_options)
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise UsageError(f"Queries of shape {vectors.shape} came; this index holds rows of width {self.dim}.")
        return vectors if vectors.dtype == np.float32 else narrowed(vectors, self.manifest.metric)

    def encoder(self) -> Encoder:
        """The model that made the rows, opened at the first call.

        Raises UsageError where the rows name no model, ModelMismatch where the encoder that opens is another.
        """
        source = self.manifest.source
        with self._loading:
            if self._encoder is None or self._encoder.fingerprint != source.fingerprint:
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

    def sparse_encoder(self) -> SparseEncoder:
        """The model that made the weights of the sparse leg, opened at the first call; what is raised is as for `encoder`."""
        sparse = self.manifest.sparse
        with self._loading:
            if self._sparse is None or sparse is None or self._sparse.fingerprint != sparse.fingerprint:
                if sparse is None or sparse.fingerprint is None or self._make_sparse is None:
                    raise UsageError(
                        f"{self.path} has no sparse leg by a model that is known here; give weights (sparse_queries)."
                    )
                encoder = self._make_sparse()
                if encoder.fingerprint != sparse.fingerprint:
                    raise ModelMismatch(
                        f"The sparse leg of {self.path} was built by {sparse.fingerprint[:12]} ({sparse.model}), the query comes "
                        f"from {encoder.fingerprint[:12]}; search with --sparse-model {sparse.model}, or build it again."
                    )
                self._sparse = encoder
        return self._sparse

    # --- changes ------------------------------------------------------------------------------------------------------

    def add(
        self,
        source: Any,
        *,
        ids: Sequence[str] | str | None = None,
        fields: Fields = Fields(),  # noqa: B008
        ram: int | None = None,
        sparse: str | Path | None = None,
    ) -> int:
        """Adds documents, or replaces those of the same id, in one commit; how many came. This index is the new version then.

        source: a corpus (see `read_corpus`), which the index's model embeds; or vectors (n, dim) with their ids (a str is one).
        `jobs.add_to_index` does the same for more documents than one cares to embed twice after a crash. sparse: a file with their
        weights, where the sparse leg was built from one. Raises what `build_index` raises, ModelMismatch where another model has
        built the index again, and Stopped while somebody else writes to it; the index is as it was then, unless a disk fails after
        the commit.
        """
        # before anything is written, and under the lock still so: another may build the index again meanwhile
        known = self._opened.snapshot.manifest
        encoder = None if isinstance(source, np.ndarray) else self.encoder()
        entries = self.sparse_entries(sparse)
        with self._changed(ram, known) as change:
            change.entries = entries or change.entries
            if encoder is None:
                return add_rows(change, source, ids)
            on_long = cast(OnLong, change.old.source.on_long)
            with embedded(change, read_corpus(source, fields), encoder, on_long) as (rows, content):
                change.add(rows, content)
                return content.documents

    def sparse_entries(self, file: str | Path | None) -> Entries | None:
        """What makes the sparse leg of documents that are added; None where texts do, or there is none."""
        sparse = self.manifest.sparse
        if sparse is None or sparse.bm25 is not None:
            if file is not None:
                raise UsageError(f"{self.path} has no sparse leg from a file; leave the file of weights out.")
            return None
        if sparse.fingerprint is not None:
            return encoded_entries(self.sparse_encoder())
        if file is None:
            raise UsageError(
                f"The sparse leg of {self.path} was built from a file; give the weights of these documents, too."
            )
        return file_entries(Path(file))

    def set_fusion(self, method: Method, weight: float) -> None:
        """Stores how hybrid search fuses, as a new version. Raises UsageError where there is no sparse leg."""
        Fusion(method, weight).check()
        with self._opened.taken() as snapshot:
            snapshot.sparse()
        with self._changed(None) as change:
            change.set_fusion(method, weight)

    def set_settings(self, settings: Mapping[int, Settings]) -> None:
        """Stores how segments, by number, are searched, as a new version. Raises Stopped where they have changed meanwhile."""
        measured = {record.number: record.files for record in self.manifest.segments}
        with self._changed(None) as change:
            there = {record.number: record.files for record in change.old.segments}
            if any(there.get(number) != measured.get(number) for number in settings):
                raise Stopped(f"{self.path} has been changed since its settings were measured; run this again.")
            change.set_settings(settings)

    def delete(self, ids: Sequence[str] | str | None = None, *, where: Filter | None = None) -> int:
        """Deletes documents by id or by a filter, with all their passages, in one commit; how many were there."""
        if (ids is None) == (where is None):
            raise UsageError("Give either ids or where=, a filter.")
        with self._changed(None) as change:
            if ids is not None:
                return change.delete(several(ids))
            assert where is not None
            return change.delete_where(where)

    def compact(self, *, ram: int | None = None) -> None:
        """Makes one segment of all, without what was deleted."""
        with self._changed(ram) as change:
            if len(change.segments) > 1 or any(segment.alive is not None for segment in change.segments):
                change.merge(len(change.segments))

    @contextmanager
    def _changed(self, ram: int | None, known: Manifest | None = None) -> Iterator[Change]:
        self._opened.snapshot  # noqa: B018  it is not closed
        with changing(self.path, ram, known) as change:
            yield change
            if not change.changed:
                return
            manifest = change.commit()
            self._opened.follow(manifest)  # the old one goes with the last search that uses it
            remove_old(self.path, manifest)  # which it kept from being removed
