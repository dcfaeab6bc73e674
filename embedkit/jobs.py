"""Whole jobs, model and index put together: embed texts, build an index from a corpus, open it for questions in words."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from embedkit.corpus import Fields, read_corpus
from embedkit.corpus.documents import checked_id
from embedkit.encoder import Encoder, OnLong, WindowEncoder
from embedkit.encoders import TextEncoder, load
from embedkit.engine import embed_documents, embed_to_file, holds_vectors, open_vectors
from embedkit.errors import DataError, ModelError, UsageError
from embedkit.index.build import Layout, write_index
from embedkit.index.index import Index
from embedkit.index.manifest import Metric, Source, read_manifest
from embedkit.storage import check_absent
from embedkit.types import Document, Kind, Vectors

VECTOR_BLOCK = 8192  # rows copied at once from a file of vectors


def embed(
    inputs: Iterable[str] | str,
    model: str | Path | Encoder | None = None,
    *,
    kind: Kind = "document",
    prompt: str | None = None,
    dim: int | None = None,
    **options: Any,
) -> Vectors:
    """float32 (n, dim) rows of the inputs, in order; one string gives (1, dim), no input gives (0, dim).

    model: a folder, a hub id, or an encoder from `load`; the default model when left out. The two models last opened are
    kept in memory. kind: "query" or "document", which decides the model's own prompt. prompt: a literal one instead.
    dim: keep the first so many columns, at unit length again where rows are unit. options: those of `load` (device, dtype,
    max_tokens, ...). Raises what `load` and `encode` raise.
    """
    if model is None or isinstance(model, (str, Path)):
        model = _loaded(None if model is None else str(model), json.dumps(options, sort_keys=True))
    elif options:
        raise UsageError(f"{', '.join(options)} came beside a model that is loaded already; give them to load().")
    if isinstance(model, TextEncoder):
        return model.encode(inputs, kind=kind, prompt=prompt, truncate_dim=dim)
    if prompt is not None or dim is not None:
        raise UsageError("prompt and dim are for models that embedkit loads; give them to the encoder itself.")
    return model.encode([inputs] if isinstance(inputs, str) else list(inputs), kind=kind)


@functools.lru_cache(maxsize=2)
def _loaded(model: str | None, options: str) -> TextEncoder:
    """options: as JSON, for prompts are dicts and a cache needs keys that can be hashed."""
    return load(model, **json.loads(options))


def embed_corpus(
    corpus: Any,
    path: str | Path,
    encoder: Encoder | Callable[[], Encoder],
    *,
    kind: Kind = "document",
    fields: Fields = Fields(),  # noqa: B008
    limit: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    on_long: OnLong = "truncate",
    shard: tuple[int, int] | None = None,
    workers: int = 1,
    progress: bool = False,
) -> dict[str, Any]:
    """Embeds any corpus that `read_corpus` reads into NAME.npy (or NAME.parquet), NAME.ids.txt and NAME.manifest.json, a
    job that can be killed at any moment and goes on with `resume`; returns the manifest.

    encoder: from `load`, or a function that opens one. workers: processes, each with a model of its own, opened as this one
    was, with its share of the threads; a function is called in each as it is. shard: (I, N), the I-th of N parts. on_long:
    "truncate" counts and lists longer texts, "chunk" gives them several rows, "error" refuses them. Rows that the model
    cannot take are listed in NAME.quarantine.jsonl and counted in the manifest. Raises what `embed_to_file` raises,
    DataError for rows that cannot be used.
    """
    if workers > 1 and hasattr(encoder, "encode"):
        encoder = _reopening(cast(Encoder, encoder), workers)
    return embed_to_file(
        read_corpus(corpus, fields, limit=limit),
        Path(path),
        encoder,
        kind=kind,
        on_long=on_long,
        shard=shard,
        workers=workers,
        overwrite=overwrite,
        resume=resume,
        progress=progress,
    )


def _reopening(encoder: Encoder, workers: int) -> Callable[[], Encoder]:
    """What opens this model again in another process, with its share of the threads."""
    if not encoder.settings:
        raise UsageError(
            "Several workers open the model themselves; give a function that does, or a model from load()."
        )
    computed = {name: encoder.compute[name] for name in ("device", "backend", "dtype") if name in encoder.compute}
    numbers = {name: int(encoder.compute[name]) for name in ("batch_tokens", "threads") if name in encoder.compute}
    numbers["threads"] = max(1, numbers.get("threads", 1) // workers)
    return functools.partial(load, **{**encoder.settings, **computed, **numbers})


def build_index(
    source: Any,
    path: str | Path,
    *,
    model: str | Path | Encoder | None = None,
    ids: Sequence[str] | None = None,
    documents: Any = None,
    metric: str | None = None,
    coarse: str = "auto",
    fine: str = "float16",
    fields: Fields = Fields(),  # noqa: B008
    limit: int | None = None,
    progress: bool = False,
) -> Index:
    """Builds an index folder, whole or not at all, and opens it.

    source: a corpus (a path, rows, a DataFrame, a Dataset: see `read_corpus`), which `model` embeds; or vectors, an array
    (n, dim) with `ids`, or a NAME.npy or NAME.parquet that `embedkit embed` wrote, with `documents`, a corpus in the same order, for texts.
    metric: "cosine" or "dot", by default the model's own. coarse: "auto" (exact up to 50,000 rows), "none" (exact) or a
    faiss factory string. fine: "float16" or "float32" rows on disk.
    Raises UsageError for a path that is taken or a layout that cannot be, DataError for rows that cannot be used.
    """
    target = Path(path)
    check_absent(target)
    if isinstance(source, np.ndarray) or (isinstance(source, (str, Path)) and holds_vectors(Path(source))):
        if model is not None:
            raise UsageError("Vectors and a model came; vectors are taken as they are: leave the model out.")
        if limit is not None and limit < 1:
            raise UsageError(f"limit={limit} was asked for; expected at least 1.")
        rows, row_ids, origin, similarity = _vectors(source, ids)
        layout = Layout(metric or similarity, coarse, fine)  # type: ignore[arg-type]
        batches = _paired(row_ids[:limit], rows[:limit], documents, fields, whole=limit is None)
        write_index(target, batches, rows.shape[1], layout, origin, texts=documents is not None)
        return open_index(target)
    if ids is not None or documents is not None:
        raise UsageError("ids and documents belong to vectors; a corpus brings its own.")
    encoder = model if model is not None and not isinstance(model, (str, Path)) else load(model)
    layout = Layout(metric or metric_of(encoder), coarse, fine)  # type: ignore[arg-type]
    layout.check(encoder.dim)
    total = len(source) if hasattr(source, "__len__") and not isinstance(source, str) else None
    documents = read_corpus(source, fields, limit=limit)
    first = next(documents)
    stream = embed_documents(itertools.chain([first], documents), encoder, total=total, progress=progress)
    write_index(target, stream, encoder.dim, layout, source_of(encoder, first))
    return open_index(target, encoder)


def metric_of(encoder: Encoder) -> Metric:
    """How an index compares the rows of this encoder. Raises UsageError where it compares in another way than an index can."""
    if encoder.similarity not in ("cosine", "dot"):
        raise UsageError(
            f"The model compares by {encoder.similarity}; an index compares by 'cosine' or 'dot': name one."
        )
    return encoder.similarity  # type: ignore[return-value]


def source_of(encoder: Encoder, first: Document) -> Source:
    """What an index records of the encoder that made its rows, and of the first text that it read."""
    text = first.full_text
    literal = encoder.first_input(text, "document") if isinstance(encoder, WindowEncoder) else text
    settings = dict(encoder.settings)
    return Source(settings.get("model"), encoder.fingerprint, settings, dict(encoder.compute), literal)


def _vectors(source: Any, ids: Sequence[str] | None) -> tuple[Vectors, Sequence[str], Source, str]:
    """Rows, one id a row, what made them, and how they are compared."""
    if isinstance(source, np.ndarray):
        if source.ndim != 2 or source.dtype.kind not in "fiu":
            raise DataError(
                f"An array of {source.dtype} of shape {source.shape} came; expected numbers of shape (rows, dim)."
            )
        rows, found, manifest = source, list(map(str, range(len(source)))), {}
    else:
        file = open_vectors(Path(source))
        rows, found, manifest = file.rows, file.ids, file.manifest
    if ids is not None:
        found = [checked_id(str(identifier), f"ids, row {number}") for number, identifier in enumerate(ids, 1)]
    if len(found) != len(rows):
        raise UsageError(f"{len(found)} ids came with {len(rows)} vectors; give one id a vector.")
    settings = manifest.get("settings", {})
    origin = Source(
        settings.get("model"),
        manifest.get("fingerprint"),
        settings,
        manifest.get("compute", {}),
        manifest.get("first_input"),
    )
    return rows, found, origin, manifest.get("similarity", "cosine")


def _paired(
    ids: Sequence[str], rows: Vectors, documents: Any, fields: Fields, *, whole: bool
) -> Iterator[tuple[list[Document], Vectors]]:
    """Blocks of documents and rows; texts from `documents`, whose ids must come in the order of the vectors."""
    texts = None if documents is None else read_corpus(documents, fields)
    for start in range(0, len(ids), VECTOR_BLOCK):
        block = slice(start, start + VECTOR_BLOCK)
        yield [_document(identifier, texts) for identifier in ids[block]], np.asarray(rows[block], dtype=np.float32)
    if texts is not None and whole and (rest := next(texts, None)) is not None:
        raise DataError(
            f"After the last vector stands the document {rest.id!r}; give the corpus that was embedded, in the same order."
        )


def _document(identifier: str, texts: Iterator[Document] | None) -> Document:
    if texts is None:
        return Document(id=identifier, text="")
    document = next(texts, None)
    if document is None or document.id != identifier:
        found = "nothing" if document is None else f"the document {document.id!r}"
        raise DataError(
            f"Beside the vector of {identifier!r} stands {found}; give the corpus that was embedded, in the same order (ids "
            f"come from NAME.ids.txt beside the vectors, and are row numbers where it is missing)."
        )
    return document


def open_index(
    path: str | Path, model: str | Path | Encoder | None = None, *, prompt_name: str | None = None, **options: Any
) -> Index:
    """Opens an index for searching.

    model: needed only where the one that the index names is found elsewhere now; loaded at the first question in words.
    prompt_name: a prompt that the model stores, for questions, instead of the one for queries. options: those of `load`
    (device, dtype, threads, ...). Raises UsageError where there is no index, IntegrityError where it is damaged; a search
    raises ModelMismatch where the model is not the one that made the rows.
    """
    query_options = {} if prompt_name is None else {"prompt_name": prompt_name}
    return Index(path, _opener(Path(path), model, options), query_options)


def _opener(path: Path, model: str | Path | Encoder | None, options: dict[str, Any]) -> Callable[[], Encoder] | None:
    if model is not None and not isinstance(model, (str, Path)):
        return lambda: model
    stored = dict(read_manifest(path).source.settings)
    named = stored.pop("model", None)
    if model is None and named is None:
        return None
    if model is not None:
        stored.pop("revision", None)  # it belongs to the hub id that the index names

    def opened() -> Encoder:
        if model is None and Path(str(named)).is_absolute() and not Path(str(named)).is_dir():
            raise ModelError(
                f"{path} names the model {named}, which is not there any more; say where it is with --model."
            )
        return load(model or named, **{**stored, **options})

    return opened
