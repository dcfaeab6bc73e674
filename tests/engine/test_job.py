"""The job on disk: what it writes, when it goes on, and when it refuses to."""

from __future__ import annotations

import json
import logging
import shutil
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

import embedkit.engine.run as run
from embedkit.corpus import read_corpus
from embedkit.engine import embed_to_file, open_vectors
from embedkit.engine.ledger import Ledger
from embedkit.errors import DataError, IntegrityError, ModelError, Stopped, UsageError
from embedkit.storage import locked_file, read_json
from embedkit.types import Document

from .fakes import DIM, Plain, Windowed, documents, rows

WINDOW = 3
ODD = [
    Document("a", "short"),
    Document("b", "x" * 30),
    Document("c", "bad one"),
    Document("d", ""),
    Document("é", "exactly 12ch"),
    Document("f", "bad"),
    Document("g", "y" * 13),
]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "WINDOW", WINDOW)


def contents(folder: Path) -> dict[str, Any]:
    """Every file by name; a manifest without its times."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    for name in found:
        if name.endswith(".manifest.json"):
            body = json.loads(found[name])
            assert set(body.pop("times")) == {"created", "seconds"}
            found[name] = body
    return found


class Ends(Exception):
    """Of a run that is to be resumed."""


def until(given: Iterable[Document], count: int) -> Iterator[Document]:
    """The first so many documents, and then a sudden end."""
    for number, document in enumerate(given):
        if number == count:
            raise Ends
        yield document


def stopped(given: Iterable[Document], count: int, path: Path, encoder: Any = None, **options: Any) -> Path:
    """A run that ended after so many documents."""
    with pytest.raises(Ends):
        embed_to_file(until(given, count), path, encoder or Plain(), **options)
    return path


def records(path: Path) -> list[Any]:
    with locked_file(path.with_suffix(".ledger"), path) as file:
        return [record for _, record in Ledger(file)]


# --- what is written ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", [Plain(), Windowed()], ids=["plain", "windowed"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 7])
def test_rows_and_ids_stand_in_input_order(tmp_path: Path, count: int, encoder: Any) -> None:
    given = [Document(f"d{n}", f"{n}") for n in range(count)]
    manifest = embed_to_file(iter(given), tmp_path / "x.npy", encoder)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), rows(document.text for document in given))
    assert (tmp_path / "x.ids.txt").read_text().split() == [document.id for document in given]
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy", "x.ids.txt", "x.manifest.json"}
    assert (manifest["count"], manifest["documents"], manifest["set_aside"]) == (count, count, 0)


def test_the_manifest_counts_and_names(tmp_path: Path) -> None:
    manifest = embed_to_file(ODD, tmp_path / "x.npy", Windowed(), kind="query")
    assert manifest == read_json(tmp_path / "x.manifest.json")
    said = {name: manifest[name] for name in ("count", "documents", "empty_texts", "set_aside", "truncated")}
    assert said == {
        "count": 5,
        "documents": 7,
        "empty_texts": 1,
        "set_aside": 2,
        "truncated": {"count": 2, "ids": ["b", "g"]},
    }
    assert (manifest["first_input"], manifest["kind"], manifest["window"]) == ("query: short", "query", WINDOW)
    lines = (tmp_path / "x.quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"id": "c", "reason": "it is bad"},
        {"id": "f", "reason": "it is bad"},
    ]
    assert open_vectors(tmp_path / "x.npy").ids == ["a", "b", "d", "é", "g"]
    assert set(manifest["files"]) == {"x.npy", "x.ids.txt", "x.quarantine.jsonl"}


def test_the_first_input_of_an_encoder_without_prompts_is_the_text(tmp_path: Path) -> None:
    manifest = embed_to_file([Document("a", "text", title="title")], tmp_path / "x.npy", Plain())
    assert manifest["first_input"] == "title text"


def test_a_list_of_truncated_ids_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedkit.engine.records.LISTED", 4)
    given = [Document(str(n), "z" * 20) for n in range(10)]
    manifest = embed_to_file(given, tmp_path / "x.npy", Windowed())
    assert manifest["truncated"] == {"count": 10, "ids": ["0", "1", "2", "3"]}


CHUNKS = [  # id, document, start, end of every chunk of ODD, cut every 12 characters
    ("a#0", "a", 0, 5),
    ("b#0", "b", 0, 12),
    ("b#1", "b", 12, 24),
    ("b#2", "b", 24, 30),
    ("d#0", "d", 0, 0),
    ("é#0", "é", 0, 12),
    ("g#0", "g", 0, 12),
    ("g#1", "g", 12, 13),
]


def test_chunks_have_ids_of_their_own_and_name_their_document(tmp_path: Path) -> None:
    manifest = embed_to_file(ODD, tmp_path / "x.npy", Windowed(), on_long="chunk")
    opened = open_vectors(tmp_path / "x.npy")
    assert opened.ids == [chunk[0] for chunk in CHUNKS]
    lines = (tmp_path / "x.chunks.jsonl").read_text().splitlines()
    assert [tuple(json.loads(line).values()) for line in lines] == CHUNKS
    assert list(json.loads(lines[0])) == ["id", "document", "start", "end"]
    texts = {document.id: document.text for document in ODD}
    np.testing.assert_array_equal(opened.rows, rows(texts[name][start:end] for _, name, start, end in CHUNKS))
    assert (manifest["count"], manifest["documents"], manifest["truncated"]["count"]) == (8, 7, 0)


@pytest.mark.parametrize("on_long", ["truncate", "chunk"])
def test_parquet_holds_the_same_as_npy(tmp_path: Path, on_long: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedkit.engine.outputs.GROUP", 2)
    embed_to_file(ODD, tmp_path / "x.npy", Windowed(), on_long=on_long)
    embed_to_file(ODD, tmp_path / "y.parquet", Windowed(), on_long=on_long)
    plain, opened = open_vectors(tmp_path / "x.npy"), open_vectors(tmp_path / "y.parquet")
    np.testing.assert_array_equal(opened.rows, plain.rows)
    assert (opened.ids, opened.rows.dtype) == (plain.ids, np.float32)
    assert {path.name for path in tmp_path.glob("y.*")} == {
        "y.parquet",
        "y.manifest.json",
        "y.quarantine.jsonl",
        *(["y.chunks.jsonl"] if on_long == "chunk" else []),
    }
    table = pyarrow.parquet.read_table(tmp_path / "y.parquet")
    assert str(table.schema.field("embedding").type).startswith("fixed_size_list<element: float")
    assert table.column("embedding").to_pylist() == plain.rows.tolist()
    if on_long == "chunk":
        columns = [table.column(name).to_pylist() for name in ("id", "document", "start", "end")]
        assert list(zip(*columns, strict=True)) == CHUNKS
    else:
        assert table.column_names == ["id", "embedding"]


@pytest.mark.parametrize("name", ["x.npy", "x.parquet"])
def test_a_shard_without_a_window_is_empty_and_whole(tmp_path: Path, name: str) -> None:
    manifest = embed_to_file(documents(2), tmp_path / name, Plain(), shard=(2, 2))
    opened = open_vectors(tmp_path / name)
    assert (manifest["count"], manifest["first_input"], opened.rows.shape, opened.ids) == (0, None, (0, DIM), [])


@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_a_group_of_windows_without_a_vector_is_no_end(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedkit.engine.outputs.GROUP", 1)
    given = [Document(str(n), "bad" if 3 <= n < 6 else str(n)) for n in range(9)]
    embed_to_file(given, tmp_path / f"x.{form}", Windowed())
    assert open_vectors(tmp_path / f"x.{form}").ids == ["0", "1", "2", "6", "7", "8"]


def test_what_is_no_parquet_of_vectors_is_refused(tmp_path: Path) -> None:
    table = pyarrow.table({"id": ["a", "b"], "embedding": [[1.0, 2.0], [3.0]]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    (tmp_path / "y.parquet").write_bytes(b"PAR1")
    pyarrow.parquet.write_table(pyarrow.table({"id": ["a"]}), tmp_path / "z.parquet")
    for name in "xyz":
        with pytest.raises(DataError, match=rf"{name}\.parquet holds no vectors"):
            open_vectors(tmp_path / f"{name}.parquet")


@pytest.mark.parametrize("numbers", [(1, 1), (1, 2), (2, 2), (1, 4), (4, 4)])
def test_a_shard_has_every_nth_window(tmp_path: Path, numbers: tuple[int, int]) -> None:
    given = documents(14)
    embed_to_file(given, tmp_path / "x.npy", Plain(), shard=numbers)
    part, parts = numbers
    wanted = [document for n, document in enumerate(given) if n // WINDOW % parts == part - 1]
    assert open_vectors(tmp_path / "x.npy").ids == [document.id for document in wanted]
    assert read_json(tmp_path / "x.manifest.json")["shard"] == f"{part}/{parts}"
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), rows(document.full_text for document in wanted))


@pytest.mark.parametrize("numbers", [(0, 2), (3, 2), (-1, 1)])
def test_a_shard_that_cannot_be_is_refused(tmp_path: Path, numbers: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="expected I/N with I from 1 to N"):
        embed_to_file(documents(2), tmp_path / "x.npy", Plain(), shard=numbers)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("memory", [1, 2, 3, 100])
def test_a_window_beyond_memory_is_halved_in_order(tmp_path: Path, memory: int) -> None:
    given = documents(7)
    path = stopped(documents(9), 8, tmp_path / "x.npy", Plain(memory))
    assert [record["halvings"] for record in records(path)[1:]] == [{1: 2, 2: 1}.get(memory, 0)] * 2
    embed_to_file(given, tmp_path / "y.npy", Plain(memory))
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), rows(document.full_text for document in given))


def test_an_input_that_is_beyond_memory_alone_is_set_aside(tmp_path: Path) -> None:
    given = [*documents(4), Document("h", "huge"), *[Document(f"e{n}", str(n)) for n in range(3)]]
    manifest = embed_to_file(given, tmp_path / "x.npy", Plain())
    assert (manifest["count"], manifest["set_aside"]) == (7, 1)
    opened = open_vectors(tmp_path / "x.npy")
    assert opened.ids == ["d0", "d1", "d2", "d3", "e0", "e1", "e2"]
    texts = {document.id: document.full_text for document in given}
    np.testing.assert_array_equal(opened.rows, rows(texts[name] for name in opened.ids))
    assert json.loads((tmp_path / "x.quarantine.jsonl").read_text()) == {
        "id": "h",
        "reason": "memory ran out for this input alone",
    }


def test_an_index_has_no_place_for_inputs_set_aside() -> None:
    with pytest.raises(ModelError, match="At the document 'h': memory ran out"):
        list(run.embed_documents([Document("a", "b"), Document("h", "huge")], Plain()))
    with pytest.raises(ModelError, match="At the document 'c': it is bad"):
        list(run.embed_documents(ODD, Windowed()))


@pytest.mark.parametrize("encoder", [Plain(), Windowed()], ids=["plain", "windowed"])
@pytest.mark.parametrize("place", [0, 4, 6])
def test_a_document_that_the_model_fails_at_is_named(tmp_path: Path, encoder: Any, place: int) -> None:
    given = documents(7)
    given[place] = Document("culprit", f"nan {place % WINDOW}")
    with pytest.raises(ModelError, match=r"^At the document 'culprit': NaN\.$"):
        embed_to_file(given, tmp_path / "x.npy", encoder)
    with pytest.raises(ModelError, match=r"^At the document 'culprit': NaN\.$"):
        list(run.embed_documents(given, encoder))


def test_a_text_that_is_too_long_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="At the document 'b': Too long"):
        embed_to_file(ODD, tmp_path / "x.npy", Windowed(), on_long="error")
    assert not list(tmp_path.iterdir())  # nothing was done yet


@pytest.mark.parametrize("on_long", ["chunk", "error"])
def test_an_encoder_without_windows_cannot_cut(tmp_path: Path, on_long: Any) -> None:
    with pytest.raises(UsageError, match="is for models that embedkit loads"):
        embed_to_file(documents(2), tmp_path / "x.npy", Plain(), on_long=on_long)
    assert not list(tmp_path.iterdir())


def test_rows_of_another_shape_are_the_models_fault(tmp_path: Path) -> None:
    class Narrow(Plain):
        dim = DIM + 1

    with pytest.raises(ModelError, match=r"rows of shape \(2, 5\); expected \(2, 6\)"):
        embed_to_file(documents(2), tmp_path / "x.npy", Narrow())


def test_progress_is_logged_window_by_window(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="embedkit"):
        embed_to_file(documents(7), tmp_path / "x.npy", Plain())
    assert [record.rows for record in caplog.records if hasattr(record, "rows")] == [3, 6, 7]


# --- going on -------------------------------------------------------------------------------------------------------


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, Any]:
    """The files of an uninterrupted run over ODD and 20 more, in chunks."""
    folder = tmp_path / "whole"
    folder.mkdir()
    embed_to_file(MANY, folder / "x.npy", Windowed(), on_long="chunk")
    return contents(folder)


MANY = [*ODD, *documents(20)]


@pytest.mark.parametrize("first", range(0, 28, 2))
def test_a_run_that_ended_anywhere_goes_on_to_the_same_bytes(tmp_path: Path, whole: dict[str, Any], first: int) -> None:
    folder = tmp_path / "again"
    folder.mkdir()
    for count in (first, min(first + 5, 27), 27):  # 27: ends behind the last document, before publication
        stopped([*MANY, Document("", "")], count, folder / "x.npy", Windowed(), on_long="chunk", resume=True)
        assert {path.name for path in folder.iterdir()} <= {"x.npy.partial", "x.ledger"}
    embed_to_file(MANY, folder / "x.npy", Windowed(), on_long="chunk", resume=True)
    assert contents(folder) == whole


def test_rows_appended_behind_a_last_partial_window_redo_it_whole(tmp_path: Path, whole: dict[str, Any]) -> None:
    folder = tmp_path / "again"
    folder.mkdir()
    for count in (4, 5, 7, 10, 11):

        def ends(_: Any) -> None:
            raise Ends

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Ends):
            patch.setattr("embedkit.engine.job.seal", lambda *_: ends(_))
            embed_to_file(MANY[:count], folder / "x.npy", Windowed(), on_long="chunk", resume=True)
        assert records(folder / "x.npy")[-1]["documents"] == (count - 1) % WINDOW + 1
    embed_to_file(MANY, folder / "x.npy", Windowed(), on_long="chunk", resume=True)
    assert contents(folder) == whole


def test_nothing_done_is_done_again(tmp_path: Path) -> None:
    seen: list[str] = []

    class Watched(Plain):
        def encode(self, inputs: Any, *, kind: str = "document") -> np.ndarray:
            seen.extend(inputs)
            return super().encode(inputs)

    given = documents(9)
    path = stopped(given, 7, tmp_path / "x.npy", Watched())
    embed_to_file(given, path, Watched(), resume=True)
    assert seen == [document.full_text for document in given]


def test_on_a_finished_output_resume_does_nothing(tmp_path: Path) -> None:
    manifest = embed_to_file(documents(4), tmp_path / "x.npy", Plain())
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    assert embed_to_file(documents(9), tmp_path / "x.npy", Plain(), resume=True) == manifest
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()} == before


def test_with_nothing_there_resume_starts(tmp_path: Path) -> None:
    assert embed_to_file(documents(4), tmp_path / "x.npy", Plain(), resume=True)["count"] == 4


def test_what_is_there_is_refused_without_a_word_on_it(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    embed_to_file(documents(4), path, Plain())
    with pytest.raises(UsageError, match=r"x\.npy is there already; choose another name, or add --overwrite"):
        embed_to_file(documents(4), path, Plain())
    path.unlink()
    with pytest.raises(UsageError, match=r"x\.ids\.txt is there already"):
        embed_to_file(documents(4), path, Plain())
    shutil.rmtree(tmp_path)
    stopped(documents(9), 4, path)
    with pytest.raises(UsageError, match=r"was begun and is not finished; go on with --resume .* --overwrite"):
        embed_to_file(documents(9), path, Plain())
    with pytest.raises(UsageError, match="Both resume and overwrite"):
        embed_to_file(documents(9), path, Plain(), resume=True, overwrite=True)
    embed_to_file(documents(5), path, Plain(), overwrite=True)
    assert open_vectors(path).ids == ["d0", "d1", "d2", "d3", "d4"]


def test_somebodys_array_is_not_resumed_over(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.eye(3))
    with pytest.raises(UsageError, match="is there already"):
        embed_to_file(documents(4), tmp_path / "x.npy", Plain(), resume=True)


def test_an_overwritten_output_leaves_nothing_of_its_own(tmp_path: Path) -> None:
    embed_to_file(ODD, tmp_path / "x.npy", Windowed(), on_long="chunk")
    assert len(list(tmp_path.iterdir())) == 5
    embed_to_file(documents(3), tmp_path / "x.npy", Windowed(), overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy", "x.ids.txt", "x.manifest.json"}
    assert open_vectors(tmp_path / "x.npy").ids == ["d0", "d1", "d2"]


def test_an_old_output_stays_readable_while_it_is_overwritten(tmp_path: Path) -> None:
    embed_to_file(documents(4), tmp_path / "x.npy", Plain())
    stopped(documents(12, "new"), 10, tmp_path / "x.npy", overwrite=True)
    assert open_vectors(tmp_path / "x.npy").ids == ["d0", "d1", "d2", "d3"]
    embed_to_file(documents(12, "new"), tmp_path / "x.npy", Plain(), resume=True)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), rows(d.full_text for d in documents(12, "new")))


def test_an_end_before_the_first_window_leaves_what_was_there(tmp_path: Path) -> None:
    embed_to_file(documents(4), tmp_path / "x.npy", Plain())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    stopped(documents(4), 2, tmp_path / "x.npy", overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


CHANGES = {  # what became of the corpus -> the sentence
    "text": (lambda d: [*d[:4], Document("d4", "other"), *d[5:]], "Row 5: the document 'd4' has another text since"),
    "title": (lambda d: [Document("d0", d[0].text), *d[1:]], "Row 1: the document 'd0' has another text since"),
    "id": (
        lambda d: [*d[:5], Document("z", d[5].text), *d[6:]],
        "Row 6: the document 'd5' has given place to 'z' since",
    ),
    "order": (lambda d: [d[0], d[2], d[1], *d[3:]], "Row 2: the document 'd1' has given place to 'd2' since"),
    "missing": (lambda d: [*d[:2], *d[3:]], "Row 3: the document 'd2' has given place to 'd3' since"),
    "inserted": (lambda d: [Document("new", "n"), *d], "Row 1: the document 'd0' has given place to 'new' since"),
    "shorter": (lambda d: d[:4], "Row 5: the document 'd4' is missing since"),
    "shorter by windows": (lambda d: d[:3], "Row 4: the document 'd3' is missing since"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_row_among_those_done_is_named(tmp_path: Path, change: str) -> None:
    given = documents(9)
    path = stopped(given, 7, tmp_path / "x.npy")
    before = contents(tmp_path)
    changed, sentence = CHANGES[change]
    with pytest.raises(DataError, match=sentence):
        embed_to_file(changed(given), path, Plain(), resume=True)
    assert contents(tmp_path) == before
    embed_to_file(given, path, Plain(), resume=True)  # and with the corpus as it was, it goes on
    assert open_vectors(path).ids == [document.id for document in given]


def test_a_change_in_a_partial_window_that_has_grown_is_named_too(tmp_path: Path) -> None:
    given = documents(5)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("embedkit.engine.job.seal", lambda *_: 1 // 0)
        embed_to_file(given, tmp_path / "x.npy", Plain())
    with pytest.raises(DataError, match="Row 5: the document 'd4' has another text"):
        embed_to_file([*given[:4], Document("d4", "x"), *documents(9)[5:]], tmp_path / "x.npy", Plain(), resume=True)


def test_rows_behind_those_done_may_change(tmp_path: Path) -> None:
    path = stopped(documents(9), 7, tmp_path / "x.npy")
    given = [*documents(6), Document("new", "new"), *documents(12)[9:]]
    embed_to_file(given, path, Plain(), resume=True)
    assert open_vectors(path).ids == [document.id for document in given]


SETTINGS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "threads": (Plain(threads="4"), {}, r"\(threads: 2 then, 4 now\)"),
    "dtype and version": (
        Plain(threads="2", dtype="b", torch="2"),
        {},
        r"\(dtype: None then, b now, torch: None then, 2 now\)",
    ),
    "kind": (Plain(threads="2"), {"kind": "query"}, r"\(kind: document then, query now\)"),
    "shard": (Plain(threads="2"), {"shard": (1, 2)}, r"\(shard: None then, 1/2 now\)"),
    "on_long": (Windowed(threads="2"), {"on_long": "chunk"}, r"\(on_long: truncate then, chunk now\)"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_other_settings_are_refused_and_named(tmp_path: Path, name: str) -> None:
    encoder, options, words = SETTINGS[name]
    path = stopped(documents(9), 7, tmp_path / "x.npy", Plain(threads="2"))
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=words):
        embed_to_file(documents(9), path, encoder, resume=True, **options)
    assert contents(tmp_path) == before


def test_another_window_or_form_is_another_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(documents(9), 7, tmp_path / "x.npy")
    with pytest.raises(UsageError, match=r"\(output: x\.npy then, x\.parquet now\)"):
        embed_to_file(documents(9), tmp_path / "x.parquet", Plain(), resume=True)
    monkeypatch.setattr(run, "WINDOW", 4)
    with pytest.raises(UsageError, match=r"\(window: 3 then, 4 now\)"):
        embed_to_file(documents(9), tmp_path / "x.npy", Plain(), resume=True)


@pytest.mark.parametrize("damage", ["flipped", "shorter", "gone"])
def test_vectors_that_changed_since_are_damage(tmp_path: Path, damage: str) -> None:
    path = stopped(documents(9), 7, tmp_path / "x.npy")
    partial = tmp_path / "x.npy.partial"
    content = bytearray(partial.read_bytes())
    content[-1] ^= 1
    if damage == "gone":
        partial.unlink()
    else:
        partial.write_bytes(content if damage == "flipped" else content[:-1])
    with pytest.raises(IntegrityError, match=r"does not hold the vectors .* --overwrite"):
        embed_to_file(documents(9), path, Plain(), resume=True)
    embed_to_file(documents(9), path, Plain(), overwrite=True)
    assert len(open_vectors(path).rows) == 9


def test_a_damaged_ledger_is_refused_unless_overwritten(tmp_path: Path) -> None:
    path = stopped(documents(9), 7, tmp_path / "x.npy")
    ledger = bytearray((tmp_path / "x.ledger").read_bytes())
    ledger[40] ^= 1
    (tmp_path / "x.ledger").write_bytes(ledger)
    for options in ({}, {"resume": True}):
        with pytest.raises(IntegrityError, match=r"x\.ledger is damaged at byte 0, before its last record"):
            embed_to_file(documents(9), path, Plain(), **options)
    embed_to_file(documents(9), path, Plain(), overwrite=True)
    assert len(open_vectors(path).rows) == 9


def test_somebody_elses_ledger_is_never_written_to(tmp_path: Path) -> None:
    (tmp_path / "x.ledger").write_text("2026-01-01 Coffee 3.50\n")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UsageError, match=r"x\.ledger is there and is no ledger of embedkit"):
            embed_to_file(documents(2), tmp_path / "x.npy", Plain(), **options)
    assert contents(tmp_path) == {"x.ledger": b"2026-01-01 Coffee 3.50\n"}


def test_a_second_writer_is_stopped(tmp_path: Path) -> None:
    """And not told to go on with what the first one left, as when that has died."""

    def meanwhile() -> Iterator[Document]:
        yield from documents(4)
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(Stopped, match=r"Another thread of this process is writing .*x\.npy"):
                embed_to_file(documents(1), tmp_path / "x.npy", Plain(), **options)
        yield Document("last", "")

    embed_to_file(meanwhile(), tmp_path / "x.npy", Plain())
    assert open_vectors(tmp_path / "x.npy").ids == ["d0", "d1", "d2", "d3", "last"]


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "x.npy").symlink_to(tmp_path / "disk/big.npy")
    path = stopped(documents(9), 7, tmp_path / "x.npy")
    assert (tmp_path / "disk/big.npy.partial").exists()
    embed_to_file(documents(9), path, Plain(), resume=True)
    assert (tmp_path / "x.npy").is_symlink()
    assert len(open_vectors(path).rows) == 9


def test_a_link_among_the_names_beside_the_vectors_is_replaced(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "from elsewhere"
    folder.mkdir()
    for name in ("x.ids.txt", "x.ids.txt.partial", "x.manifest.json.partial", "x.quarantine.jsonl"):
        (folder / name).symlink_to(victim)
    embed_to_file(documents(4), folder / "x.npy", Plain(), overwrite=True)
    assert open_vectors(folder / "x.npy").ids == ["d0", "d1", "d2", "d3"]
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("name", ["x.ledger", "x.npy.partial"])
def test_what_a_job_grows_in_has_no_other_name(tmp_path: Path, name: str) -> None:
    path = stopped(documents(9), 7, tmp_path / "x.npy")
    (tmp_path / "theirs").hardlink_to(tmp_path / name)
    before = contents(tmp_path)
    with pytest.raises(IntegrityError, match="has another name"):
        embed_to_file(documents(9), path, Plain(), resume=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ids": None}, "ids is None, not a list"),
        ({"ids": ["d0"]}, "do not fit together"),
        ({"vectors": 10**30}, "do not fit together"),
        ({"documents": -1}, "do not fit together"),
        ({"inputs": [0, 1, 9]}, "do not fit together"),
        ({"truncated": [3]}, "do not fit together"),
        ({"failed": {"x": "why"}}, "do not fit together"),
        ({"hashes": "é"}, "do not fit together"),
        ({"spans": [[0, 1]]}, "do not fit together"),
        ({"seconds": "1"}, "seconds is '1', not a number"),
        ({"first_input": 1}, "first_input is 1, not a text"),
    ],
    ids=str,
)
def test_a_window_that_no_job_recorded_is_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    path = stopped(documents(9), 7, tmp_path / "x.npy")
    with locked_file(tmp_path / "x.ledger", path) as file:
        ledger = Ledger(file)
        kept = list(ledger)
        ledger.cut(kept[1][0])
        for number, (_, record) in enumerate(kept[1:]):
            ledger.append({**record, **change} if number == 0 else record)
    with pytest.raises(IntegrityError, match=rf"x\.ledger.*{reason}"):
        embed_to_file(documents(9), path, Plain(), resume=True)


@pytest.mark.parametrize(
    "publish", [{}, [], {"x.npy": {"bytes": "4", "sha256": ""}}, {"x.npy": {"bytes": 4, "sha256": ""}}]
)
def test_a_publication_that_no_job_recorded_removes_nothing(tmp_path: Path, publish: Any) -> None:
    path = stopped(documents(9), 7, tmp_path / "x.npy")
    with locked_file(tmp_path / "x.ledger", path) as file:
        Ledger(file).append({"publish": publish})
    (tmp_path / "x.npy").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(IntegrityError, match="x"):
        embed_to_file(documents(9), path, Plain(), resume=True)
    assert contents(tmp_path) == before


def test_the_manifest_of_another_form_vouches_for_nothing(tmp_path: Path) -> None:
    embed_to_file(documents(4), tmp_path / "x.npy", Plain())
    with pytest.raises(UsageError, match=r"x\.ids\.txt is there already"):
        embed_to_file(documents(4), tmp_path / "x.parquet", Plain())
    embed_to_file(documents(4), tmp_path / "x.parquet", Plain(), overwrite=True)
    with pytest.raises(IntegrityError, match=r"belongs to x\.parquet, not to x\.npy"):
        open_vectors(tmp_path / "x.npy")


@pytest.mark.parametrize("name", ["x.chunks.jsonl", "x.quarantine.jsonl"])
def test_somebodys_file_of_a_name_that_a_job_may_need_is_kept(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        embed_to_file(documents(4), tmp_path / "x.npy", Plain())
    assert contents(tmp_path) == {name: b"mine"}


def test_a_half_published_output_says_how_to_finish(tmp_path: Path) -> None:
    embed_to_file(documents(4), tmp_path / "x.npy", Plain())
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("embedkit.engine.outputs.remove", lambda *_: 1 // 0)
        embed_to_file(documents(4, "new"), tmp_path / "x.npy", Plain(), overwrite=True)
    (tmp_path / "x.npy").rename(tmp_path / "x.npy.partial")
    shutil.copy(tmp_path / "x.ids.txt", tmp_path / "x.npy")
    with pytest.raises(IntegrityError, match="finish it with embedkit embed --resume"):
        open_vectors(tmp_path / "x.npy")
    embed_to_file([], tmp_path / "x.npy", Plain(), resume=True)  # the corpus is not read again
    np.testing.assert_array_equal(open_vectors(tmp_path / "x.npy").rows, rows(d.full_text for d in documents(4, "new")))


@pytest.mark.long
def test_memory_grows_by_sixteen_bytes_a_row_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "WINDOW", 256)

    def peak(count: int) -> int:
        given = ({"id": f"a longer id, number {n}", "text": f"{n}"} for n in range(count))
        tracemalloc.start()
        try:
            embed_to_file(read_corpus(given), tmp_path / f"{count}.npy", Plain())
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = 10_000, 40_000
    peak(256)  # what is imported and cached the first time
    assert peak(many) - peak(few) <= 16 * (many - few) + 200_000
