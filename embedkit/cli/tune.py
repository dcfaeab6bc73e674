"""embedkit index tune"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedkit.cli.options import (
    folder_argument,
    load_arguments,
    model_options,
    output_options,
    print_facts,
    read_sparse_queries,
    set_up_output,
    sparse_model_option,
    sparse_queries_option,
)

if TYPE_CHECKING:
    from embedkit.index import Index

RECALL_ONLY, FUSION_ONLY = ("k", "output", "bytes_per_vector"), ("qrels", "sparse_queries")


@click.command("tune")
@folder_argument
@click.option(
    "--recall",
    type=float,
    metavar="SHARE",
    help="Find the cheapest settings that keep this share of the exact nearest.",
)
@click.option("--fusion", is_flag=True, help="Fit how hybrid search weighs its legs.")
@click.option(
    "--queries",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path),
    help="Queries that no result will be reported on: jsonl, csv, tsv with id and text; for --recall also vectors (.npy).",
)
@click.option("-k", type=click.IntRange(1), help="With --recall: neighbours that count.  [default: 10]")
@click.option(
    "-o",
    "--output",
    metavar="FILE.png",
    type=click.Path(dir_okay=False, path_type=Path),
    help="With --recall: draw recall against queries/s.",
)
@click.option(
    "--bytes-per-vector",
    type=int,
    multiple=True,
    metavar="N",
    help="With --recall, any number of times: measure codes of N bytes as well, built in a scratch folder.",
)
@click.option(
    "--qrels",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="With --fusion: judgements of the queries, a tsv with the header query-id, corpus-id, score.",
)
@sparse_queries_option
@sparse_model_option
@model_options
@output_options
def tune_command(
    folder: Path,
    recall: float | None,
    fusion: bool,
    queries: Path,
    sparse_model: str | None,
    as_json: bool,
    quiet: bool,
    log: Path | None,
    **options: Any,
) -> None:
    """Find the settings of an index by real queries, store them, and say what they are worth on queries that chose nothing.

    \b
    embedkit index tune my.index --recall 0.95 --queries queries.jsonl -o frontier.png
    embedkit index tune my.index --recall 0.9 --queries queries.npy --bytes-per-vector 24 --json
    embedkit index tune my.index --fusion --queries train.jsonl --qrels qrels/train.tsv

    --recall: half of the queries choose how many lists are visited and how many rows verified, the other half measures. Exit code 6
    where nothing reaches it, with the frontier. --fusion: the weight of hybrid search, judged in five folds. Either is a new version of
    the index.
    """
    set_up_output(quiet, log)
    if fusion == (recall is not None):
        raise click.UsageError("Give --recall SHARE or --fusion, one of them.")
    given = {name: value for name in (*RECALL_ONLY, *FUSION_ONLY) if (value := options.pop(name))}
    for name in FUSION_ONLY if recall is not None else RECALL_ONLY:
        if name in given:
            flag = {"k": "-k", "output": "-o"}.get(name, f"--{name.replace('_', '-')}")
            raise click.UsageError(f"{flag} belongs to {'--fusion' if recall is not None else '--recall'}.")
    if fusion and "qrels" not in given:
        raise click.UsageError("Give --qrels FILE: a weight is fitted to judgements.")
    from embedkit.jobs import open_index

    prompt = options.pop("prompt_name")
    with open_index(folder, prompt_name=prompt, sparse_model=sparse_model, **load_arguments(options)) as index:
        if recall is None:
            _fusion(index, queries, as_json=as_json, **given)
        else:
            _recall(index, recall, queries, as_json=as_json, **given)


def _fusion(index: Index, queries: Path, qrels: Path, sparse_queries: Path | None = None, *, as_json: bool) -> None:
    from embedkit.corpus.beir import qrels_of, read_queries
    from embedkit.eval.fusion import tune_fusion

    texts, judged = read_queries(queries), qrels_of(qrels)
    weights = None if sparse_queries is None else read_sparse_queries(sparse_queries, texts)
    tuned = tune_fusion(index, texts, judged, weights)
    index.set_fusion(tuned.method, tuned.weight)
    if as_json:
        print_facts({**tuned.facts(), "version": index.manifest.number}, as_json)
    else:
        click.echo(tuned.sentence())


def _recall(
    index: Index,
    goal: float,
    queries: Path,
    k: int = 10,
    output: Path | None = None,
    bytes_per_vector: tuple[int, ...] = (),
    *,
    as_json: bool,
) -> None:
    """Raises Infeasible once the frontier is printed and drawn."""
    from embedkit.corpus.beir import read_queries
    from embedkit.engine import holds_vectors
    from embedkit.errors import Infeasible
    from embedkit.eval.recall import tune_recall
    from embedkit.eval.recall_figure import draw, import_figure
    from embedkit.jobs.indexing import query_vectors

    if output is not None:
        import_figure()  # before anything is measured
    asked = query_vectors(index, queries) if holds_vectors(queries) else list(read_queries(queries).values())
    tuned = tune_recall(index, asked, goal, k, bytes_per_vector=bytes_per_vector)
    if tuned.chosen is not None:
        index.set_settings(tuned.settings([segment.number for segment in index.manifest.segments]))
    if output is not None:
        draw(tuned, output)
    if as_json:
        print_facts({**tuned.facts(), "version": index.manifest.number}, as_json)
    else:
        click.echo("\n".join(tuned.table()))
    if tuned.chosen is None:
        raise Infeasible(tuned.sentence())
    if not as_json:
        click.echo(f"{tuned.sentence()} Version {index.manifest.number} of {index.path} searches so.")
