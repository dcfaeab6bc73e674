"""embedkit doctor"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedkit.cli.options import load_arguments, model_options, output_options, prompt_names, set_up_output
from embedkit.errors import ModelError

if TYPE_CHECKING:
    from embedkit.encoders.doctor.examination import Examination
    from embedkit.encoders.doctor.parity import Parity
    from embedkit.encoders.doctor.patient import Finding


@click.command("doctor")
@click.argument("name", metavar="[MODEL]", required=False)
@click.option(
    "--against",
    metavar="URL|MODEL",
    help="Compare with a server (OpenAI's schema), with sentence-transformers, openvino or torch, or with another model.",
)
@model_options
@output_options
def doctor_command(
    name: str | None, against: str | None, as_json: bool, quiet: bool, log: Path | None, **options: Any
) -> None:
    """Find out what is wrong with a model, or why another server gives other rows.

    \b
    embedkit doctor intfloat/e5-small-v2
    embedkit doctor my-model/ --json
    embedkit doctor my-model/ --against http://localhost:8080

    Without --against: the direction of attention, padding and batches, prompts, the pooled token, the closing token, the
    norm, overflow at full length in each dtype, agreement of backends, the vocabulary. With it: the least cosine of the
    same texts on both sides, the share of texts with the same nearest neighbour, and what the other side does otherwise.
    Only a URL, or a model that is not here, uses the network. Exit code 4 where something is found.
    """
    set_up_output(quiet, log)
    if name is not None and options["model"] is not None:
        raise click.UsageError("MODEL and --model name the same thing; give one of them.")
    options["model"] = name or options["model"]
    arguments = {**load_arguments(options), **prompt_names(options, "document" if against else "query")}
    if against is not None:
        from embedkit.encoders.doctor.parity import parity

        compared = parity(against=against, **arguments)
        _print(as_json, compared, _parity_lines(compared))
        _end(compared.findings)
    else:
        from embedkit.encoders.doctor.examination import doctor

        examination = doctor(**arguments)
        _print(as_json, examination, _examination_lines(examination))
        _end(examination.findings)


def _print(as_json: bool, result: Any, lines: list[str]) -> None:
    if as_json:
        facts = dataclasses.asdict(result) | {"findings": [finding._asdict() for finding in result.findings]}
        click.echo(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        click.echo("\n".join(lines))


def _examination_lines(examination: Examination) -> list[str]:
    lines = _finding_lines(examination.findings)
    groups = (("well", examination.seen), ("not checked", examination.not_checked))
    for title, checks in groups:
        lines += [f"{title:12}{name:22}{said}" for name, said in checks.items()]
    return lines


def _parity_lines(compared: Parity) -> list[str]:
    lines = [
        f"least cosine        {compared.cosine:.6f}",
        f"same nearest text   {compared.agreement:.0%}",
        *_finding_lines(compared.findings),
    ]
    return lines + [f"tried       {name:22}least cosine {cosine:.4f}" for name, cosine in compared.tried.items()]


def _finding_lines(findings: list[Finding]) -> list[str]:
    return [
        line
        for finding in findings
        for line in (f"{'found':12}{finding.name}", f"{'':12}{finding.evidence}", f"{'':12}{finding.fix}")
    ]


def _end(findings: list[Finding]) -> None:
    if findings:
        raise click.exceptions.Exit(ModelError.exit_code)
