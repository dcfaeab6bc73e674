"""embedkit search"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import click

from embedkit.cli.index import parsed_where
from embedkit.cli.options import (
    load_arguments,
    model_options,
    output_options,
    read_sparse_queries,
    set_up_output,
    sparse_model_option,
    sparse_queries_option,
)
from embedkit.errors import UsageError
from embedkit.types import Content, Hits, Picture

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
@click.option(
    "--mode",
    type=click.Choice(["dense", "sparse", "hybrid"]),
    default="dense",
    show_default=True,
    help="By vectors, by terms (needs --sparse at the build), or by both.",
)
@click.option("--fusion", type=click.Choice(["minmax", "rrf"]), help="Of hybrid.  [default: minmax, or as tuned]")
@click.option("--weight", type=float, metavar="SHARE", help="Of the dense leg in hybrid.  [default: 0.5, or as tuned]")
@sparse_queries_option
@sparse_model_option
@click.option(
    "--image",
    metavar="FILE|FIELD",
    help="An image as the question, or beside it; with --queries, the field of theirs.",
)
@click.option("--like", metavar="ID", help="Instead of a question: documents like this stored one.")
@click.option("--where", metavar="JSON", help='Only documents whose metadata pass: \'{"year": {"gte": 2020}}\'.')
@click.option(
    "--group",
    type=click.Choice(["best", "mean", "none"]),
    default="best",
    show_default=True,
    help="Rank documents by their best or mean passage; none lists passages.",
)
@click.option("--min-score", type=float, help="Leave out what scores less.")
@click.option("--explain", is_flag=True, help="Score and rank of each hit by every leg.")
@model_options
@output_options
def search_command(
    folder: Path,
    question: str | None,
    k: int,
    queries: Path | None,
    output: Path | None,
    mode: str,
    fusion: str | None,
    weight: float | None,
    sparse_queries: Path | None,
    sparse_model: str | None,
    image: str | None,
    like: str | None,
    where: str | None,
    group: str,
    min_score: float | None,
    explain: bool,
    as_json: bool,
    quiet: bool,
    log: Path | None,
    **options: Any,
) -> None:
    """Search an index with a question, an image, or a file of queries.

    \b
    embedkit search my.index "how do plants store energy?" -k 3 --mode hybrid --where '{"year": {"gte": 2020}}'
    embedkit search my.index --queries queries.jsonl -k 100 -o run.trec
    embedkit search photos.index --image cat.jpg --explain --json

    The model is the one that the index names. A run has TREC's six columns: query, Q0, document, rank, score, tag.
    """
    set_up_output(quiet, log)
    asking = question if image is None or queries is not None or like is not None else image
    if sum(given is not None for given in (asking, queries, like)) != 1 or (like is not None and image is not None):
        raise click.UsageError("Give a question, --image FILE, --queries FILE or --like ID, one of them.")
    if output is not None and queries is None:
        raise click.UsageError("-o writes the run of --queries FILE; a single question is printed.")
    if sparse_queries is not None and (queries is None or mode == "dense"):
        raise click.UsageError("--sparse-queries belongs to --queries FILE and --mode sparse or hybrid.")
    if mode != "hybrid" and (fusion is not None or weight is not None):
        raise click.UsageError("--fusion and --weight belong to --mode hybrid.")
    if output is not None and as_json:
        raise click.UsageError("--json prints the hits, -o writes a TREC run; give one of them.")
    from embedkit.jobs import open_index

    asked = _queries(queries, image) if queries is not None else {"": _question(question, image, like)}
    passing = None if where is None else parsed_where(where)
    prompt = options.pop("prompt_name")
    index = open_index(folder, prompt_name=prompt, sparse_model=sparse_model, **load_arguments(options))
    hits = index.search(
        list(asked.values()) if like is None else None,
        k=k,
        like=like,
        where=passing,
        group=cast(Any, None if group == "none" else group),
        min_score=min_score,
        documents=queries is None or as_json,
        explain=explain,
        mode=cast(Any, mode),
        sparse_queries=None if sparse_queries is None else read_sparse_queries(sparse_queries, asked),
        fusion=cast(Any, fusion),
        weight=weight,
    )
    if queries is None or as_json:
        _print_hits(asked, hits, as_json)
    elif output is None:
        click.echo(trec_run(asked, hits), nl=False)
    else:
        from embedkit.storage import atomic_file, writable

        with atomic_file(writable(output)) as stream:
            stream.write(trec_run(asked, hits).encode())


def _queries(path: Path, image_field: str | None) -> dict[str, Content]:
    """query id -> what the model is given of it."""
    from embedkit.corpus import Fields, read_corpus

    return {query.id: query.content for query in read_corpus(path, Fields(image=image_field))}


def _question(question: str | None, image: str | None, like: str | None) -> Content:
    """Raises UsageError for an image that is not there."""
    if image is None:
        return question if question is not None else f"like {like}"
    if not Path(image).is_file():
        raise UsageError(f"{image} is not there; expected the file of an image.")
    return Picture(Path(image), question, image)


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


def _print_hits(queries: Mapping[str, Content], hits: Hits, as_json: bool) -> None:
    for position, (query, content) in enumerate(queries.items()):
        rows = _rows(hits, position)
        if as_json:
            click.echo(json.dumps({"id": query, "query": str(content), "hits": rows}, ensure_ascii=False))
            continue
        for rank, row in enumerate(rows, 1):
            click.echo(f"{rank:3}  {row['score']:.4f}  {row.get('passage', row['id'])}")
            for name, said in row.get("explanation", {}).items():
                click.echo(f"     {name}: {'-' if said is None else said if isinstance(said, int) else _placed(said)}")
            body = textwrap.wrap(f"{row['title']} {row['text']}".strip(), WIDTH, max_lines=LINES, placeholder=" …")
            click.echo("".join(f"     {line}\n" for line in body), nl=False)


def _rows(hits: Hits, position: int) -> list[dict[str, Any]]:
    """What is known of each hit of a query."""
    rows = []
    for place, document in enumerate(hits.documents[position] if hits.documents else []):
        row: dict[str, Any] = {"id": document.id, "score": float(hits.scores[position, place])}
        if hits.passages is not None:
            row["passage"] = hits.passages[position][place]
        if hits.spans is not None:
            row["span"] = hits.spans[position][place]
        row |= {"title": document.title, "text": document.text, "metadata": dict(document.metadata)}
        if hits.explanations is not None:
            row["explanation"] = hits.explanations[position][place]
        rows.append(row)
    return rows


def _placed(said: Mapping[str, Any]) -> str:
    terms = ", ".join(f"{term} {share:.4f}" for term, share in said.get("terms", {}).items())
    return f"rank {said['rank']}, score {said['score']:.4f}" + (f" ({terms})" if terms else "")
