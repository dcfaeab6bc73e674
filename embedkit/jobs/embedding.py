"""Texts and images to vectors: in memory, or a corpus into a file by a job that can be killed."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from embedkit.corpus import Fields, read_corpus
from embedkit.encoder import Encoder, OnLong, contents
from embedkit.encoders import TextEncoder, load
from embedkit.engine import embed_to_file
from embedkit.engine.vector_file import remark_vectors
from embedkit.errors import UsageError
from embedkit.types import Array, Kind, Vectors
from embedkit.vectors import Precision, Ranges, check_precision, in_precision


def embed(
    inputs: Any,
    model: str | Path | Encoder | None = None,
    *,
    kind: Kind = "document",
    prompt: str | None = None,
    dim: int | None = None,
    precision: Precision = "float32",
    ranges: Ranges | str | Path | None = None,
    **options: Any,
) -> Array:
    """float32 (n, dim) rows of the inputs, in order; a single input gives (1, dim), none gives (0, dim).

    inputs: an iterable of texts (a string is always text) and, for models that read them, of images (pathlib.Path or PIL)
    and of dicts of "text" and "image".

    model: a folder, a hub id, or an encoder from `load`; the default model when left out. The two models last opened are
    kept in memory. kind: "query" or "document", which decides the model's own prompt. prompt: a literal one instead.
    dim: keep the first so many columns, at unit length again where rows are unit. precision: "float16", "int8" (uint8 codes
    by `ranges`, those of the documents, or the path of their NAME.ranges.npy), or "binary" (uint8 (n, ceil(dim / 8)), a bit a
    sign). options: those of `load` (layers, device, dtype, max_tokens, ...). Raises what `load` and `encode` raise,
    UsageError for int8 without ranges, DataError for a row that the precision cannot hold.
    """
    opened = _opened(ranges)
    rows = _embed(inputs, model, kind, prompt, dim, options)
    check_precision(precision, opened, rows.shape[1])
    return in_precision(rows, precision, opened)


def _opened(ranges: Ranges | str | Path | None) -> Ranges | None:
    return Ranges.read(ranges) if isinstance(ranges, (str, Path)) else ranges


def _embed(
    inputs: Any,
    model: str | Path | Encoder | None,
    kind: Kind,
    prompt: str | None,
    dim: int | None,
    options: dict[str, Any],
) -> Vectors:
    if model is None or isinstance(model, (str, Path)):
        model = _loaded(None if model is None else str(model), json.dumps(options, sort_keys=True))
    elif options:
        raise UsageError(f"{', '.join(options)} came beside a model that is loaded already; give them to load().")
    if isinstance(model, TextEncoder):
        return model.encode(inputs, kind=kind, prompt=prompt, truncate_dim=dim)
    if prompt is not None or dim is not None:
        raise UsageError("prompt and dim are for models that embedkit loads; give them to the encoder itself.")
    return model.encode(contents(inputs), kind=kind)


@functools.lru_cache(maxsize=2)
def _loaded(model: str | None, options: str) -> TextEncoder:
    """options: as JSON, for prompts are dicts and a cache needs keys that can be hashed."""
    return load(model, **json.loads(options))


def embed_corpus(
    corpus: Any,
    path: str | Path,
    encoder: Encoder | Callable[..., Encoder],
    *,
    kind: Kind = "document",
    fields: Fields = Fields(),  # noqa: B008
    limit: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    on_long: OnLong = "truncate",
    precision: Precision = "float32",
    ranges: Ranges | str | Path | None = None,
    shard: tuple[int, int] | None = None,
    workers: int = 1,
    devices: Sequence[str] = (),
    progress: bool = False,
) -> dict[str, Any]:
    """Embeds any corpus that `read_corpus` reads into NAME.npy (or NAME.parquet), NAME.ids.txt and NAME.manifest.json, a
    job that can be killed at any moment and goes on with `resume`; returns the manifest.

    encoder: from `load`, or a function that opens one. workers: processes, each with a model of its own, opened as this one
    was, with its share of the threads; a function is called in each as it is. devices: ("cuda:0", "cuda:1"): so many workers
    on each; a function is called with `device`. shard: (I, N), the I-th of N parts. on_long: "truncate" counts and lists longer
    texts, "chunk" gives them several rows, "error" refuses them. precision: of what is stored; int8 codes by `ranges` (or the
    path of a NAME.ranges.npy), else by those of the first 2,048 documents. Rows that the model cannot take are listed in
    NAME.quarantine.jsonl and counted in the manifest. Raises what `embed_to_file` raises,
    DataError for rows that cannot be used.
    """
    if (count := workers * max(1, len(devices))) > 1 and hasattr(encoder, "encode"):
        encoder = _reopening(cast(Encoder, encoder), count)
    opening = cast(Callable[..., Encoder], encoder)
    remark_vectors(corpus)
    return embed_to_file(
        read_corpus(corpus, fields, limit=limit),
        Path(path),
        [functools.partial(opening, device=device) for device in devices] if devices else encoder,
        kind=kind,
        on_long=on_long,
        precision=precision,
        ranges=_opened(ranges),
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
