"""embedkit index export"""

from __future__ import annotations

from pathlib import Path

import click

from embedkit.cli.options import folder_argument, output_options, print_facts, set_up_output


@click.command("export")
@folder_argument
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="OUT",
    type=click.Path(path_type=Path),
    help="The new folder; must not exist.",
)
@click.option(
    "--format",
    "kind",
    required=True,
    type=click.Choice(["numpy", "faiss", "lancedb", "qdrant"]),
    help="numpy: .npy and parquet; faiss: a flat index and parquet; lancedb, qdrant: a store (extra 'stores').",
)
@output_options
def export_command(folder: Path, output: Path, kind: str, as_json: bool, quiet: bool, log: Path | None) -> None:
    """Write the rows of an index, with ids, texts and metadata, in the format of another library.

    \b
    embedkit index export my.index -o my.arrays --format numpy
    embedkit index export my.index -o my.faiss --format faiss
    embedkit index export my.index -o my.lancedb --format lancedb

    What is deleted stays behind. Before OUT appears, stored rows are searched in it: where they do not find what an exact search of the
    index finds, the exit code is 5 and nothing is kept.
    """
    set_up_output(quiet, log)
    from embedkit.export import export_index

    facts = export_index(folder, output, kind)
    if as_json:
        print_facts(facts, as_json)
    else:
        parity = facts["parity"]
        click.echo(
            f"{facts['rows']:,} rows in {output} ({kind}); {parity['queries']} of them, searched there, find the same "
            f"{parity['neighbours']} nearest as in the index."
        )
