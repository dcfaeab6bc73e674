"""embedkit embed"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedkit.cli.options import (
    begun_with,
    corpus_options,
    devices_of,
    fields,
    load_arguments,
    model_options,
    output_options,
    print_facts,
    profile_arguments,
    profile_option,
    progress_wanted,
    prompt_names,
    set_up_output,
)
from embedkit.errors import DataError, Stopped

if TYPE_CHECKING:
    from embedkit.engine.outputs import Names


def _shard(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    part, slash, parts = value.partition("/")
    if slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts):
        return int(part), int(parts)
    raise click.BadParameter(f"{value!r} came; expected I/N, for example 1/4 to 4/4.")


@click.command("embed")
@click.argument("source", metavar="INPUT")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="NAME.npy|NAME.parquet",
    type=click.Path(path_type=Path),
    help="Where the vectors go.",
)
@click.option(
    "--kind",
    type=click.Choice(["query", "document"]),
    default="document",
    show_default=True,
    help="Decides the prompt.",
)
@click.option("--dim", type=int, help="Keep the first D columns, at unit length again.")
@click.option("--layers", type=int, help="Compute the first L layers of the model alone.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "float16", "int8", "binary"]),
    default="float32",
    show_default=True,
    help="Of the stored numbers; int8 is a byte a dimension, binary a bit.",
)
@click.option(
    "--ranges",
    metavar="NAME.ranges.npy",
    type=click.Path(path_type=Path),
    help="Code int8 by the ranges of other vectors.  [default: those of the first 2,048 documents]",
)
@click.option(
    "--on-long",
    type=click.Choice(["truncate", "chunk", "error"]),
    default="truncate",
    show_default=True,
    help="Texts beyond the model's limit: cut, give several rows, or refuse.",
)
@click.option("--resume", is_flag=True, help="Go on where an earlier run of this command ended.")
@click.option("--overwrite", is_flag=True, help="Replace NAME.npy and what belongs to it.")
@click.option("--shard", metavar="I/N", callback=_shard, help="Embed the I-th of N parts, for several machines.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes a device, each with a model and its share of the threads.",
)
@corpus_options
@profile_option
@model_options
@output_options
def embed_command(
    source: str,
    output: Path,
    kind: Any,
    dim: int | None,
    layers: int | None,
    precision: Any,
    ranges: Path | None,
    on_long: Any,
    resume: bool,
    overwrite: bool,
    shard: tuple[int, int] | None,
    workers: int,
    limit: int | None,
    as_json: bool,
    quiet: bool,
    log: Path | None,
    **options: Any,
) -> None:
    """Embed a file or folder of texts or images.

    \b
    embedkit embed corpus.jsonl -o corpus.npy
    embedkit embed table.csv -o table.npy --id sku --text name,description
    embedkit embed photos/ -o photos.npy --model sentence-transformers/clip-ViT-B-32 --resume

    INPUT is a file (jsonl, csv, tsv, parquet, also .gz; txt, md, rst), a folder (BEIR, saved datasets, parquet, texts, images),
    '-' for jsonl on standard input, or hf:NAME[:SPLIT]. Writes NAME.npy, NAME.ids.txt and NAME.manifest.json, or
    NAME.parquet (id, embedding) and NAME.manifest.json; with --precision int8 also NAME.ranges.npy, by which the codes are
    read. Rows that the model cannot take go to NAME.quarantine.jsonl, and the exit code is 3. However a run ends, the same
    command with --resume goes on with it.
    """
    set_up_output(quiet, log)
    from embedkit.corpus import check_source
    from embedkit.engine.job import check_free, is_finished
    from embedkit.engine.outputs import Names
    from embedkit.engine.row_form import check_calibration
    from embedkit.storage import read_json

    check_free(output, overwrite=overwrite, resume=resume)  # before a model is loaded for nothing
    names = Names(output)
    if resume and is_finished(names):
        _report(read_json(names.manifest), names, as_json)
        return
    check_calibration(precision, ranges is not None, kind, shard is not None)
    check_source(source)
    columns = fields(options)
    devices = devices_of(options)
    count = workers * max(1, len(devices))
    begun = begun_with(names.ledger, count) if resume else {}
    profile = profile_arguments(options, begun, source, columns)
    arguments = {**begun, **load_arguments(options), **prompt_names(options, kind), **profile}
    from embedkit.encoders import load
    from embedkit.jobs import embed_corpus

    if profile and count > 1:  # calibrated once, for all of them
        arguments["profile"] = load(layers=layers, **arguments).settings["profile"]
        del arguments["calibrate"]
    opening = functools.partial(load, dim=dim, layers=layers, **arguments)
    try:
        manifest = embed_corpus(
            source,
            output,
            opening() if count == 1 else functools.partial(opening, threads=_share(arguments, count)),
            kind=kind,
            fields=columns,
            limit=limit,
            overwrite=overwrite,
            resume=resume,
            on_long=on_long,
            precision=precision,
            ranges=ranges,
            shard=shard,
            workers=workers,
            devices=devices,
            progress=progress_wanted(quiet),
        )
    except KeyboardInterrupt:
        if names.ledger.exists():
            raise Stopped("Stopped; what is done is kept: run it again with --resume to go on.") from None
        raise
    _report(manifest, names, as_json)


def _share(arguments: dict[str, Any], workers: int) -> int:
    """Threads of one worker."""
    threads = arguments.get("threads") or len(os.sched_getaffinity(0))
    return max(1, int(threads) // workers)


def _report(manifest: dict[str, Any], names: Names, as_json: bool) -> None:
    if as_json:
        print_facts(manifest, as_json)
    else:
        click.echo(f"{manifest['count']:,} vectors of {manifest['dim']} dimensions in {names.path}")
    if manifest.get("set_aside"):
        raise DataError(
            f"{manifest['set_aside']:,} rows were set aside, with reasons, in {names.quarantine}; all others are done: mend "
            f"those and embed them on their own."
        )
