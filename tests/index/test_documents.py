"""The documents of one segment: what goes in comes out, the same bytes each time, and damage is never passed on."""

from __future__ import annotations

import errno
import os
import random
import sqlite3
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit.errors import DataError, IntegrityError
from embedkit.index import document_writer as writing
from embedkit.index import documents as module
from embedkit.index.document_writer import DocumentWriter
from embedkit.index.documents import AT_ONCE, PRESENT, DocumentReader
from embedkit.types import Document

DOCUMENTS = [
    Document(
        f"d{i}",
        f"text {i} é 猫",
        title="t" * (i % 2),
        metadata={"n": i, "tags": ["a", None, "b" * (i % 3)], "of": {"day": i % 7 / 2}},
    )
    for i in range(1200)
]


def write(path: Path, *batches: Iterable[Document], texts: bool = True) -> Path:
    writer = DocumentWriter(path)
    for batch in batches:
        writer.append(batch, texts=texts)
    writer.close()
    return path


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> DocumentReader:
    path = tmp_path_factory.mktemp("documents") / "a name with # and ?.sqlite"
    return DocumentReader(write(path, DOCUMENTS[:700], DOCUMENTS[700:]), 1200)


@pytest.mark.parametrize("count", [0, 1, AT_ONCE, AT_ONCE + 1, 1200])
def test_numbers_and_ids_give_the_documents_that_went_in(reader: DocumentReader, count: int) -> None:
    assert reader.ids(np.arange(count)) == {number: f"d{number}" for number in range(count)}
    assert reader.documents(range(count)) == dict(enumerate(DOCUMENTS[:count]))
    assert reader.numbers([f"d{number}" for number in range(count)]) == {f"d{n}": n for n in range(count)}
    assert list(reader.stream(1200 - count)) == DOCUMENTS[1200 - count :]


def test_ids_that_are_not_there_are_left_out(reader: DocumentReader) -> None:
    assert reader.ids([5, 5]) == {5: "d5"}
    assert reader.numbers(["d5", "x", "", "\ud800", "d5", "D5", "d5 "]) == {"d5": 5}


@pytest.mark.parametrize("number", [-1, 1200, 10**30])
def test_a_number_outside_is_damage(reader: DocumentReader, number: int) -> None:
    with pytest.raises(IntegrityError, match=rf"is damaged \(document {number} was asked for, it holds 1200\)"):
        reader.ids([5, number])
    with pytest.raises(IntegrityError):
        reader.documents([5, number])


def test_threads_may_share_it(reader: DocumentReader) -> None:
    def ask(i: int) -> tuple[object, ...]:
        day = reader.posting("of.day", i % 7 / 2).tolist()
        return reader.documents([i])[i], reader.numbers([f"d{i}"]), reader.ids([i]), day

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(400)))
    assert found == [(DOCUMENTS[i], {f"d{i}": i}, {i: f"d{i}"}, list(range(i % 7, 1200, 7))) for i in range(400)]


def test_a_writer_may_change_its_thread(tmp_path: Path) -> None:
    writer = DocumentWriter(tmp_path / "a.sqlite")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(writer.append, DOCUMENTS[:10], texts=True).result()
        assert writer.count == 10
        pool.submit(writer.close).result()
    assert DocumentReader(tmp_path / "a.sqlite", 10).numbers(["d9"]) == {"d9": 9}


def test_ids_and_metadata_alone_may_be_stored(tmp_path: Path) -> None:
    path = write(tmp_path / "a.sqlite", [Document("x", "long", "title", {"a": 1})], texts=False)
    assert DocumentReader(path, 1).documents([0]) == {0: Document("x", "", metadata={"a": 1})}
    assert b"long" not in path.read_bytes()


def test_a_file_without_documents_is_one(tmp_path: Path) -> None:
    reader = DocumentReader(write(tmp_path / "a.sqlite"), 0)
    assert (reader.fields(), list(reader.stream()), reader.numbers(["x"]), reader.ids([])) == ([], [], {}, {})
    assert reader.posting("a", 1).tolist() == []


def test_a_file_of_more_than_two_gigabytes_opens(tmp_path: Path) -> None:
    """Beyond what SQLite can be told of the longest value."""
    path = write(tmp_path / "d.sqlite", DOCUMENTS[:3])
    os.truncate(path, 3 << 30)  # sparse
    assert DocumentReader(path, 3).documents([2]) == {2: DOCUMENTS[2]}


@pytest.mark.parametrize("held", [1, 5000, writing.HELD])
def test_the_same_documents_make_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: DocumentReader, held: int
) -> None:
    """Whatever the batches were, whenever the entries went to the side file, and whatever lay there before."""
    monkeypatch.setattr(writing, "HELD", held)
    path = tmp_path / "a.sqlite"
    for leftover in ("a.sqlite", "a.sqlite-journal", "a.sqlite.sorting"):
        (tmp_path / leftover).write_bytes(b"left by a crash" * 1000)
    write(path, [], DOCUMENTS[:1], iter(DOCUMENTS[1:977]), DOCUMENTS[977:])
    assert path.read_bytes() == reader._path.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.sqlite"]


def test_a_writer_holds_entries_of_few_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "HELD", 2000)
    writer, most = DocumentWriter(tmp_path / "a.sqlite"), 0
    for document in DOCUMENTS:
        writer.append([document], texts=True)
        most = max(most, len(writer._hashes), len(writer._runs))
    writer.close()
    assert most < 100


@pytest.mark.parametrize("between", [0, 1, 1100])
def test_an_id_that_came_before_is_refused(tmp_path: Path, between: int) -> None:
    writer = DocumentWriter(tmp_path / "a.sqlite")
    writer.append([Document("x", ""), *DOCUMENTS[:between], Document("x", "")], texts=True)
    with pytest.raises(DataError, match=rf"Document {between + 1}: the id 'x' came before, at document 0; give"):
        writer.close()
    assert not (tmp_path / "a.sqlite.sorting").exists()


def test_ids_of_one_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (module, writing):
        monkeypatch.setattr(place, "hash_of", lambda name: len(name) << 40)
    reader = DocumentReader(write(tmp_path / "a.sqlite", DOCUMENTS), 1200)
    assert reader.numbers(["d7", "d12", "d1199", "dd", "d"]) == {"d7": 7, "d12": 12, "d1199": 1199}


@pytest.mark.parametrize(
    "document",
    [
        Document("\ud800", ""),
        Document("x", "\ud800"),
        Document("x", "", "\ud800"),
        Document("x", "", metadata={"\ud800": 1}),
        Document("x", "", metadata={"a": ["\ud800"]}),
        Document("x", "", metadata={"a": object()}),
        Document("x", "", metadata={"a": b"bytes"}),
        Document("x", "", metadata={(1, 2): 3}),  # type: ignore[dict-item]
        Document("x", "", metadata={"a": 10**5000}),
    ],
)
def test_what_cannot_be_stored_is_refused(tmp_path: Path, document: Document) -> None:
    with pytest.raises(DataError, match=r"Document 1 \('.+'\) cannot be stored \(.+\); give it Unicode"):
        write(tmp_path / "a.sqlite", [DOCUMENTS[0], document])


@pytest.mark.parametrize("depth", [101, 100_000])
@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: {"a": inner}], ids=["list", "mapping"])
def test_metadata_nested_too_deep_is_refused(tmp_path: Path, wrap: Callable[[Any], Any], depth: int) -> None:
    value: Any = 1
    for _ in range(depth - 1):
        value = wrap(value)
    assert write(tmp_path / "a.sqlite", [Document("x", "", metadata={"a": 1})])
    with pytest.raises(DataError, match="at most 100 levels deep"):
        write(tmp_path / "a.sqlite", [Document("x", "", metadata={"a": wrap(value)})])


@pytest.mark.parametrize("moment", ["append", "close"])
def test_a_full_disk_is_an_os_error(tmp_path: Path, moment: str) -> None:
    writer = DocumentWriter(tmp_path / "a.sqlite")
    if moment == "append":
        writer._connection.execute("PRAGMA max_page_count=8")
        with pytest.raises(OSError, match="full") as caught:
            writer.append(DOCUMENTS, texts=True)
    else:
        writer.append(DOCUMENTS, texts=True)
        writer._side.execute("PRAGMA max_page_count=8")
        with pytest.raises(OSError, match="full") as caught:
            writer.close()
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / "a.sqlite")


def test_fields_are_those_with_a_value(reader: DocumentReader, tmp_path: Path) -> None:
    assert reader.fields() == ["n", "of.day", "tags"]
    odd = {
        "": 1,
        "a.b": 1,
        "a": {"c": [], "d": {}, "e": [{"f": "x"}]},
        "null": None,
        "nan": float("nan"),
        "猫 '\"": True,
    }
    path = write(tmp_path / "a.sqlite", [Document("x", "", metadata=odd)])
    assert DocumentReader(path, 1).fields() == ["", "a.b", "a.e.f", "猫 '\""]


def test_postings_name_the_documents(reader: DocumentReader) -> None:
    assert reader.posting("n", 77).tolist() == [77]
    assert reader.posting("tags", "bb").tolist() == list(range(2, 1200, 3))
    assert reader.posting("tags", PRESENT).tolist() == list(range(1200))
    assert reader.posting("tag", "a").tolist() == reader.posting("n", "77").tolist() == []
    assert sorted(reader.postings("n", (100, True), (1100.5, False))) == list(range(101, 1101))


# ------------------------------------------------------------------------------------------------------------- damage


SMALL = [
    Document(
        f"id {i}",
        f"text of {i} " * 3,
        title=f"t{i}",
        metadata={"n": i % 5, "s": f"v{i % 7}", "unique": i, "f": i / 2, "l": ["a", i % 2]},
    )
    for i in range(150)
]


def answers(path: Path) -> list[tuple[str, object]]:
    """What every method of a reader gives, None where it raises IntegrityError; any other error is one of the test."""
    calls: dict[str, Callable[[DocumentReader], Any]] = {
        "ids": lambda r: r.ids([0, 3, 149]),
        "all ids": lambda r: r.ids(range(150)),
        "documents": lambda r: r.documents([1, 70, 149]),
        "numbers": lambda r: r.numbers([*(d.id for d in SMALL[::7]), "x"]),
        "stream": lambda r: list(r.stream()),
        "fields": lambda r: r.fields(),
        "value": lambda r: r.posting("s", "v3").tolist(),
        "no value": lambda r: r.posting("s", "v33").tolist(),
        "no field": lambda r: r.posting("z", "v33").tolist(),
        "present": lambda r: r.posting("l", PRESENT).tolist(),
        "range": lambda r: r.postings("unique", (20, True), (99, False)).tolist(),
        "open range": lambda r: r.postings("f", (float("-inf"), False), ("", False)).tolist(),
    }
    try:
        reader = DocumentReader(path, 150)
    except IntegrityError:
        return [(name, None) for name in calls]
    found = []
    for name, call in calls.items():
        try:
            found.append((name, call(reader)))
        except IntegrityError as error:
            assert str(error).startswith(f"{path} is damaged (")
            found.append((name, None))
    reader.close()
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("small") / "a.sqlite", SMALL)


def wrong(path: Path, right: list[tuple[str, object]]) -> list[str]:
    return [
        name for (name, good), (_, got) in zip(right, answers(path), strict=True) if got is not None and got != good
    ]


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_give_no_wrong_answer(small: Path, tmp_path: Path, seed: int) -> None:
    intact, right = small.read_bytes(), answers(small)
    assert None not in dict(right).values()
    rng = random.Random(seed)
    places = [*rng.sample(range(len(intact)), 120), *rng.sample(range(1000), 20)]  # the header and the schema, too
    raised = 0
    for place in places:
        damaged = bytearray(intact)
        damaged[place] ^= rng.randrange(1, 256)
        (tmp_path / "a.sqlite").write_bytes(damaged)
        assert wrong(tmp_path / "a.sqlite", right) == [], place
        raised += None in dict(answers(tmp_path / "a.sqlite")).values()
    assert raised > 20


@pytest.mark.parametrize("size", [0, 1, 99, 100, 1000, 4096, 8192, 20480, -4096, -1])
def test_a_shorter_file_gives_no_wrong_answer(small: Path, tmp_path: Path, size: int) -> None:
    (tmp_path / "a.sqlite").write_bytes(small.read_bytes()[:size])
    assert wrong(tmp_path / "a.sqlite", answers(small)) == []
    if size != -1:  # which may have been a byte that nobody reads
        assert None in dict(answers(tmp_path / "a.sqlite")).values()


def test_exchanged_and_zeroed_pages_give_no_wrong_answer(small: Path, tmp_path: Path) -> None:
    intact, right = small.read_bytes(), answers(small)
    pages = [intact[start : start + 4096] for start in range(0, len(intact), 4096)]
    for i in range(len(pages)):
        for other in (pages[i - 1], bytes(4096), b"\xff" * 4096):
            (tmp_path / "a.sqlite").write_bytes(b"".join([*pages[:i], other, *pages[i + 1 :]]))
            assert wrong(tmp_path / "a.sqlite", right) == [], i


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM postings WHERE field = 's' AND value = 'v3'",
        "DELETE FROM postings WHERE rank = (SELECT max(rank) FROM postings)",
        "UPDATE postings SET value = 'v30' WHERE value = 'v3'",
        "UPDATE postings SET numbers = x'01000000' WHERE value = 'v3'",
        "UPDATE postings SET numbers = 'text' WHERE value = 'v3'",
        "UPDATE documents SET text = 5 WHERE number = 70",
        "UPDATE documents SET metadata = '{' WHERE number = 70",
        "UPDATE documents SET id = 5 WHERE number = 3",
        "DELETE FROM documents WHERE number = 3",
        "DELETE FROM ids WHERE bucket = 1",
        "UPDATE ids SET entries = x'' WHERE bucket = 0",
        "UPDATE sizes SET postings = 3",
        "INSERT INTO sizes SELECT * FROM sizes",
        "DELETE FROM sizes",
        "UPDATE documents SET metadata = '[]' WHERE number = 70",
    ],
)
def test_changed_rows_give_no_wrong_answer(small: Path, tmp_path: Path, statement: str) -> None:
    path = tmp_path / "a.sqlite"
    path.write_bytes(small.read_bytes())
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()
    assert wrong(path, answers(small)) == []
    assert None in dict(answers(path)).values()


def test_a_file_of_another_segment_is_damage(small: Path) -> None:
    with pytest.raises(IntegrityError, match="it holds 150 documents, 151 were expected"):
        DocumentReader(small, 151)


@pytest.mark.parametrize("content", [None, b"", b"nothing of the kind" * 100])
def test_what_is_no_such_file_is_said_to_be_damaged(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.sqlite").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"a\.sqlite is damaged .* run embedkit index verify"):
        DocumentReader(tmp_path / "a.sqlite", 0)


def test_an_unfinished_file_is_said_to_be_damaged(tmp_path: Path) -> None:
    DocumentWriter(tmp_path / "a.sqlite").append(DOCUMENTS[:5], texts=True)
    with pytest.raises(IntegrityError):
        DocumentReader(tmp_path / "a.sqlite", 5)


def sealed(path: Path, statement: str, *values: object) -> Path:
    """A file that somebody changed who computes checksums as we do."""
    connection = sqlite3.connect(path)
    for name, function in (("key_check", module.key_check), ("content_check", module.contents_check)):
        connection.create_function(name, -1, function)
    connection.execute(statement, values)
    connection.commit()
    connection.close()
    return path


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        (
            "UPDATE documents SET id = x'61', id_check = key_check(3, x'61') WHERE number = 3",
            "id of document 3 is no text",
        ),
        (
            "UPDATE documents SET metadata = '[]', content_check = content_check(number, id, title, text, '[]')",
            "metadata of document 0 are none",
        ),
        ("UPDATE sizes SET postings = 'x', sizes_check = key_check(150, 'x')", "number of its postings is none"),
    ],
)
def test_rows_of_other_types_whose_checksums_fit_are_refused(
    small: Path, tmp_path: Path, statement: str, reason: str
) -> None:
    path = tmp_path / "a.sqlite"
    path.write_bytes(small.read_bytes())
    sealed(path, statement)
    with pytest.raises(IntegrityError, match=reason):
        reader = DocumentReader(path, 150)
        list(reader.all_ids())
        list(reader.stream())


def test_metadata_nested_deeper_than_can_be_written_are_refused(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    path.write_bytes(small.read_bytes())
    deep = '{"a": ' * 300 + "1" + "}" * 300
    sealed(path, "UPDATE documents SET metadata = ?1, content_check = content_check(number, id, title, text, ?1)", deep)
    with pytest.raises(IntegrityError, match="metadata of document 0 are none"):
        next(DocumentReader(path, 150).stream())


def test_a_statement_that_goes_on_and_on_is_stopped(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 2_000)
    reader = DocumentReader(small, 150)
    for _ in range(50):  # the steps of one statement are counted, not those of all its runs
        assert reader.ids([3]) == {3: "id 3"}
    with pytest.raises(IntegrityError, match="interrupted"):
        reader._select("WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT count(*) FROM r", (), 1)


def test_a_process_that_may_open_no_more_files_does_not_call_the_file_damaged(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    def unable(*_: Any, **__: Any) -> Any:
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(sqlite3, "connect", unable)
    monkeypatch.setattr("embedkit.index.documents.os.open", none_left)
    for opened in (lambda: DocumentReader(small, 150), lambda: DocumentWriter(tmp_path / "b.sqlite")):
        with pytest.raises(OSError, match="Too many open files"):
            opened()
