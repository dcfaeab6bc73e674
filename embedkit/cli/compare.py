"""embedkit compare"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from embedkit.cli.options import output_options, set_up_output

FOLDER = click.Path(path_type=Path)


@click.command("compare")
@click.argument("one", metavar="RESULTS-A", type=FOLDER)
@click.argument("other", metavar="RESULTS-B", type=FOLDER)
@output_options
def compare_command(one: Path, other: Path, as_json: bool, quiet: bool, log: Path | None) -> None:
    """Say whether B differs from A by more than chance.

    \b
    embedkit eval --data scifact -o a
    embedkit eval --data scifact -o b --model intfloat/e5-small-v2
    embedkit compare a b

    RESULTS-A and RESULTS-B are folders that `embedkit eval -o` wrote, of the same data. For each task that both have:
    the difference of its main score with a 95 % bootstrap interval, p by Fisher's randomisation test over the queries
    (or pairs), also adjusted for the number of tasks (Holm), Cohen's d, how many queries B won, tied and lost, and the
    queries that moved most.
    """
    set_up_output(quiet, log)
    from embedkit.eval.compare import compare, markdown
    from embedkit.eval.report import read_reports

    found = compare(read_reports(one), read_reports(other))
    click.echo(json.dumps([asdict(task) for task in found], indent=1) if as_json else markdown(found))
