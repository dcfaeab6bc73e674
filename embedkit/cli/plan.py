"""embedkit index plan"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedkit.cli.options import Size, output_options, print_facts, set_up_output
from embedkit.errors import Infeasible

if TYPE_CHECKING:
    from embedkit.index.plan import Option

COLUMNS = ("", "coarse", "bytes", "fine", "RAM", "disk", "build", "its peak", "a query", "queries/s", "machines")


UNITS = (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


class Count(click.ParamType[int]):
    """A whole number, also as 1e8."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 1 <= number < 1 << 48 or number != int(number):
            self.fail(f"{value!r} came; expected a whole number from 1 on, such as 1000000 or 1e8.", param, ctx)
        return int(number)


@click.command("plan")
@click.option("--rows", type=Count(), required=True, metavar="N", help="Vectors, such as 1e8.")
@click.option("--dim", type=click.IntRange(1, 65_536), required=True, metavar="D", help="Their width.")
@click.option("--ram", type=Size(), required=True, metavar="SIZE", help="Of one machine, such as 16GB.")
@click.option(
    "--recall", type=float, metavar="SHARE", help="As of `index build`.  [default: 0.97, and a margin for questions]"
)
@click.option(
    "--text-bytes",
    type=click.FloatRange(0),
    default=0,
    metavar="N",
    help="Mean of a document's title, text and metadata.  [default: 0]",
)
@click.option("--threads", type=click.IntRange(1), help="Of one machine.  [default: all cores of this one]")
@click.option(
    "--calibration",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Costs that index/plan_calibration.py measured.  [default: those that embedkit brings]",
)
@output_options
def plan_command(
    rows: int,
    dim: int,
    ram: int,
    recall: float | None,
    text_bytes: float,
    threads: int | None,
    calibration: Path | None,
    as_json: bool,
    quiet: bool,
    log: Path | None,
) -> None:
    """Say what an index would take, before anything is built: RAM, disk, time, and how many machines.

    \b
    embedkit index plan --rows 1e8 --dim 384 --ram 16GB
    embedkit index plan --rows 1e8 --dim 384 --ram 16GB --recall 0.95 --text-bytes 500
    embedkit index plan --rows 2e6 --dim 768 --ram 8GB --json

    A line an option: light codes of several sizes, or none (exact), over fine rows of each dtype, on as few machines as hold them; each
    has an equal part of the rows and answers every query. Numbers are of one machine. The star marks the fewest machines, then the
    most queries/s. Embedding the documents is not counted. Exit code 6 where no number of machines of this size will do.
    """
    set_up_output(quiet, log)
    from embedkit.errors import UsageError
    from embedkit.index.costs import SHIPPED, read_calibration
    from embedkit.index.faiss_import import thread_count
    from embedkit.index.plan import Goal, best, options

    if recall is not None and not 0 < recall < 1:
        raise UsageError(f"recall={recall} came; expected a share between 0 and 1, such as 0.95.")
    model = read_calibration(calibration or SHIPPED)
    found = options(Goal(rows, dim, ram, threads or thread_count(), recall, text_bytes), model)
    chosen = best(found)
    facts = [{**option.facts(), "chosen": option is chosen} for option in found]
    if as_json:
        print_facts(
            {"rows": rows, "dim": dim, "ram": ram, "recall": recall, "machine": model.machine, "options": facts},
            as_json,
        )
    else:
        _print_table(found, chosen)
        if not quiet:
            machine = ", ".join(f"{name} {value}" for name, value in model.machine.items())
            click.echo(f"Costs were measured on: {machine}.", err=True)
    if chosen is None:
        raise Infeasible(
            f"No option holds {rows:,} rows of {dim} dimensions in machines of {ram:,} bytes"
            f"{'' if recall is None else f' at a recall of {recall}'}; a process needs {model.process:,} before any row: give more RAM."
        )


def _print_table(found: list[Option], chosen: Option | None) -> None:
    rows = [COLUMNS, *(_cells(option, option is chosen) for option in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for row in rows:
        texts = [
            cell.ljust(width) if number in (0, 1, 3) else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(texts).rstrip())


def _cells(option: Option, is_chosen: bool) -> tuple[str, ...]:
    facts = option.facts()
    return (
        "*" if is_chosen else "" if option.prediction.reached else "-",
        option.coarse or "none",
        "" if option.bytes_per_vector is None else str(option.bytes_per_vector),
        option.fine,
        *(size(facts[name]) for name in ("ram", "disk")),
        duration(facts["build_seconds"]),
        size(facts["build_peak"]),
        f"{1e3 * facts['query_seconds']:,.3g} ms",
        f"{facts['queries_per_second']:,.3g}",
        f"{option.machines:,}",
    )


def size(count: float) -> str:
    """1234567890 -> "1.23 GB"."""
    unit, length = next((pair for pair in UNITS if count >= 0.9995 * pair[1]), UNITS[-1])
    return f"{count / length:.3g} {unit}"


def duration(seconds: float) -> str:
    """5400 -> "1.5 h"."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
