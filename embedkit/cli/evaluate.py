"""embedkit eval"""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
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
    from embedkit.eval.run import Task
    from embedkit.types import Report

MANY = ("--data", "--tasks", "--run", "--metrics")  # take several names after one flag


class ManyNames(click.Command):
    """`--data A B` is read as `--data A --data B`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["arguments"] = list(args)
        spread: list[str] = []
        flag = None
        for arg in args:
            if arg.startswith("-"):
                flag = next((name for name in MANY if arg == name or arg.startswith(f"{name}=")), None)
            elif flag and spread[-1] != flag:
                spread.append(flag)
            spread.append(arg)
        return super().parse_args(ctx, spread)


def _known_metrics(_: click.Context, __: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    """Refused here, before anything is embedded."""
    if names:
        from embedkit.eval.metrics import parse_metric

        for name in names:
            parse_metric(name)
    return names


def _whole_numbers(_: click.Context, __: click.Parameter, text: str | None) -> list[int]:
    """ "32,128" as [32, 128]."""
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"{text!r} came; expected whole numbers from 1 on, with commas between.")
    return [int(part) for part in parts]


def _precisions(_: click.Context, __: click.Parameter, text: str | None) -> list[str]:
    from embedkit.vectors import check_precision

    parts = [part.strip() for part in text.split(",")] if text else []
    for part in parts:
        check_precision(part, None, 0)
    return parts


@click.command("eval", cls=ManyNames)
@click.option(
    "--data",
    "folders",
    multiple=True,
    metavar="DIR[:SPLIT] ...",
    help="Folders or files to score.",
)
@click.option("--tasks", multiple=True, metavar="NAME ...", help="Tasks of mteb; their data come from the hub.")
@click.option("--benchmark", metavar="NAME", help='All tasks of a benchmark of mteb: "MTEB(eng, v2)", BEIR, NanoBEIR.')
@click.option("--split", help="Of the folders; `all` joins those of pairs and texts.  [default: task.yaml's, or test]")
@click.option(
    "--type",
    "type_asked",
    type=click.Choice(
        ["retrieval", "reranking", "sts", "pair-classification", "bitext", "classification", "clustering", "image-text"]
    ),
    help="Of the folders, where their columns fit several.",
)
@click.option(
    "--index",
    "index_asked",
    metavar="DIR|RECIPE",
    help="Search through this index, or build one for each corpus: by a recipe, auto, none, or a faiss factory string.",
)
@click.option(
    "--run",
    "runs",
    multiple=True,
    metavar="FILE ...",
    type=click.Path(path_type=Path),
    help="Runs of other systems (TREC's six columns), scored against --qrels.",
)
@click.option(
    "--qrels",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Judgements of --run: a TSV with a header, or TREC's four columns.",
)
@click.option(
    "--metrics",
    multiple=True,
    metavar="NAME ...",
    callback=_known_metrics,
    help="Of retrieval: ndcg@10, map@100, mrr@10, recall@100, precision@5, hit_rate@10, judged@10, ...; the first one counts.",
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
@click.option(
    "--cache",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where rows and results are kept for the next run.  [default: RESULTS/cache]",
)
@click.option("--dims", callback=_whole_numbers, metavar="D[,D]", help="Evaluate with so many dimensions, each.")
@click.option("--layers", callback=_whole_numbers, metavar="L[,L]", help="Evaluate with so many layers, each.")
@click.option(
    "--precision",
    "precisions",
    callback=_precisions,
    metavar="P[,P]",
    help="Evaluate with rows of documents in float32, float16, int8 or binary, each.",
)
@profile_option
@model_options
@output_options
def eval_command(
    folders: tuple[str, ...],
    tasks: tuple[str, ...],
    split: str | None,
    type_asked: str | None,
    benchmark: str | None,
    index_asked: str | None,
    runs: tuple[Path, ...],
    qrels: Path | None,
    metrics: tuple[str, ...],
    output: Path,
    cache: Path | None,
    dims: list[int],
    layers: list[int],
    precisions: list[str],
    as_json: bool,
    quiet: bool,
    log: Path | None,
    **options: Any,
) -> None:
    """Measure a model, or an index as it is served, on judged queries.

    \b
    embedkit eval --data scifact
    embedkit eval --data scifact --index scifact.index -o through-the-index
    embedkit eval --data pairs.tsv sick:all --benchmark NanoBEIR --model intfloat/e5-small-v2 --index IVF64,SQ8

    DIR is a BEIR folder (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv), a folder of such, or a file, or folder with a
    data.tsv, .csv, .jsonl or .parquet, whose columns tell what it is: sentence1, sentence2 and score (STS) or label (pair
    classification) or neither (bitext); text and label (classification, or clustering); query, positive and negative
    (reranking); image and captions. Each also as .gz. mteb runs the protocol. --run FILE --qrels FILE scores what another system found: the
    report has the name of the run's file on the screen, and of the data in RESULTS (RESULTS/RUN for several runs), so that
    `embedkit compare` puts both side by side. Writes report.json and report.md into RESULTS, with 95 %
    intervals over queries or pairs, or the repetitions of the protocol; and mteb's result files beside.
    """
    set_up_output(quiet, log)
    if runs or qrels is not None:
        if folders or tasks or benchmark or index_asked or not runs or qrels is None:
            raise click.UsageError(
                "--run FILE goes with --qrels FILE, and with no --data, --tasks, --benchmark or --index."
            )
        _score_runs(runs, qrels, metrics, output, as_json)
        return
    if not folders and not tasks and benchmark is None:
        raise click.UsageError(
            "Give --data DIR (a folder or file to score), or --tasks NAME or --benchmark NAME (of mteb)."
        )
    opened = index_asked is not None and Path(index_asked).is_dir()
    if options["profile"] and (opened or not folders):
        raise click.UsageError(
            "--profile goes with --data, whose first documents calibrate it; an index brings its own."
        )
    if opened and (dims or layers):
        raise click.UsageError("--dims and --layers go without an index, which has its own; leave them out.")
    if index_asked is not None and precisions:
        raise click.UsageError("--precision goes without --index, whose recipe says how rows are kept.")
    from embedkit.eval.mteb_index import recipe_of
    from embedkit.eval.mteb_tasks import find_benchmark, find_tasks
    from embedkit.eval.run import Plan, check_searched, read_tasks, run
    from embedkit.eval.variants import grid

    places = [_place(folder, split) for folder in folders]
    judged = [_measured(task, metrics) for path, its in places for task in read_tasks(path, its, type_asked)]
    known = [*find_tasks(tasks), *(find_benchmark(benchmark) if benchmark is not None else [])]
    if opened:
        check_searched([*judged, *known])
    plan = Plan(
        tasks=[*judged, *known],
        output=output,
        query_prompt=options.pop("prompt_name"),
        calibrate=places[0][0] if options.pop("profile") else None,
        index=None if index_asked is None else Path(index_asked) if opened else recipe_of(index_asked),
        cache=cache or output / "cache",
        variants=grid(dims, layers, precisions),
        command=shlex.join(["embedkit", "eval", *click.get_current_context().meta["arguments"]]),
        model=load_arguments(options),
    )
    reports, failed = run(plan, progress=progress_wanted(quiet))
    errors = list(failed.values())
    if not reports:
        *errors, last = errors
    for error in errors:
        click.echo(f"Error: {error}", err=True)
    if not reports:
        raise last
    _print_reports(reports, as_json)
    if not as_json and not quiet:
        click.echo(f"Written to {output / 'report.md'} and {output / 'report.json'}", err=True)
    if failed:
        raise click.exceptions.Exit(DataError.exit_code)


def _place(text: str, split: str | None) -> tuple[Path, str | None]:
    """Path and split of "DIR" or "DIR:SPLIT"."""
    path, colon, own = text.rpartition(":")
    return (Path(path), own) if colon and path and not Path(text).exists() else (Path(text), split)


def _measured(task: Task, metrics: tuple[str, ...]) -> Task:
    """The task by the metrics that were asked for, where it is retrieval; others have those of their protocol."""
    from embedkit.eval.retrieval import Retrieval

    return replace(task, metrics=metrics) if metrics and isinstance(task, Retrieval) else task


def _score_runs(runs: tuple[Path, ...], qrels: Path, metrics: tuple[str, ...], output: Path, as_json: bool) -> None:
    from embedkit.eval.metrics import METRICS
    from embedkit.eval.report import write_reports
    from embedkit.eval.runs import evaluate_run, read_judged

    stems = [path.name.removesuffix(".gz").rpartition(".")[0] or path.name for path in runs]
    if len(set(stems)) < len(stems):
        raise click.UsageError(f"Two runs have one name ({', '.join(stems)}), which is that of their folder below -o.")
    judged = read_judged(qrels, metrics or METRICS)
    reports = {stem: evaluate_run(path, judged, qrels) for stem, path in zip(stems, runs, strict=True)}
    for stem, report in reports.items():
        write_reports(output / stem if len(runs) > 1 else output, {judged.name: report}, {})
    _print_reports(reports, as_json)


def _print_reports(reports: dict[str, Report], as_json: bool) -> None:
    from embedkit.eval.report import plain

    if as_json:
        facts = {
            name: {"scores": report.scores, "intervals": report.intervals, "units": report.units}
            for name, report in reports.items()
        }
        click.echo(json.dumps(plain({"tasks": facts}), indent=1))
        return
    shown = {" ".join(name.split()): report for name, report in reports.items()}  # of a name with a line break, too
    width = max(map(len, shown))
    for name, report in shown.items():
        for metric, score in report.scores.items():
            low, high = report.intervals.get(metric, (None, None))
            interval = "" if low is None else f"  [{low:.4f}, {high:.4f}]"
            click.echo(f"{name:{width}}  {metric:10}  {score:.4f}{interval}")
