"""embedkit demo"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedkit.cli.options import (
    load_arguments,
    model_options,
    output_options,
    print_facts,
    progress_wanted,
    prompt_names,
    set_up_output,
)

if TYPE_CHECKING:
    from embedkit.corpus.docstrings import Definition
    from embedkit.encoders import TextEncoder
    from embedkit.eval.serving import Served
    from embedkit.index import Index
    from embedkit.types import Document, Vectors

FOLDER = "demo.index"
DOCUMENTS, HELD_OUT = 3000, 500
DIMS_A_CODE = 4  # dimensions that one code of four bits stands for: 48 bytes a document for the default model
QUESTIONS = (
    "fill missing values along an axis",
    "solve a system of linear equations",
    "how far apart are two probability distributions",
    "split data into a training set and a test set",
    "remove noise from a signal",
)


@click.command("demo")
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help=f"Where the index goes.  [default: {FOLDER}, replaced]",
)
@model_options
@output_options
def demo_command(output: Path | None, as_json: bool, quiet: bool, log: Path | None, **options: Any) -> None:
    """Everything at once, on real documents that are on this machine.

    \b
    embedkit demo
    embedkit demo -o somewhere.index
    embedkit demo --model intfloat/e5-small-v2 --json

    Embeds the documentation of the Python packages installed here, builds an exact and a bi-granular index, answers five
    questions, and measures how well a docstring is found by its first sentence, which is taken out of the document.
    """
    set_up_output(quiet, log)
    from embedkit.corpus.docstrings import installed_definitions
    from embedkit.encoders import load
    from embedkit.eval.metrics import trec_eval

    trec_eval()
    folder = _free_folder(output)
    _remark("Reading the documentation of the installed packages ...", quiet or as_json)
    definitions = installed_definitions(DOCUMENTS)
    encoder = load(**load_arguments(options), **prompt_names(options, "query"))
    _remark(f"Embedding {len(definitions):,} docstrings ...", quiet or as_json)
    documents = [_document(definition) for definition in definitions]
    vectors = _embedded(documents, encoder, quiet)
    if folder.exists():
        shutil.rmtree(folder)  # the last demo's; kept until there is something to put in its place
    index = _build(folder, documents, vectors, _layouts(encoder.dim)["bi-granular"], encoder)
    answers = {question: index.search(question, k=3) for question in QUESTIONS}
    _remark(f"Measuring on {HELD_OUT} held-out docstrings ...", quiet or as_json)
    measured = _measure(definitions, documents, vectors, encoder, quiet)
    if as_json:
        print_facts({name: asdict(row) for name, row in measured.items()}, as_json)
        return
    for question, hits in answers.items():
        click.echo(f"\n{question}?")
        for document, score in zip(hits.documents[0], hits.scores[0], strict=False):  # type: ignore[index]
            click.echo(f"  {score:.3f}  {document.id}: {document.metadata['summary'][:90]}")
    click.echo(
        f"\nKnown-item retrieval: {len(_held_out(definitions))} first sentences, each to find its docstring among {len(documents):,}\n"
    )
    click.echo(_table(measured))
    click.echo(f'\nGo on searching:  embedkit search {folder} "draw random samples without replacement"')


def _free_folder(output: Path | None) -> Path:
    """The default folder is the demo's own and replaced when it holds an index; a folder that was named is not."""
    from embedkit.errors import UsageError
    from embedkit.index.manifest import OLD_MANIFEST, manifest_numbers, read_manifest
    from embedkit.storage import check_absent

    folder = output or Path(FOLDER)
    if output is None and folder.exists():
        if manifest_numbers(folder):
            read_manifest(folder)  # refuses somebody else's
        elif not ((folder / OLD_MANIFEST).is_file() and (folder / "fine.npy").is_file()):
            raise UsageError(f"{folder} is there already and holds no index; name another folder with -o.")
    else:
        check_absent(folder)
    return folder


def _layouts(dim: int) -> dict[str, str]:
    """Name -> coarse level."""
    return {"exact": "none", "bi-granular": f"PQ{dim // DIMS_A_CODE}x4fs" if dim % DIMS_A_CODE == 0 else "SQ4"}


def _remark(line: str, silent: bool) -> None:
    if not silent:
        click.echo(line, err=True)


def _document(definition: Definition, text: str | None = None) -> Document:
    from embedkit.types import Document

    body = definition.docstring if text is None else text
    return Document(
        definition.name, f"{definition.signature} {body}".strip(), definition.name, {"summary": definition.summary}
    )


def _embedded(documents: Sequence[Document], encoder: TextEncoder, quiet: bool) -> Vectors:
    import numpy as np

    from embedkit.engine import embed_documents

    windows = embed_documents(documents, encoder, total=len(documents), progress=progress_wanted(quiet))
    return np.concatenate([rows for _, rows in windows])


def _build(folder: Path, documents: Sequence[Document], vectors: Vectors, coarse: str, encoder: TextEncoder) -> Index:
    from embedkit.index import Layout
    from embedkit.jobs import RowSource, index_vectors, metric_of, open_index, source_of

    rows = RowSource(vectors, [document.id for document in documents], source=source_of(encoder, first=documents[0]))
    index_vectors(rows, folder, Layout(metric_of(encoder.similarity), coarse), documents)
    return open_index(folder, encoder)


def _measure(
    definitions: Sequence[Definition],
    documents: Sequence[Document],
    vectors: Vectors,
    encoder: TextEncoder,
    quiet: bool,
) -> dict[str, Served]:
    """Both layouts over the same documents, the held-out ones without their first sentence."""
    from embedkit.eval.serving import measure

    held_out = _held_out(definitions)
    stripped = [_document(definitions[row], definitions[row].rest) for row in held_out]
    changed, rows = list(documents), vectors.copy()
    for row, document in zip(held_out, stripped, strict=True):
        changed[row] = document
    rows[held_out] = _embedded(stripped, encoder, quiet)
    queries = encoder.encode([definitions[row].summary for row in held_out], kind="query")
    answers = [{documents[row].id: 1} for row in held_out]
    with tempfile.TemporaryDirectory() as scratch:
        return {
            name: measure(_build(Path(scratch) / name, changed, rows, coarse, encoder), queries, answers)
            for name, coarse in _layouts(encoder.dim).items()
        }


def _held_out(definitions: Sequence[Definition]) -> list[int]:
    """A fixed sample of those whose first sentence is theirs alone and that say something after it."""
    from collections import Counter

    import numpy as np

    times = Counter(definition.summary for definition in definitions)
    fit = [
        row for row, d in enumerate(definitions) if times[d.summary] == 1 and len(d.summary) >= 20 and len(d.rest) >= 80
    ]
    chosen = np.random.default_rng(0).choice(len(fit), min(HELD_OUT, len(fit)), replace=False)
    return [fit[position] for position in sorted(chosen)]


def _table(measured: dict[str, Served]) -> str:
    heads = ("", "nDCG@10", "95 % interval", "queries/s", "p50 ms", "p99 ms", "RAM", "disk")
    rows = [heads]
    for name, row in measured.items():
        low, high = row.interval
        times = (f"{row.queries_per_second:,.0f}", f"{row.p50_ms:.2f}", f"{row.p99_ms:.2f}")
        sizes = (f"{row.bytes_in_ram / 1e6:.2f} MB", f"{row.bytes_on_disk / 1e6:.2f} MB")
        rows.append((name, f"{row.ndcg:.3f}", f"{low:.3f} to {high:.3f}", *times, *sizes))
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if cell[:1].isdigit() else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    )
