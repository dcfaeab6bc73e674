"""embedkit index tune"""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


@click.command("tune")
@folder_argument
@click.option("--fusion", is_flag=True, help="Fit how hybrid search weighs its legs.")
@click.option(
    "--queries",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path),
    help="Queries that no result will be reported on: jsonl, csv, tsv with id and text.",
)
@click.option(
    "--qrels",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path),
    help="Their judgements: a tsv with the header query-id, corpus-id, score.",
)
@sparse_queries_option
@sparse_model_option
@model_options
@output_options
def tune_command(
    folder: Path,
    fusion: bool,
    queries: Path,
    qrels: Path,
    sparse_queries: Path | None,
    sparse_model: str | None,
    as_json: bool,
    quiet: bool,
    log: Path | None,
    **options: Any,
) -> None:
    """Fit the weight of hybrid search on judged queries, store it, and say whether it pays.

    \b
    embedkit index tune my.index --fusion --queries train.jsonl --qrels qrels/train.tsv
    embedkit index tune my.index --fusion --queries train.jsonl --qrels qrels/train.tsv --json
    embedkit search my.index "a question" --mode hybrid

    Whether it pays is measured on queries that the weight was not fitted on, in five folds. The weight is a new version of the index.
    """
    set_up_output(quiet, log)
    if not fusion:
        raise click.UsageError("Give --fusion; it is what there is to tune.")
    from embedkit.corpus.beir import qrels_of, read_queries
    from embedkit.eval.fusion import tune_fusion
    from embedkit.jobs import open_index

    prompt = options.pop("prompt_name")
    texts, judged = read_queries(queries), qrels_of(qrels)
    with open_index(folder, prompt_name=prompt, sparse_model=sparse_model, **load_arguments(options)) as index:
        weights = None if sparse_queries is None else read_sparse_queries(sparse_queries, texts)
        tuned = tune_fusion(index, texts, judged, weights)
        index.set_fusion(tuned.method, tuned.weight)
        if as_json:
            print_facts({**tuned.facts(), "version": index.manifest.number}, as_json)
        else:
            click.echo(tuned.sentence())
