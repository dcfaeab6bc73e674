"""Options that several commands share, and what they turn into."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import click

from embedkit.errors import DataError, IntegrityError, UsageError
from embedkit.escapes import escaped
from embedkit.types import Kind

if TYPE_CHECKING:
    from embedkit.corpus import Fields

Command = TypeVar("Command", bound=Callable[..., Any])
MODEL_OPTIONS = ("revision", "device", "backend", "dtype", "threads", "batch_tokens", "max_tokens")


folder_argument = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
sparse_model_option = click.option(
    "--sparse-model", metavar="NAME|FOLDER", help="Of a sparse leg by a model, where it lies elsewhere now."
)
sparse_queries_option = click.option(
    "--sparse-queries",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="What the sparse leg is asked by --queries: jsonl of ids and weights.",
)


def model_options(command: Command) -> Command:
    """The options of every command that loads a model."""
    return _with(
        command,
        click.option(
            "--model",
            metavar="NAME|FOLDER",
            help="Model folder or hub id. [default: all-MiniLM-L6-v2, or the index's own]",
        ),
        click.option("--revision", help="Commit, tag or branch of a hub id."),
        click.option("--device", help="cpu, cuda, cuda:1, ...; of `embed` also cuda:0,cuda:1.  [default: auto]"),
        click.option(
            "--backend", type=click.Choice(["auto", "openvino", "torch"]), help="What computes.  [default: auto]"
        ),
        click.option("--dtype", help="float32, bfloat16 or float16; auto takes the faster.  [default: auto]"),
        click.option("--threads", type=int, help="CPU threads of the model.  [default: all cores]"),
        click.option("--batch-tokens", type=int, help="Padded tokens a batch.  [default: by device]"),
        click.option("--max-tokens", type=int, help="Cut longer texts there.  [default: the model's limit]"),
        click.option("--prompt-name", help="A prompt that the model stores, instead of the one for the role."),
    )


def profile_option(command: Command) -> Command:
    """Of the commands that read texts before there is an index; those of an index take its own."""
    shown = "int8 products, calibrated on the first documents; a space of its own.  [default: none]"
    return _with(command, click.option("--profile", type=click.Choice(["fast"]), help=shown))


def corpus_options(command: Command) -> Command:
    """The options of every command that reads documents."""
    return _with(
        command,
        click.option(
            "--id",
            "id_field",
            metavar="FIELD|row",
            help="Field of the id; 'row' numbers the rows.  [default: _id, id or docid]",
        ),
        click.option(
            "--text",
            "text_fields",
            metavar="FIELD[,FIELD]",
            help="Field of the text; several are joined.  [default: text]",
        ),
        click.option("--title", "title_field", metavar="FIELD", help="Field of the title.  [default: title]"),
        click.option(
            "--image",
            "image_field",
            metavar="FIELD",
            help="Field of an image: its path, or datasets' bytes and path; embedded alone, or with --text.",
        ),
        click.option(
            "--leave-out",
            "left_out",
            metavar="FIELD[,FIELD]",
            help="Fields that are not kept beside the text; of parquet not even read.",
        ),
        click.option("--limit", type=click.IntRange(1), help="Take the first N rows."),
    )


def output_options(command: Command) -> Command:
    """The options of every command."""
    return _with(
        command,
        click.option("--json", "as_json", is_flag=True, help="Print facts as JSON."),
        click.option("-q", "--quiet", is_flag=True, help="No progress, no remarks."),
        click.option(
            "--log",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Append progress to this file, one JSON object a line.",
        ),
    )


def _with(command: Command, *options: Callable[[Any], Any]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def fields(options: dict[str, Any]) -> Fields:
    """Takes the corpus options out of `options`, but for --limit."""
    from embedkit.corpus import Fields

    names, left_out = options.pop("text_fields"), options.pop("left_out")
    text = tuple(names.split(",")) if names else None
    leave_out = tuple(left_out.split(",")) if left_out else ()
    return Fields(options.pop("id_field"), text, options.pop("title_field"), options.pop("image_field"), leave_out)


def load_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Takes the model options out of `options`, as arguments of `load`; --prompt-name stays there."""
    arguments = {name: value for name in MODEL_OPTIONS if (value := options.pop(name)) is not None}
    return {"model": options.pop("model"), **arguments}


def devices_of(options: dict[str, Any]) -> list[str]:
    """Takes --device out of `options` where it names several."""
    if "," not in (options["device"] or ""):
        return []
    devices = [name.strip() for name in options["device"].split(",")]
    options["device"] = None
    return devices


def profile_arguments(options: dict[str, Any], begun: dict[str, Any], source: str, columns: Fields) -> dict[str, Any]:
    """Takes --profile out of `options`, as arguments of `load`: none where a begun run brings its own.

    Raises UsageError for standard input, which cannot be read twice.
    """
    if options.pop("profile") is None or "profile" in begun:
        return {}
    from embedkit.corpus import read_corpus

    if source == "-":
        raise UsageError("--profile reads the first documents twice, which standard input cannot give; give a file.")
    return {"profile": "fast", "calibrate": (document.full_text for document in read_corpus(source, columns))}


def prompt_names(options: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """Takes --prompt-name out of `options`, as the argument of `load` that gives it to inputs of this kind."""
    name = options.pop("prompt_name")
    return {} if name is None else {"prompt_names": {kind: name}}


def begun_with(ledger: Path, workers: int = 1) -> dict[str, Any]:
    """The arguments of `load` with which an unfinished run was begun, to go on with them where none are given."""
    from embedkit.engine.ledger import AFRESH, head_of

    if (head := head_of(ledger)) is None:
        return {}
    known = {**head["settings"], **head["compute"]}
    texts = {name: known[name] for name in ("backend", "dtype") if name in head["compute"]}
    try:
        numbers = {name: int(known[name]) for name in ("threads", "batch_tokens", "max_tokens") if name in known}
    except (ValueError, TypeError):
        raise IntegrityError(f"{ledger} says what no job was begun with; {AFRESH}.") from None
    if "threads" in numbers:
        numbers["threads"] *= workers  # each worker had its share
    profile = {"profile": known["profile"]} if "profile" in known else {}
    return {**texts, **numbers, **profile}


class Size(click.ParamType[int]):
    """Bytes: 500000000, 500MB, 16GB."""

    name = "size"
    UNITS: ClassVar = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B?)", str(value).upper())
        if match is None or match[2] not in self.UNITS:
            self.fail(f"{value!r} came; expected bytes, such as 500MB or 16GB.", param, ctx)
        return int(float(match[1]) * self.UNITS[match[2]])


def set_up_output(quiet: bool, log: Path | None) -> None:
    """Remarks go to standard error as plain lines; with --log everything goes to the file as JSON, too."""
    logger = logging.getLogger("embedkit")
    logger.handlers.clear()
    logger.propagate = False
    remarks = logging.StreamHandler()
    remarks.setFormatter(_Escaped())
    remarks.setLevel(logging.ERROR if quiet else logging.INFO)
    logger.addHandler(remarks)
    logger.setLevel(logging.INFO)
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        lines = logging.FileHandler(log, encoding="utf-8")
        lines.setFormatter(_JsonLines())
        logger.addHandler(lines)
        logger.setLevel(logging.DEBUG)


class _Escaped(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return escaped(super().format(record))


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fact = {"time": round(record.created, 3), "level": record.levelname.lower(), "message": record.getMessage()}
        if hasattr(record, "rows"):
            fact["rows"] = record.rows
        return escaped(json.dumps(fact, ensure_ascii=False))


def print_facts(facts: Any, as_json: bool) -> None:
    """A mapping, as JSON or as lines of name and value."""
    if as_json:
        click.echo(json.dumps(facts, indent=1, ensure_ascii=False, default=str))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        lines = [_shown(entry) for entry in value] if isinstance(value, list) else [_shown(value)]
        for number, line in enumerate(lines):
            click.echo(f"{name.replace('_', ' ') if number == 0 else '':{width}}  {line}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(part)}" for name, part in value.items())
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "none" if value is None else str(value)


def progress_wanted(quiet: bool) -> bool:
    return not quiet and sys.stderr.isatty()


def read_sparse_queries(path: Path, queries: Iterable[str]) -> list[dict[str, float]]:
    """The weights of these queries. Raises DataError where one has none."""
    from embedkit.index.sparse_input import read_weights

    known = {identifier: weights for _, identifier, weights in read_weights(path)}
    missing = next((query for query in queries if query not in known), None)
    if missing is not None:
        raise DataError(f"{path} has no weights of the query {missing!r}; give every query a row.")
    return [known[query] for query in queries]
