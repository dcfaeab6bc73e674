"""embedkit index build | add | delete | compact | plan | tune | info | verify | export"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from embedkit.cli.export import export_command
from embedkit.cli.options import (
    Size,
    begun_with,
    corpus_options,
    fields,
    folder_argument,
    load_arguments,
    model_options,
    output_options,
    print_facts,
    profile_arguments,
    profile_option,
    progress_wanted,
    prompt_names,
    set_up_output,
)
from embedkit.cli.plan import plan_command
from embedkit.cli.tune import tune_command
from embedkit.encoder import OnLong
from embedkit.errors import DataError, Stopped, UsageError

AGAIN = "Stopped; what is done is kept: run it again with --resume to go on."
documents_option = click.option(
    "--documents", metavar="CORPUS", help="With VECTORS: the texts that were embedded, in the same order."
)
vectors_option = click.option(
    "--vectors",
    metavar="FIELD",
    help="Of parquet by another program: the column of vectors, which are taken as they are, beside ids, texts and metadata.",
)
resume_option = click.option("--resume", is_flag=True, help="Go on where an earlier run ended.")
ram_option = click.option("--ram", type=Size(), metavar="SIZE", help="What training may take, such as 500MB.")


@click.group("index")
def index_group() -> None:
    """Build, change, describe and verify an index.

    \b
    embedkit index build corpus.jsonl -o my.index
    embedkit index add my.index more.jsonl
    embedkit index delete my.index d17 d23
    """


def _recipe(context: click.Context, _: click.Parameter, name: str | None) -> Any:
    """Makes its settings the defaults of the options, so that those given beat it; returns what the index keeps of it."""
    if name is None:
        return None
    from embedkit.jobs import IndexRecipe

    recipe = IndexRecipe.read(name)
    context.default_map = asdict(recipe)
    return recipe.record(name)


@index_group.command("build")
@click.argument("source", metavar="CORPUS|VECTORS")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="The index folder; must not exist.",
)
@click.option(
    "--coarse",
    default="auto",
    show_default=True,
    metavar="auto|none|FACTORY",
    help="Codes in RAM: a faiss factory string; none is exact.",
)
@click.option(
    "--bytes-per-vector", type=int, metavar="N", help="RAM that auto may give a vector.  [default: dim/8 + 8]"
)
@click.option(
    "--recall",
    type=float,
    metavar="SHARE",
    help="Of the exact 10 nearest, that settings are held to on documents held out.  [default: 0.97, and a margin]",
)
@click.option(
    "--fine",
    type=click.Choice(["float16", "float32", "int8"]),
    default="float16",
    show_default=True,
    help="Rows on disk that verify.",
)
@click.option(
    "--sparse",
    metavar="none|bm25|MODEL|FILE",
    help="A leg of terms beside the vectors: bm25, or bm25:k1=1.2,b=0.75,stem=german,stop=none; a sparse model; a jsonl file of "
    "ids and weights.  [default: none]",
)
@click.option(
    "--recipe",
    is_eager=True,
    callback=_recipe,
    metavar="NAME|FILE",
    help="Settings of the options above, by name or from a YAML file; an option that is given beats it.",
)
@click.option("--metric", type=click.Choice(["cosine", "dot"]), help="[default: the model's own]")
@click.option(
    "--on-long",
    type=click.Choice(["truncate", "chunk", "error"]),
    default="truncate",
    show_default=True,
    help="Texts beyond the model's limit; chunk gives them several passages.",
)
@documents_option
@vectors_option
@resume_option
@ram_option
@corpus_options
@profile_option
@model_options
@output_options
def build_command(
    source: str,
    output: Path,
    documents: str | None,
    on_long: OnLong,
    resume: bool,
    as_json: bool,
    quiet: bool,
    log: Path | None,
    **options: Any,
) -> None:
    """Build an index from documents, or from vectors: what `embedkit embed` wrote, .npy files, or a folder of clip-retrieval.

    \b
    embedkit index build corpus.jsonl -o my.index
    embedkit index build big.csv -o big.index --id sku --text name,description --coarse IVF1024,SQ8 --resume
    embedkit index build corpus.npy --documents corpus.jsonl -o my.index --recipe hybrid

    --coarse auto searches exactly up to 20,000 rows, and above through inverted lists of 4-bit codes whose settings are held
    to a recall on documents held out; a query's shortlist is always scored again by the fine rows. However a run ends, the same
    command with --resume goes on with it.
    """
    set_up_output(quiet, log)
    from embedkit.corpus import check_source
    from embedkit.encoders import load
    from embedkit.engine import holds_vectors
    from embedkit.index import Index
    from embedkit.index.manifest import manifest_numbers
    from embedkit.jobs import build_index, check_begun

    if resume and manifest_numbers(output):
        _say_built(Index(output), output, as_json)
        return
    check_begun(output, resume=resume)  # before a model is loaded for nothing
    profile = {"profile": options.pop("profile")}
    given = {"fields": fields(options), "resume": resume, **options}
    arguments = {**load_arguments(given), **prompt_names(given, "document")}
    with _kept(output / "build.ledger"), _threads(arguments.get("threads")):
        if options["vectors"] is not None or holds_vectors(Path(source)):
            _refuse_model({**arguments, **profile})
            index = build_index(source, output, documents=documents, **given)
        elif documents is not None:
            raise UsageError(
                "--documents belongs to VECTORS (what `embedkit embed` wrote); a corpus brings its own texts."
            )
        else:
            check_source(source)
            begun = begun_with(output / "build.ledger") if resume else {}
            model = load(**{**begun, **arguments, **profile_arguments(profile, begun, source, given["fields"])})
            index = build_index(source, output, model=model, on_long=on_long, progress=progress_wanted(quiet), **given)
    _say_built(index, output, as_json)
    if deleted := index.info()["deleted"]:
        raise DataError(
            f"{deleted:,} documents were set aside, the model cannot take them; all others are in {output}."
        )


def _say_built(index: Any, output: Path, as_json: bool) -> None:
    if as_json:
        print_facts(index.info(), as_json)
    elif index.manifest.source.fingerprint is None and index.manifest.sparse is not None:
        click.echo(
            f'{len(index):,} documents in {output}; their vectors name no model: embedkit search {output} "a question" --mode sparse'
        )
    elif index.manifest.source.fingerprint is None:
        click.echo(f"{len(index):,} vectors in {output}; they name no model: search them with vectors, from Python.")
    else:
        click.echo(f'{len(index):,} documents in {output}; search them with: embedkit search {output} "a question"')


def _refuse_model(arguments: dict[str, Any]) -> None:
    if any(value is not None for name, value in arguments.items() if name != "threads"):
        raise UsageError("Vectors and options of a model came; vectors are taken as they are: leave the options out.")


@contextmanager
def _kept(ledger: Path) -> Iterator[None]:
    """Ctrl-C in a job that has a ledger is no loss."""
    try:
        yield
    except KeyboardInterrupt:
        if ledger.exists():
            raise Stopped(AGAIN) from None
        raise


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    from embedkit.index.faiss_import import faiss_threads

    with faiss_threads(count):
        yield


@index_group.command("add")
@folder_argument
@click.argument("source", metavar="CORPUS|VECTORS")
@click.option(
    "--sparse",
    metavar="FILE|MODEL",
    help="The weights of these documents, where the sparse leg is from a file; its model, where that lies elsewhere now.",
)
@documents_option
@vectors_option
@resume_option
@ram_option
@corpus_options
@model_options
@output_options
def add_command(
    folder: Path,
    source: str,
    documents: str | None,
    resume: bool,
    as_json: bool,
    quiet: bool,
    log: Path | None,
    **options: Any,
) -> None:
    """Add documents to an index, or replace those of the same id.

    \b
    embedkit index add my.index more.jsonl
    embedkit index add my.index more.npy --documents more.jsonl
    embedkit index add my.index big.jsonl --resume

    One commit: readers see all of it or nothing. The documents are embedded by the model that built the index.
    """
    set_up_output(quiet, log)
    from embedkit.engine import holds_vectors
    from embedkit.index import Index
    from embedkit.jobs import add_to_index

    given = {"fields": fields(options), "resume": resume, **options}
    arguments = {**load_arguments(given), **prompt_names(given, "document")}
    threads = arguments.get("threads")
    with _kept(folder / "add.ledger"), _threads(threads):
        if options["vectors"] is not None or holds_vectors(Path(source)):
            _refuse_model(arguments)
            added = add_to_index(folder, source, documents=documents, **given)
        else:
            begun = begun_with(folder / "add.ledger") if resume else {}
            options = {name: value for name, value in {**begun, **arguments}.items() if value is not None}
            added = add_to_index(folder, source, progress=progress_wanted(quiet), **given, **options)
    with Index(folder) as index:
        _say_changed({"added": added.documents, "documents": len(index), "version": index.manifest.number}, as_json)
    if added.set_aside:
        raise DataError(
            f"{added.set_aside:,} documents were set aside, the model cannot take them; the others are added."
        )


@index_group.command("delete")
@folder_argument
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option(
    "--ids",
    "id_file",
    metavar="FILE",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Ids, one a line; '-' reads them from standard input.",
)
@click.option("--where", metavar="JSON", help='A filter instead: \'{"year": {"lt": 2000}}\'.')
@output_options
def delete_command(
    folder: Path,
    ids: tuple[str, ...],
    id_file: Path | None,
    where: str | None,
    as_json: bool,
    quiet: bool,
    log: Path | None,
) -> None:
    """Delete documents by id or by a filter, with all their passages.

    \b
    embedkit index delete my.index d17 d23
    embedkit index delete my.index --ids gone.txt
    embedkit index delete my.index --where '{"year": {"lt": 2000}}'

    Their space is freed by `embedkit index compact`. Ids that are not there are no error.
    """
    set_up_output(quiet, log)
    if sum((bool(ids), id_file is not None, where is not None)) != 1:
        raise click.UsageError("Give ids, --ids FILE or --where JSON, one of them.")
    from embedkit.index import Index

    names = list(ids) if id_file is None else _lines(id_file)
    with Index(folder) as index:
        count = index.delete(where=parsed_where(where)) if where is not None else index.delete(names)
        _say_changed({"deleted": count, "documents": len(index), "version": index.manifest.number}, as_json)


def _lines(path: Path) -> list[str]:
    """Raises UsageError for a file that is not there, DataError for one that is no UTF-8."""
    if str(path) != "-" and not path.is_file():
        raise UsageError(f"{path} is not there; expected a file of ids, one a line.")
    from embedkit.corpus.documents import standard_input
    from embedkit.corpus.id_list import read_ids

    content = standard_input().read() if str(path) == "-" else path.read_bytes()
    return list(filter(None, read_ids(content, str(path))))


def parsed_where(text: str) -> Any:
    """The JSON of --where. Raises a usage error for text that is none."""
    try:
        found = json.loads(text, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"--where is no JSON ({error}); expected for example '{{\"year\": 2020}}'.") from None
    if not isinstance(found, dict):
        raise click.UsageError(f"--where holds {text[:50]}; expected an object such as '{{\"year\": 2020}}'.")
    return found


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names differ; of a name that came twice, JSON's reader would keep the last condition alone."""
    found = dict(pairs)
    if len(found) < len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise click.UsageError(
            f"--where names {name!r} twice in one object; write both conditions into one, as in "
            '\'{"year": {"gte": 2000, "lt": 2010}}\', or into a list: {"and": [...]}.'
        )
    return found


def _say_changed(facts: dict[str, int], as_json: bool) -> None:
    if as_json:
        print_facts(facts, as_json)
    else:
        (done, count), documents = next(iter(facts.items())), facts["documents"]
        click.echo(f"{count:,} documents {done}; the index holds {documents:,}.")


@index_group.command("compact")
@folder_argument
@ram_option
@output_options
def compact_command(folder: Path, ram: int | None, as_json: bool, quiet: bool, log: Path | None) -> None:
    """Make one segment of all, without what was deleted.

    \b
    embedkit index compact my.index
    embedkit index compact my.index --ram 2GB
    embedkit index compact my.index --json
    """
    set_up_output(quiet, log)
    from embedkit.index import Index

    with Index(folder) as index:
        before = index.bytes_on_disk()
        index.compact(ram=ram)
        after = index.bytes_on_disk()
        if as_json:
            print_facts({"documents": len(index), "bytes_before": before, "bytes_on_disk": after}, as_json)
        else:
            click.echo(f"{len(index):,} documents in one segment; {before:,} bytes before, {after:,} now.")


@index_group.command("info")
@folder_argument
@output_options
def info_command(folder: Path, as_json: bool, quiet: bool, log: Path | None) -> None:
    """Print what an index holds and what made it.

    \b
    embedkit index info my.index
    embedkit index info my.index --json
    embedkit index info my.index --json | jq .fingerprint
    """
    set_up_output(quiet, log)
    from embedkit.index import Index

    with Index(folder) as index:
        print_facts(index.info(), as_json)


@index_group.command("verify")
@folder_argument
@output_options
def verify_command(folder: Path, as_json: bool, quiet: bool, log: Path | None) -> None:
    """Read every byte of an index and compare it with its checksums; exit 5 names the file and the bytes that differ.

    \b
    embedkit index verify my.index
    embedkit index verify my.index --json
    embedkit index verify my.index && rsync -a my.index/ elsewhere:my.index/
    """
    set_up_output(quiet, log)
    from embedkit.index import Index

    with Index(folder, check=True) as index:
        files = len(index.manifest.named_files()) + 1
        if as_json:
            print_facts({"path": str(folder), "intact": True, "files": files}, as_json)
        else:
            click.echo(f"{folder} is intact: {len(index):,} documents, {index.bytes_on_disk():,} bytes.")


index_group.add_command(plan_command)
index_group.add_command(export_command)
index_group.add_command(tune_command)
