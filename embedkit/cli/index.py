"""embedkit index build | info | verify"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embedkit.cli.options import (
    corpus_options,
    fields,
    load_arguments,
    model_options,
    output_options,
    print_facts,
    progress_wanted,
    prompt_names,
    set_up_output,
)


@click.group("index")
def index_group() -> None:
    """Build, describe and verify an index.

    \b
    embedkit index build corpus.jsonl -o my.index
    embedkit index info my.index
    embedkit index verify my.index
    """


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
    "--fine",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="Rows on disk that verify.",
)
@click.option("--metric", type=click.Choice(["cosine", "dot"]), help="[default: the model's own]")
@click.option("--documents", metavar="CORPUS", help="With VECTORS: the texts that were embedded, in the same order.")
@corpus_options
@model_options
@output_options
def build_command(
    source: str,
    output: Path,
    coarse: str,
    fine: str,
    metric: str | None,
    documents: str | None,
    limit: int | None,
    as_json: bool,
    quiet: bool,
    log: Path | None,
    **options: Any,
) -> None:
    """Build an index from documents, or from vectors that `embedkit embed` wrote.

    \b
    embedkit index build corpus.jsonl -o my.index
    embedkit index build big.csv -o big.index --id sku --text name,description --coarse IVF1024,SQ8
    embedkit index build corpus.npy --documents corpus.jsonl -o my.index

    The folder appears whole or not at all. --coarse auto searches exactly up to 50,000 rows and through inverted lists
    of 8-bit codes above; a query's shortlist is always scored again by the fine rows.
    """
    set_up_output(quiet, log)
    from embedkit.corpus import check_source
    from embedkit.encoders import load
    from embedkit.engine import holds_vectors
    from embedkit.errors import UsageError
    from embedkit.jobs import build_index
    from embedkit.storage import check_absent

    check_absent(output)  # before a model is loaded for nothing
    columns = fields(options)
    arguments = {**load_arguments(options), **prompt_names(options, "document")}
    given: dict[str, Any] = {"coarse": coarse, "fine": fine, "metric": metric, "fields": columns, "limit": limit}
    if holds_vectors(Path(source)):
        if any(value is not None for value in arguments.values()):
            raise UsageError(
                "Vectors and options of a model came; vectors are taken as they are: leave the options out."
            )
        index = build_index(source, output, documents=documents, **given)
    elif documents is not None:
        raise UsageError("--documents belongs to VECTORS (what `embedkit embed` wrote); a corpus brings its own texts.")
    else:
        check_source(source)
        index = build_index(source, output, model=load(**arguments), progress=progress_wanted(quiet), **given)
    if as_json:
        print_facts(index.info(), as_json)
    elif index.manifest.source.fingerprint is None:
        click.echo(f"{len(index):,} vectors in {output}; they name no model: search them with vectors, from Python.")
    else:
        click.echo(f'{len(index):,} documents in {output}; search them with: embedkit search {output} "a question"')


@index_group.command("info")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
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

    print_facts(Index(folder).info(), as_json)


@index_group.command("verify")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@output_options
def verify_command(folder: Path, as_json: bool, quiet: bool, log: Path | None) -> None:
    """Read every byte of an index and compare it with its checksums; exit 5 names the file that differs.

    \b
    embedkit index verify my.index
    embedkit index verify my.index --json
    embedkit index verify my.index && rsync -a my.index/ elsewhere:my.index/
    """
    set_up_output(quiet, log)
    from embedkit.index import Index
    from embedkit.index.manifest import check_files, read_manifest

    check_files(folder, read_manifest(folder))  # before anything in it is opened
    index = Index(folder)
    if as_json:
        print_facts({"path": str(folder), "intact": True, "files": len(index.manifest.files) + 1}, as_json)
    else:
        click.echo(f"{folder} is intact: {len(index):,} documents, {index.bytes_on_disk():,} bytes.")
