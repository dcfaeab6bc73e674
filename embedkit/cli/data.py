"""embedkit data"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from embedkit.cli.options import output_options, set_up_output
from embedkit.errors import DataError


@click.group("data")
def data_group() -> None:
    """Look at the data of an evaluation.

    \b
    embedkit data check scifact
    embedkit data check pairs.tsv
    embedkit data check my-data --json
    """


@data_group.command("check")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@output_options
def check_command(folder: Path, as_json: bool, quiet: bool, log: Path | None) -> None:
    """Find out what is wrong with judged data, before anything is measured on them.

    \b
    embedkit data check scifact
    embedkit data check pairs.tsv
    embedkit data check my-data --json

    DIR is what `embedkit eval --data` takes: a BEIR folder, a folder of such, or a file or folder of pairs, labelled texts,
    bitext or reranking lists. Looks for ids that come twice, judgements of what is not there, grades and scores that are
    none, a missing header, empty and repeated texts, texts that stand in train and in another split (the same or lightly
    edited), queries that find themselves, damaged characters. Exit code 3 where something is found.
    """
    set_up_output(quiet, log)
    from embedkit.eval.data_check.check import check_data

    found = check_data(folder)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in found], indent=1, ensure_ascii=False))
    else:
        for finding in found:
            click.echo(f"{finding.name}\n    {finding.evidence}\n    {finding.fix}")
        if not found:
            click.echo(f"Nothing wrong was found in {folder}.")
    if found:
        raise click.exceptions.Exit(DataError.exit_code)
