"""Indexes from corpora and vectors: built, added to, opened for questions in words.

A corpus is embedded by the engine's job into a file of the index folder, so that a build or an addition that was killed goes on where
it ended; the documents are recorded on the way. Then the segment is written and a manifest makes it count.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from embedkit.corpus import Fields, read_corpus
from embedkit.encoder import Encoder, OnLong, SparseEncoder, WindowEncoder
from embedkit.encoders import load
from embedkit.engine import embed_to_file, holds_vectors
from embedkit.engine.outputs import Names
from embedkit.engine.vector_file import remark_vectors, vector_column
from embedkit.errors import DataError, ModelMismatch, Stopped, UsageError
from embedkit.index.documents import DocumentReader
from embedkit.index.index import Index
from embedkit.index.layout import Layout
from embedkit.index.manifest import (
    DOCUMENTS,
    Manifest,
    Metric,
    Recipe,
    Source,
    Sparse,
    is_leftover,
    manifest_numbers,
    read_manifest,
)
from embedkit.index.sparse_input import BM25, bm25_settings, encoded_entries, file_entries, text_entries
from embedkit.index.update import Change, changing
from embedkit.index.versions import remove_old, writing
from embedkit.index.writer import Content, Entries
from embedkit.jobs.openers import encoder_opener, open_sparse, sparse_opener
from embedkit.jobs.row_source import RowSource, add_vectors, rows_a_document
from embedkit.storage import check_is_text, make_folder, remove, remove_folder
from embedkit.types import Array, Document

RECORDED = 256  # documents written at once on their way to the model
logger = logging.getLogger(__name__)


def build_index(
    source: Any,
    path: str | Path,
    *,
    model: str | Path | Encoder | None = None,
    ids: Sequence[str] | str | None = None,
    documents: Any = None,
    metric: Metric | None = None,
    coarse: str = "auto",
    fine: str = "float16",
    bytes_per_vector: int | None = None,
    recall: float | None = None,
    fields: Fields = Fields(),  # noqa: B008
    limit: int | None = None,
    on_long: OnLong = "truncate",
    resume: bool = False,
    ram: int | None = None,
    progress: bool = False,
    sparse: str | Path | SparseEncoder | None = None,
    recipe: Recipe | None = None,
    vectors: str | None = None,
) -> Index:
    """Builds an index folder and opens it: whole, or begun and to be gone on with `resume`.

    source: a corpus (a path, rows, a DataFrame, a Dataset: see `read_corpus`), which `model` embeds; or vectors, an array
    (n, dim) with `ids`, a NAME.npy or NAME.parquet that `embedkit embed` wrote, or a folder of such files, of autofaiss's parts or of
    clip-retrieval's, with `documents`, a corpus in the same order, for texts (by default the metadata that lies in the folder).
    metric: "cosine" or "dot", by default the model's own. coarse: "auto" (exact up to 20,000 rows), "none" (exact) or a
    faiss factory string; for "auto", bytes_per_vector is what a row may take in RAM. recall: the share of the 10 nearest
    neighbours that the shortlist is to keep, measured on rows held out; when left out, 0.97 and a margin for questions that look
    different from documents. fine: "float16", "float32" or "int8" rows on disk.
    on_long: "chunk" gives texts beyond the model's limit several passages. ram: bytes that training may take.
    sparse: a leg of terms beside the vectors: "bm25", or with settings "bm25:k1=1.2,b=0.75,stem=german,stop=none"; a sparse model;
    or a jsonl file with a row {"id": ..., "weights": {term: weight}} for each document. recipe: where the settings came from, for the
    manifest to keep; it sets none of them. vectors: the column of a parquet file, or of a folder of such, that holds the vectors of
    its documents, made by another program; they are taken as they are.
    Raises UsageError for a path that is taken or a layout that cannot be, DataError for rows that cannot be used.
    """
    target = Path(path).absolute()
    if resume and manifest_numbers(target):
        _clear_away(target)
        return open_index(target)
    check_begun(target, resume=resume)
    leg = sparse_leg(sparse)
    by_vectors = _are_vectors(source, vectors)
    if by_vectors and model is not None:
        raise UsageError("Vectors and a model came; vectors are taken as they are: leave the model out.")
    if not by_vectors and (ids is not None or documents is not None):
        raise UsageError("ids and documents belong to vectors; a corpus brings its own.")
    if limit is not None and limit < 1:
        raise UsageError(f"limit={limit} was asked for; expected at least 1.")
    if by_vectors:
        rows = RowSource.of(source, ids, limit, fields, vectors)
        layout = Layout(metric or metric_of(rows.similarity), coarse, fine, bytes_per_vector, recall, recipe)
        documents = rows.documents if documents is None else documents
        return index_vectors(rows, target, layout, documents, fields, whole=limit is None, ram=ram, leg=leg)
    encoder = model if model is not None and not isinstance(model, (str, Path)) else load(model)
    layout = Layout(metric or metric_of(encoder.similarity), coarse, fine, bytes_per_vector, recall, recipe)
    remark_vectors(source)
    corpus = read_corpus(source, fields, limit=limit)
    with _first_change(target, encoder.dim, layout, source_of(encoder, on_long), True, ram, leg) as change:
        _add_corpus(change, corpus, encoder, "build.npy", resume, progress)
    return open_index(target, encoder, sparse_model=None if leg is None else leg.encoder)


def _are_vectors(source: Any, column: str | None) -> bool:
    """Whether a source is taken as vectors. Raises UsageError for a column of what is no path."""
    if not isinstance(source, (str, Path)):
        if column is not None:
            raise UsageError("vectors= names a column of a parquet file; give its path, or the array itself.")
        return isinstance(source, np.ndarray)
    return column is not None or holds_vectors(Path(source))


class SparseLeg(NamedTuple):
    """What a builder asks for beside the vectors."""

    record: Sparse
    entries: Entries
    encoder: SparseEncoder | None = None


def sparse_leg(asked: str | Path | SparseEncoder | None) -> SparseLeg | None:
    """What `sparse` of `build_index` means. Raises UsageError or ModelError for what it cannot be."""
    if asked is None or asked == "none":
        return None
    if isinstance(asked, str) and asked.partition(":")[0] == BM25:
        settings = bm25_settings(asked)
        return SparseLeg(Sparse(bm25=settings), text_entries(settings))
    if isinstance(asked, (str, Path)) and (Path(asked).is_file() or str(asked).endswith((".jsonl", ".jsonl.gz"))):
        return SparseLeg(Sparse(), file_entries(Path(asked)))
    encoder = open_sparse(asked)
    record = Sparse(model=encoder.settings.get("model"), fingerprint=encoder.fingerprint)
    return SparseLeg(record, encoded_entries(encoder), encoder)


def index_vectors(
    rows: RowSource,
    path: Path,
    layout: Layout,
    documents: Any = None,
    fields: Fields = Fields(),  # noqa: B008
    *,
    whole: bool = True,
    ram: int | None = None,
    leg: SparseLeg | None = None,
) -> Index:
    """Builds an index from vectors that name their model, or none. documents: a corpus in the same order; whole: which ends
    with them."""
    if leg is not None and documents is None and not (leg.record.bm25 is None and leg.encoder is None):
        raise UsageError(
            "A sparse leg is made of texts; give the vectors' documents (--documents), or a file of weights."
        )
    with _first_change(path, rows.dim, layout, rows.source, documents is not None, ram, leg) as change:
        add_vectors(change, rows, documents, fields, whole=whole)
    return open_index(path, sparse_model=None if leg is None else leg.encoder)


@contextmanager
def _first_change(
    folder: Path,
    dim: int,
    layout: Layout,
    source: Source,
    texts: bool,
    ram: int | None,
    leg: SparseLeg | None = None,
) -> Iterator[Change]:
    """A block that fills the first version of an index; after an error in it, only what can be gone on with stays."""
    layout.check(dim)
    make_folder(folder)
    with writing(folder):
        try:
            change = Change.first(folder, dim, layout, source, texts, ram, None if leg is None else leg.record)
            change.entries = None if leg is None else leg.entries
            yield change
            change.commit()
            change.close()
        except BaseException:
            if not any(folder.glob("build.*")) and not manifest_numbers(folder):
                remove_folder(folder)
            raise


def _clear_away(folder: Path) -> None:
    """What a build left that was killed after its commit."""
    if not any(folder.glob("build.*")):
        return
    with suppress(Stopped, UsageError), writing(folder):  # where it cannot, the next commit does
        remove_old(folder, read_manifest(folder))


def check_begun(folder: Path, *, resume: bool) -> None:
    """Raises UsageError where something stands at the path that a build may not go on with, or the path is no text."""
    check_is_text(folder)
    if not folder.exists():
        return
    begun = folder.is_dir() and not manifest_numbers(folder) and all(map(is_leftover, folder.iterdir()))
    if begun and resume:
        return
    if begun and any(folder.iterdir()):
        raise UsageError(f"{folder} was begun and is not finished; go on with --resume (resume=True), or remove it.")
    raise UsageError(f"{folder} is there already; choose another name, or remove it first.")


class Added(NamedTuple):
    """What became of the documents that came."""

    documents: int  # that are in the index now
    set_aside: int  # that the model cannot take


def add_to_index(
    path: str | Path,
    source: Any,
    *,
    model: str | Path | Encoder | None = None,
    ids: Sequence[str] | str | None = None,
    documents: Any = None,
    fields: Fields = Fields(),  # noqa: B008
    limit: int | None = None,
    resume: bool = False,
    ram: int | None = None,
    progress: bool = False,
    sparse: str | Path | SparseEncoder | None = None,
    vectors: str | None = None,
    **options: Any,
) -> Added:
    """Adds documents to an index, or replaces those of the same id, in one commit.

    source: as in `build_index`. A corpus is embedded by the index's own model, in a job that can be killed and goes on with
    `resume`; options are those of `load`. sparse: where the sparse leg was built from a file, one with the weights of these
    documents; where by a model, that model, if it is found elsewhere now. vectors: as in `build_index`; where the index names no
    model, a parquet file's only column of vectors is found without. Raises ModelMismatch for rows of another model,
    UsageError for those of another width, and what `build_index` raises; the index is as it was then.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    entries = _more_entries(folder, manifest, sparse)
    if vectors is None and manifest.source.fingerprint is None and isinstance(source, (str, Path)):
        vectors = vector_column(Path(source))  # nothing else of the file could be added
    if _are_vectors(source, vectors):
        if model is not None or options:
            raise UsageError("Vectors and a model came; vectors are taken as they are: leave the model out.")
        rows = RowSource.of(source, ids, limit, fields, vectors)
        _check_space(folder, manifest, rows)
        documents = rows.documents if documents is None else documents
        with changing(folder, ram, manifest) as change:
            change.entries = entries or change.entries
            count = add_vectors(change, rows, documents, fields, whole=limit is None)
            change.commit()
        return Added(count, 0)
    remark_vectors(source)
    with open_index(folder, model, **options) as index:
        encoder = index.encoder()
    with changing(folder, ram, manifest) as change:
        change.entries = entries or change.entries
        added = _add_corpus(change, read_corpus(source, fields, limit=limit), encoder, "add.npy", resume, progress)
        change.commit()
    return added


def _more_entries(folder: Path, manifest: Manifest, sparse: str | Path | SparseEncoder | None) -> Entries | None:
    by_model = manifest.sparse is not None and manifest.sparse.fingerprint is not None
    by_file = isinstance(sparse, (str, Path)) and not by_model
    with open_index(folder, sparse_model=None if by_file else sparse) as index:
        return index.sparse_entries(cast(Path, sparse) if by_file else None)


def _check_space(folder: Path, manifest: Manifest, rows: RowSource) -> None:
    """Refuses rows of another model or width, before anything is written."""
    if rows.dim != manifest.dim:
        raise UsageError(f"Rows of width {rows.dim} came; {folder} holds rows of width {manifest.dim}.")
    theirs, ours = rows.source, manifest.source
    if theirs.fingerprint is not None and theirs.fingerprint != ours.fingerprint:
        raise ModelMismatch(
            f"{folder} was built by {str(ours.fingerprint)[:12]} ({ours.model}), these rows by {theirs.fingerprint[:12]} "
            f"({theirs.model}); embed them with the index's model, or build an index of their own."
        )


def query_vectors(index: Index, path: Path) -> Array:
    """(q, dim) the rows of a file of vectors, as queries. Raises ModelMismatch for those of another model, UsageError for those
    of another width, and what `open_vectors` raises."""
    rows = RowSource.of(path)
    _check_space(index.path, index.manifest, rows)
    return np.asarray(rows.rows)


def _add_corpus(
    change: Change, corpus: Iterable[Document], encoder: Encoder, name: str, resume: bool, progress: bool
) -> Added:
    """Embeds a corpus by a job that can be gone on with, and adds it."""
    path, source = change.folder / name, change.old.source
    if path.is_symlink():
        remove(path)  # this name nobody gave: it came with the folder
    names, recorded = Names(path), _recorded(corpus, change)
    resume = resume and (names.ledger.exists() or names.manifest.exists())  # else what is there is of no use
    manifest = embed_to_file(
        recorded,
        path,
        encoder,
        on_long=cast(OnLong, source.on_long),
        resume=resume,
        overwrite=not resume,
        progress=progress,
    )
    rows, count = RowSource.of(path), manifest["documents"]
    if (rows.source.fingerprint, rows.source.on_long) != (source.fingerprint, source.on_long):
        raise UsageError(f"{path} was made by another model, or with another on_long; give the same, or start again.")
    # an earlier run had all vectors, and ended then: its file of documents may be another change's by now
    again = sum(1 for _ in recorded)
    counts = None
    if again or rows.spans is not None or rows.set_aside:
        reader = DocumentReader(change.new_path(DOCUMENTS), again or count)
        counts = rows_a_document(reader.all_ids(), rows.ids)
        reader.close()
        if len(counts) != count or np.count_nonzero(counts == 0) != len(rows.set_aside):
            raise DataError("The corpus has changed since its vectors were made; run this again without --resume.")
        if rows.spans is None and not rows.set_aside:
            counts = None  # one each
    if rows.set_aside:
        some = ", ".join(sorted(rows.set_aside)[:10])
        logger.warning("%d documents were set aside, the model cannot take them: %s", len(rows.set_aside), some)
    change.old = replace(change.old, source=replace(source, first_input=source.first_input or manifest["first_input"]))
    change.add(rows.rows, Content(count, manifest["empty_texts"], counts, rows.spans))
    return Added(count - len(rows.set_aside), len(rows.set_aside))


def _recorded(corpus: Iterable[Document], change: Change) -> Iterator[Document]:
    """The documents as they come, written to the segment on the way. A job that is gone on with reads them all again."""
    writer, waiting = change.document_writer(), list[Document]()
    for document in corpus:
        waiting.append(document)
        if len(waiting) == RECORDED:
            writer.append(waiting, texts=True)
            waiting = []
        yield document
    writer.append(waiting, texts=True)
    writer.close()
    change.sync_documents()


def metric_of(similarity: str) -> Metric:
    """How an index compares rows of such a model. Raises UsageError where it compares in another way than an index can."""
    if similarity not in ("cosine", "dot"):
        raise UsageError(f"The model compares by {similarity}; an index compares by 'cosine' or 'dot': name one.")
    return cast(Metric, similarity)


def source_of(encoder: Encoder, on_long: OnLong = "truncate", first: Document | None = None) -> Source:
    """What an index records of the encoder that made its rows, and of the first text that it read."""
    literal = None if first is None else str(first.content)
    if first is not None and isinstance(encoder, WindowEncoder):
        literal = encoder.first_input(first.content, "document")
    settings = dict(encoder.settings)
    return Source(
        model=settings.get("model"),
        fingerprint=encoder.fingerprint,
        settings=settings,
        compute=dict(encoder.compute),
        on_long=on_long,
        first_input=literal,
    )


def open_index(
    path: str | Path,
    model: str | Path | Encoder | None = None,
    *,
    prompt_name: str | None = None,
    check: bool = False,
    sparse_model: str | Path | SparseEncoder | None = None,
    **options: Any,
) -> Index:
    """Opens an index for searching.

    model: needed only where the one that the index names is found elsewhere now; loaded at the first question in words.
    prompt_name: a prompt that the model stores, for questions, instead of the one for queries. options: those of `load`
    (device, dtype, threads, ...); threads are those of a search, too. check: read every byte first. sparse_model: as model, of a
    sparse leg by a model. Raises UsageError where
    there is no index, IntegrityError where it is damaged; a search raises ModelMismatch where the model is not the one that made
    the rows.
    """
    query_options = {} if prompt_name is None else {"prompt_name": prompt_name}
    return Index(
        path,
        encoder_opener(Path(path), model, options),
        query_options,
        threads=options.get("threads"),
        check=check,
        sparse_encoder=sparse_opener(Path(path), sparse_model),
    )
