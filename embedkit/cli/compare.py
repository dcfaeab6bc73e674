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
@click.option(
    "--html",
    "page",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the comparison as a page with a picture, too.",
)
@output_options
def compare_command(one: Path, other: Path, page: Path | None, as_json: bool, quiet: bool, log: Path | None) -> None:
    """Say whether B differs from A by more than chance.

    \b
    embedkit eval --data scifact -o a
    embedkit eval --data scifact -o b --model intfloat/e5-small-v2
    embedkit compare a b

    RESULTS-A and RESULTS-B are folders that `embedkit eval -o` wrote, of the same data; of a grid, those of two
    variants. For each task that both have:
    the difference of its main score with a 95 % bootstrap interval, p by Fisher's randomisation test over the queries
    (or pairs), also adjusted for the number of tasks (Holm), Cohen's d, how many queries B won, tied and lost, and the
    queries that moved most.
    """
    set_up_output(quiet, log)
    from embedkit.eval.compare import compare, markdown
    from embedkit.eval.report import plain, read_reports, write_escaped

    found = compare(read_reports(one), read_reports(other))
    if page is not None:
        from embedkit.eval.compare_page import compare_page
        from embedkit.storage import writable

        write_escaped(writable(page), compare_page(found, *_short_names(one, other)))
    click.echo(json.dumps(plain([asdict(task) for task in found]), indent=1) if as_json else markdown(found))


def _short_names(one: Path, other: Path) -> tuple[str, str]:
    """The folders' own names, and what stands before these where they are the same."""
    names = one.resolve().name, other.resolve().name
    return names if names[0] != names[1] else (str(one), str(other))
