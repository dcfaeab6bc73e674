"""embedkit eval"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedkit.cli.options import (
    load_arguments,
    model_options,
    output_options,
    profile_option,
    progress_wanted,
    set_up_output,
)
from embedkit.errors import DataError

if TYPE_CHECKING:
    from embedkit.types import Report

MANY = ("--data", "--tasks")  # take several names after one flag


class ManyNames(click.Command):
    """`--data A B` is read as `--data A --data B`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        flag = None
        for arg in args:
            if arg.startswith("-"):
                flag = next((name for name in MANY if arg == name or arg.startswith(f"{name}=")), None)
            elif flag and spread[-1] != flag:
                spread.append(flag)
            spread.append(arg)
        return super().parse_args(ctx, spread)


@click.command("eval", cls=ManyNames)
@click.option(
    "--data",
    "folders",
    multiple=True,
    metavar="DIR ...",
    type=click.Path(path_type=Path),
    help="Folders or files to score.",
)
@click.option("--tasks", multiple=True, metavar="NAME ...", help="Tasks of mteb; their data come from the hub.")
@click.option(
    "--split", default="test", show_default=True, help="Of the folders; `all` joins those of pairs and texts."
)
@click.option(
    "--type",
    "type_asked",
    type=click.Choice(["reranking", "sts", "pair-classification", "bitext", "classification", "clustering"]),
    help="Of the folders, where their columns fit several.",
)
@click.option(
    "--index",
    "index_folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Search through this index instead of exactly.",
)
@click.option(
    "-o",
    "--output",
    metavar="RESULTS",
    type=click.Path(path_type=Path),
    default=Path("results"),
    show_default=True,
    help="Folder of the report.",
)
@profile_option
@model_options
@output_options
def eval_command(
    folders: tuple[Path, ...],
    tasks: tuple[str, ...],
    split: str,
    type_asked: str | None,
    index_folder: Path | None,
    output: Path,
    as_json: bool,
    quiet: bool,
    log: Path | None,
    **options: Any,
) -> None:
    """Measure a model, or an index as it is served, on judged queries.

    \b
    embedkit eval --data scifact
    embedkit eval --data scifact --index scifact.index -o through-the-index
    embedkit eval --data pairs.tsv intents.jsonl --tasks STSBenchmark --model intfloat/e5-small-v2

    DIR is a BEIR folder (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv), a folder of such, or a file, or folder with a
    data.tsv, .csv, .jsonl or .parquet, whose columns tell what it is: sentence1, sentence2 and score (STS) or label (pair
    classification) or neither (bitext); text and label (classification, or clustering); query, positive and negative
    (reranking). Each also as .gz. mteb runs the protocol. Writes report.json and report.md into RESULTS, with 95 %
    intervals over queries or pairs, or the repetitions of the protocol; and mteb's result files beside.
    """
    set_up_output(quiet, log)
    if not folders and not tasks:
        raise click.UsageError("Give --data DIR (a folder or file to score) or --tasks NAME (a task of mteb).")
    if tasks and index_folder is not None:
        raise click.UsageError("--index goes with --data; mteb's tasks take a model.")
    if options["profile"] and (index_folder is not None or not folders):
        raise click.UsageError(
            "--profile goes with --data, whose first documents calibrate it; an index brings its own."
        )
    from embedkit.eval.mteb_tasks import find_tasks
    from embedkit.eval.retrieval import Retrieval
    from embedkit.eval.run import Plan, read_tasks, run

    judged = [task for folder in folders for task in read_tasks(folder, split, type_asked)]
    if index_folder is not None and any(not isinstance(task, Retrieval) for task in judged):
        raise click.UsageError("--index goes with BEIR folders; other tasks take a model.")
    plan = Plan(
        tasks=[*judged, *find_tasks(tasks)],
        output=output,
        query_prompt=options.pop("prompt_name"),
        calibrate=folders[0] if options.pop("profile") else None,
        index=index_folder,
        model=load_arguments(options),
    )
    reports, failed = run(plan, progress=progress_wanted(quiet))
    if not reports:
        raise next(iter(failed.values()))
    _print_reports(reports, as_json)
    for error in failed.values():
        click.echo(f"Error: {error}", err=True)
    if not as_json and not quiet:
        click.echo(f"Written to {output / 'report.md'} and {output / 'report.json'}", err=True)
    if failed:
        raise click.exceptions.Exit(DataError.exit_code)


def _print_reports(reports: dict[str, Report], as_json: bool) -> None:
    if as_json:
        facts = {
            name: {"scores": report.scores, "intervals": report.intervals, "units": report.units}
            for name, report in reports.items()
        }
        click.echo(json.dumps({"tasks": facts}, indent=1))
        return
    width = max(map(len, reports))
    for name, report in reports.items():
        for metric, score in report.scores.items():
            low, high = report.intervals.get(metric, (None, None))
            interval = "" if low is None else f"  [{low:.4f}, {high:.4f}]"
            click.echo(f"{name:{width}}  {metric:10}  {score:.4f}{interval}")
