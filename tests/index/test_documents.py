"""Ids, texts and metadata of the rows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from embedkit.errors import DataError, IntegrityError
from embedkit.index.documents import AT_ONCE, DocumentReader, DocumentWriter
from embedkit.types import Document

DOCUMENTS = [
    Document(f"d{i}", f"text {i} é 猫", title="t" * (i % 2), metadata={"n": i, "tags": ["a", None]})
    for i in range(1200)
]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> DocumentReader:
    path = tmp_path_factory.mktemp("documents") / "a name with # and ?.sqlite"
    writer = DocumentWriter(path)
    writer.append(DOCUMENTS[:700], texts=True)
    writer.append(DOCUMENTS[700:], texts=True)
    writer.close()
    return DocumentReader(path)


@pytest.mark.parametrize("count", [0, 1, AT_ONCE, AT_ONCE + 1, 1200])
def test_rows_and_ids_give_the_documents_that_went_in(reader: DocumentReader, count: int) -> None:
    assert reader.ids(range(count)) == {row: f"d{row}" for row in range(count)}
    assert reader.documents(range(count)) == dict(enumerate(DOCUMENTS[:count]))
    assert reader.by_id([f"d{row}" for row in range(count)]) == {d.id: d for d in DOCUMENTS[:count]}


def test_what_is_not_there_is_left_out(reader: DocumentReader) -> None:
    assert reader.ids([5, 5]) == {5: "d5"}
    assert list(reader.by_id(["d5", "x", "d5"])) == ["d5"]


def test_threads_may_share_it(reader: DocumentReader) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda row: reader.documents([row])[row], range(400)))
    assert found == DOCUMENTS[:400]


def test_ids_alone_may_be_stored(tmp_path: Path) -> None:
    writer = DocumentWriter(tmp_path / "a.sqlite")
    writer.append([Document("x", "long", metadata={"a": 1})], texts=False)
    writer.close()
    assert DocumentReader(tmp_path / "a.sqlite").documents([0]) == {0: Document("x", "", metadata={"a": 1})}


def test_an_id_that_came_before_is_refused(tmp_path: Path) -> None:
    writer = DocumentWriter(tmp_path / "a.sqlite")
    with pytest.raises(DataError, match="Row 2: the id 'x' came before"):
        writer.append([Document("x", ""), Document("y", ""), Document("x", "")], texts=True)


def test_a_damaged_file_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(IntegrityError, match=r"a\.sqlite is damaged"):
        DocumentReader(tmp_path / "a.sqlite").ids([0])


@pytest.mark.parametrize("row", [-1, 1200])
def test_a_row_without_an_id_is_damage(reader: DocumentReader, row: int) -> None:
    with pytest.raises(IntegrityError, match=r"is damaged \(1 rows have no id\)"):
        reader.ids([5, row])
