"""embedkit search"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from embedkit.cli.options import load_arguments, model_options, output_options, set_up_output
from embedkit.types import Hits

WIDTH, LINES = 100, 3  # of a text on the screen
TAG = "embedkit"  # last column of a TREC run


@click.command("search")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("question", required=False)
@click.option("-k", type=int, default=10, show_default=True, help="Hits a query.")
@click.option(
    "--queries", metavar="FILE", type=click.Path(path_type=Path), help="Many queries: jsonl, csv, tsv with id and text."
)
@click.option(
    "-o",
    "--output",
    metavar="run.trec",
    type=click.Path(path_type=Path),
    help="With --queries: write a TREC run.  [default: print it]",
)
@model_options
@output_options
def search_command(
    folder: Path,
    question: str | None,
    k: int,
    queries: Path | None,
    output: Path | None,
    as_json: bool,
    quiet: bool,
    log: Path | None,
    **options: Any,
) -> None:
    """Search an index with a question, or with a file of queries.

    \b
    embedkit search my.index "how do plants store energy?"
    embedkit search my.index "how do plants store energy?" -k 3 --json
    embedkit search my.index --queries queries.jsonl -k 100 -o run.trec

    The model is the one that the index names. A run has TREC's six columns: query, Q0, document, rank, score, tag.
    """
    set_up_output(quiet, log)
    if (question is None) == (queries is None):
        raise click.UsageError("Give either a question or --queries FILE.")
    if output is not None and queries is None:
        raise click.UsageError("-o writes the run of --queries FILE; a single question is printed.")
    if output is not None and as_json:
        raise click.UsageError("--json prints the hits, -o writes a TREC run; give one of them.")
    from embedkit.corpus.beir import read_queries
    from embedkit.jobs import open_index

    asked = read_queries(queries) if queries is not None else {"": str(question)}
    index = open_index(folder, prompt_name=options.pop("prompt_name"), **load_arguments(options))
    hits = index.search(list(asked.values()), k=k, documents=queries is None or as_json)
    if queries is None or as_json:
        _print_hits(asked, hits, as_json)
    elif output is None:
        click.echo(trec_run(asked, hits), nl=False)
    else:
        from embedkit.storage import atomic_file

        with atomic_file(output) as stream:
            stream.write(trec_run(asked, hits).encode())


def trec_run(queries: Mapping[str, Any], hits: Hits) -> str:
    """Six columns a hit. Raises DataError for an id with white space, which the format cannot hold."""
    from embedkit.errors import DataError

    spaced = next((i for i in (*queries, *(i for found in hits.ids for i in found)) if i.split() != [i]), None)
    if spaced is not None:
        raise DataError(f"The id {spaced!r} holds white space, which a TREC run cannot; use --json, or ids without it.")
    return "".join(
        f"{query} Q0 {document} {rank} {score:.9g} {TAG}\n"
        for query, found, scores in zip(queries, hits.ids, hits.scores, strict=True)
        for rank, (document, score) in enumerate(zip(found, scores, strict=False), 1)
    )


def _print_hits(queries: Mapping[str, str], hits: Hits, as_json: bool) -> None:
    for position, (query, text) in enumerate(queries.items()):
        found = list(zip(hits.documents[position], hits.scores[position], strict=False)) if hits.documents else []
        if as_json:
            rows = [
                {"id": d.id, "score": float(s), "title": d.title, "text": d.text, "metadata": dict(d.metadata)}
                for d, s in found
            ]
            click.echo(json.dumps({"id": query, "query": text, "hits": rows}, ensure_ascii=False))
            continue
        for rank, (document, score) in enumerate(found, 1):
            click.echo(f"{rank:3}  {score:.4f}  {document.id}")
            body = textwrap.wrap(document.full_text, WIDTH, max_lines=LINES, placeholder=" …")
            click.echo("".join(f"     {line}\n" for line in body), nl=False)
