"""embedkit embed"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embedkit.cli.options import (
    corpus_options,
    fields,
    load_arguments,
    model_options,
    output_options,
    print_facts,
    progress_wanted,
    prompt_names,
    set_up_output,
)


@click.command("embed")
@click.argument("source", metavar="INPUT")
@click.option(
    "-o", "--output", required=True, metavar="NAME.npy", type=click.Path(path_type=Path), help="Where the vectors go."
)
@click.option(
    "--kind",
    type=click.Choice(["query", "document"]),
    default="document",
    show_default=True,
    help="Decides the prompt.",
)
@click.option("--dim", type=int, help="Keep the first D columns, at unit length again.")
@click.option("--overwrite", is_flag=True, help="Replace NAME.npy and what belongs to it.")
@corpus_options
@model_options
@output_options
def embed_command(
    source: str,
    output: Path,
    kind: Any,
    dim: int | None,
    overwrite: bool,
    limit: int | None,
    as_json: bool,
    quiet: bool,
    log: Path | None,
    **options: Any,
) -> None:
    """Embed a file or folder of texts.

    \b
    embedkit embed corpus.jsonl -o corpus.npy
    embedkit embed table.csv -o table.npy --id sku --text name,description
    zcat big.jsonl.gz | embedkit embed - -o big.npy --model intfloat/e5-small-v2

    INPUT is a file (jsonl, csv, tsv, parquet, also .gz; txt, md, rst), a folder (BEIR, saved datasets, parquet, texts),
    '-' for jsonl on standard input, or hf:NAME[:SPLIT]. Writes NAME.npy (float32), NAME.ids.txt and NAME.manifest.json.
    """
    set_up_output(quiet, log)
    from embedkit.corpus import check_source
    from embedkit.encoders import load
    from embedkit.engine.vector_file import check_free
    from embedkit.jobs import embed_corpus

    check_free(output, overwrite=overwrite)  # before a model is loaded for nothing
    check_source(source)
    columns = fields(options)
    encoder = load(dim=dim, **load_arguments(options), **prompt_names(options, kind))
    manifest = embed_corpus(
        source,
        output,
        encoder,
        kind=kind,
        fields=columns,
        limit=limit,
        overwrite=overwrite,
        progress=progress_wanted(quiet),
    )
    if as_json:
        print_facts(manifest, as_json)
    else:
        click.echo(f"{manifest['count']:,} vectors of {manifest['dim']} dimensions in {output}")
