"""Indexes from corpora and from vectors: built whole or gone on with, added to, refused where things do not fit."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedkit
from embedkit.encoder import Encoded
from embedkit.engine import open_vectors, run
from embedkit.engine.vector_file import RowNumbers
from embedkit.errors import DataError, ModelError, ModelMismatch, Stopped, UsageError
from embedkit.index import Index, Layout
from embedkit.jobs import RowSource, add_to_index, build_index, embed_corpus, metric_of, open_index, source_of
from embedkit.jobs.row_source import DecodedRows, rows_a_document
from embedkit.types import Document
from embedkit.vectors import Ranges

from .conftest import bent_rows
from .engine.fakes import DIM, Plain, Windowed, row

WINDOW = 3
HOW = pytest.mark.parametrize("on_long", ["truncate", "chunk"])


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "WINDOW", WINDOW)
    monkeypatch.setattr("embedkit.jobs.indexing.RECORDED", 2)
    monkeypatch.setattr("embedkit.jobs.row_source.BLOCK", 2)


def corpus(count: int, aside: tuple[int, ...] = ()) -> list[Document]:
    """Documents of 0 to 60 characters, of which Windowed takes 12 at once; those in `aside` it cannot take."""
    return [
        Document(f"d{number}", "bad" if number in aside else "abcde " * (number % 11), metadata={"n": number})
        for number in range(count)
    ]


class Stopping(Windowed):
    """Is interrupted after so many windows."""

    def __init__(self, windows: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        super().__init__()
        self.left, self.error = windows, error

    def _window(self, *arguments: Any) -> Encoded:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super()._window(*arguments)


def contents(folder: Path) -> dict[str, Any]:
    """File name -> bytes; of the manifest what does not depend on when it was written."""
    found: dict[str, Any] = {
        path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(".built.json")
    }
    for name in [name for name in found if name.startswith("manifest-")]:
        found[name] = json.loads(found[name])
        del found[name]["created"], found[name]["checksum"]
    return found


def begun(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} & {
        "build.ledger",
        "build.npy.partial",
        "add.ledger",
        "add.npy.partial",
    }


# --- built --------------------------------------------------------------------------------------------------------


@HOW
@pytest.mark.parametrize("windows", [1, 2, 5])
@pytest.mark.parametrize("aside", [(), (0, 4, 13)])
def test_a_build_that_was_stopped_ends_with_the_bytes_of_one_that_was_not(
    tmp_path: Path, windows: int, aside: tuple[int, ...], on_long: Any
) -> None:
    documents = corpus(17, aside)
    build_index(documents, tmp_path / "whole", model=Windowed(), on_long=on_long).close()
    with pytest.raises(KeyboardInterrupt):
        build_index(documents, tmp_path / "x", model=Stopping(windows), on_long=on_long)
    assert begun(tmp_path / "x") == {"build.ledger", "build.npy.partial"}
    with pytest.raises(UsageError, match="x was begun and is not finished"):
        Index(tmp_path / "x")
    with pytest.raises(UsageError, match=r"was begun and is not finished; go on with --resume \(resume=True\)"):
        build_index(documents, tmp_path / "x", model=Windowed(), on_long=on_long)
    with pytest.raises(KeyboardInterrupt):  # once more, and before anything else is done
        build_index(documents, tmp_path / "x", model=Stopping(0), on_long=on_long, resume=True)
    index = build_index(documents, tmp_path / "x", model=Windowed(), on_long=on_long, resume=True)
    assert contents(tmp_path / "x") == contents(tmp_path / "whole")
    assert len(index) == 17 - len(aside)
    index.verify()
    again = build_index(documents, tmp_path / "x", model=Windowed(), on_long=on_long, resume=True)
    assert again.manifest == index.manifest  # what is finished is left as it is


def test_a_build_goes_on_after_its_vectors_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_index(corpus(8), tmp_path / "whole", model=Windowed()).close()
    finish = "embedkit.index.writer.SegmentFiles.finish"

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finish, stopped)
        build_index(corpus(8), tmp_path / "x", model=Windowed())
    assert (tmp_path / "x" / "build.npy").is_file()
    other = Windowed()
    other.fingerprint = "0" * 64  # type: ignore[misc]
    for options in ({"model": other}, {"model": Windowed(), "on_long": "chunk"}):
        with pytest.raises(UsageError, match="was made by another model, or with another on_long; give the same"):
            build_index(corpus(8), tmp_path / "x", **options, resume=True)  # type: ignore[arg-type]
    for changed in (corpus(9), corpus(7), [*corpus(7), Document("other", "x")], corpus(8)[::-1]):
        with pytest.raises(DataError, match="without --resume"):
            build_index(changed, tmp_path / "x", model=Windowed(), resume=True)
    build_index(corpus(8), tmp_path / "x", model=Stopping(0), resume=True).close()
    assert contents(tmp_path / "x") == contents(tmp_path / "whole")


def test_a_build_may_be_resumed_where_nothing_was_begun(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()  # by a build that was killed when it had done no more
    for name in ("none", "made"):
        assert len(build_index(corpus(4), tmp_path / name, model=Windowed(), resume=True)) == 4
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("ten years of work")
    (tmp_path / "file").write_text("mine")
    for name in ("other", "file"):
        with pytest.raises(UsageError, match="is there already; choose another name"):
            build_index(corpus(4), tmp_path / name, model=Windowed(), resume=True)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "ten years of work"


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    ("documents", "error", "sentence"),
    [
        ([Document("a", "x"), Document("a", "y")], DataError, "'a' came before"),
        ([Document("a", "x"), Document("b", "nan 1")], ModelError, "'b'"),
        ([], DataError, "expected at least one row"),
        ([Document("a", "bad"), Document("b", "bad")], DataError, "There are no rows to index"),
    ],
)
def test_an_error_before_anything_is_done_leaves_no_folder(
    tmp_path: Path, documents: list[Document], error: type[Exception], sentence: str, resume: bool
) -> None:
    with pytest.raises(error, match=sentence):
        build_index(documents, tmp_path / "x", model=Windowed(), resume=resume)
    if sentence.startswith("There"):  # the model was asked, and may be another one next time
        assert (tmp_path / "x" / "build.npy").is_file()
    else:
        assert list(tmp_path.iterdir()) == []


def test_an_error_later_on_keeps_what_is_done(tmp_path: Path) -> None:
    documents = [*corpus(8), Document("d1", "again")]
    with pytest.raises(DataError, match="'d1' came before"):
        build_index(documents, tmp_path / "x", model=Windowed())
    assert begun(tmp_path / "x") == {"build.ledger", "build.npy.partial"}
    mended = [*documents[:8], Document("d8", "again")]
    index = build_index(mended, tmp_path / "x", model=Stopping(1), resume=True)  # one window was left
    assert index.get(["d8", "d1"]) == [mended[8], mended[1]]
    build_index(mended, tmp_path / "whole", model=Windowed()).close()
    assert contents(tmp_path / "x") == contents(tmp_path / "whole")


def test_a_corpus_that_has_changed_is_not_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_index(corpus(9), tmp_path / "x", model=Stopping(2))
    other = [Document("d0", "something else"), *corpus(9)[1:]]
    with pytest.raises(DataError, match="d0"):
        build_index(other, tmp_path / "x", model=Windowed(), resume=True)
    with pytest.raises(UsageError, match="was begun with other settings"):
        build_index(corpus(9), tmp_path / "x", model=Windowed(), on_long="chunk", resume=True)
    assert len(build_index(corpus(9), tmp_path / "x", model=Windowed(), resume=True)) == 9


def test_a_full_disk_leaves_no_folder_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises((OSError, Stopped)):
        patch.setattr(os, "fsync", full)
        build_index(corpus(4), tmp_path / "deep" / "x", model=Windowed())
    assert not (tmp_path / "deep" / "x").exists()
    assert len(build_index(corpus(4), tmp_path / "deep" / "x", model=Windowed())) == 4


@HOW
def test_documents_that_the_model_cannot_take_are_there_and_not_found(
    tmp_path: Path, on_long: Any, caplog: pytest.LogCaptureFixture
) -> None:
    documents = corpus(20, (0, 7, 19))
    with caplog.at_level(logging.WARNING):
        index = build_index(documents, tmp_path / "x", model=Windowed(), on_long=on_long)
    assert "3 documents were set aside, the model cannot take them: d0, d19, d7" in caplog.text
    assert (len(index), index.info()["deleted"]) == (17, 3)
    left = [document for document in documents if document.text != "bad"]
    hits = index.search(row("anything"), k=30)
    assert sorted(hits.ids[0]) == sorted(document.id for document in left)
    assert index.get([document.id for document in left]) == left
    with pytest.raises(KeyError, match="d7"):
        index.get(["d7"])
    assert index.search(row("anything"), k=30, where={"n": {"lte": 7}}).ids[0] != []
    index.compact()
    assert (len(index), index.info()["deleted"]) == (17, 0)
    index.verify()


def test_long_texts_become_passages(tmp_path: Path) -> None:
    """A row every 12 characters, which says which of them it covers."""
    documents = corpus(11)
    index = build_index(documents, tmp_path / "x", model=Windowed(), on_long="chunk", fine="float32", metric="dot")
    (segment,) = index.snapshot.segments
    assert segment.starts is not None and segment.spans is not None
    for number, document in enumerate(documents):
        parts = [document.text[at : at + 12] for at in range(0, max(1, len(document.text)), 12)]
        rows = segment.row_range(number)
        assert [document.text[a:b] for a, b in segment.spans[list(rows)].tolist()] == parts
        np.testing.assert_allclose(segment.fine.rows(np.array(rows)), [row(part) for part in parts], atol=1e-6)
    assert (index.manifest.source.on_long, index.manifest.source.first_input) == ("chunk", "document: ")
    assert index.info()["empty_texts"] == 1


def test_on_long_is_for_models_that_can(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="on_long='chunk' is for models that embedkit loads"):
        build_index(corpus(3), tmp_path / "x", model=Plain(), on_long="chunk")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [1, 3, 4, 100])
def test_a_limit_takes_the_first_documents(tmp_path: Path, limit: int) -> None:
    documents = corpus(20)
    index = build_index(documents, tmp_path / "x", model=Windowed(), limit=limit)
    assert list(index.snapshot.segments[0].documents.stream()) == documents[:limit]
    with pytest.raises(UsageError, match="limit=0 was asked for; expected at least 1"):
        build_index(documents, tmp_path / "y", model=Windowed(), limit=0)
    with pytest.raises(UsageError, match="limit=-1"):
        build_index(bent_rows(3), tmp_path / "y", limit=-1)


# --- built from vectors -------------------------------------------------------------------------------------------


@HOW
@pytest.mark.parametrize("form", ["npy", "parquet"])
@pytest.mark.parametrize("aside", [(), (0, 4, 13, 16)])
def test_vectors_with_their_corpus_make_the_index_of_the_corpus(
    tmp_path: Path, form: str, on_long: Any, aside: tuple[int, ...]
) -> None:
    """But for documents that were set aside, which have no place among vectors."""
    documents = corpus(17, aside)
    embed_corpus(documents, tmp_path / f"v.{form}", Windowed(), on_long=on_long)
    index = build_index(tmp_path / f"v.{form}", tmp_path / "x", documents=documents)
    left = [document for document in documents if document.text != "bad"]
    whole = build_index(left, tmp_path / "whole", model=Windowed(), on_long=on_long)
    assert index.manifest.source.fingerprint == Windowed().fingerprint
    if documents[0] in left:
        assert index.manifest.source == whole.manifest.source
    made, expected = contents(tmp_path / "x"), contents(tmp_path / "whole")
    assert {name: data for name, data in made.items() if not name.startswith("manifest")} == {
        name: data for name, data in expected.items() if not name.startswith("manifest")
    }


@pytest.mark.parametrize("limit", [1, 4, 6])
@HOW
def test_a_limit_of_vectors_counts_documents(tmp_path: Path, limit: int, on_long: Any) -> None:
    documents = corpus(17, (1,))
    embed_corpus(documents, tmp_path / "v.npy", Windowed(), on_long=on_long)
    index = build_index(tmp_path / "v.npy", tmp_path / "x", documents=documents, limit=limit)
    left = [document for document in documents if document.text != "bad"][:limit]
    assert list(index.snapshot.segments[0].documents.stream()) == left
    whole = build_index(left, tmp_path / "whole", model=Windowed(), on_long=on_long)
    assert index.info()["rows"] == whole.info()["rows"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda rows: rows[::-1], "Beside the vector of 'd0' stands the document 'd8'"),
        (lambda rows: [*rows[:4], rows[5], rows[4], *rows[6:]], "Beside the vector of 'd4' stands the document 'd5'"),
        (lambda rows: rows[:-1], "Beside the vector of 'd8' stands nothing"),
        (lambda rows: [*rows, Document("d9", "x")], "After the last vector stands the document 'd9'"),
    ],
)
@HOW
def test_documents_in_another_order_than_the_vectors_are_refused(
    tmp_path: Path, change: Any, sentence: str, on_long: Any
) -> None:
    embed_corpus(corpus(9), tmp_path / "v.npy", Windowed(), on_long=on_long)
    with pytest.raises(DataError, match=sentence):
        build_index(tmp_path / "v.npy", tmp_path / "x", documents=change(corpus(9)))
    assert not (tmp_path / "x").exists()


def test_vectors_keep_the_similarity_of_their_model(tmp_path: Path) -> None:
    encoder = Windowed()
    encoder.similarity = "dot"  # type: ignore[misc]
    embed_corpus(corpus(5), tmp_path / "v.npy", encoder)
    assert build_index(tmp_path / "v.npy", tmp_path / "a").manifest.metric == "dot"
    assert build_index(tmp_path / "v.npy", tmp_path / "b", metric="cosine").manifest.metric == "cosine"
    assert build_index(corpus(5), tmp_path / "c", model=encoder).manifest.metric == "dot"
    encoder.similarity = "euclidean"  # type: ignore[misc]
    with pytest.raises(UsageError, match="compares by euclidean; an index compares by 'cosine' or 'dot': name one"):
        build_index(corpus(5), tmp_path / "d", model=encoder)
    assert build_index(corpus(5), tmp_path / "d", model=encoder, metric="dot").manifest.metric == "dot"
    assert [metric_of("cosine"), metric_of("dot")] == ["cosine", "dot"]


@pytest.mark.parametrize("form", ["npy", "parquet"])
@pytest.mark.parametrize("precision", ["float16", "int8"])
@HOW
def test_vectors_in_fewer_bits_make_an_index_of_what_they_stand_for(
    tmp_path: Path, form: str, precision: Any, on_long: Any
) -> None:
    documents = corpus(17, (4,))
    embed_corpus(documents, tmp_path / f"v.{form}", Windowed(), on_long=on_long, precision=precision)
    file = open_vectors(tmp_path / f"v.{form}")
    decoded = file.rows.astype(np.float32) if file.ranges is None else file.ranges.decode(file.rows)
    index = build_index(tmp_path / f"v.{form}", tmp_path / "x", documents=documents, fine="float32", metric="dot")
    np.testing.assert_array_equal(np.concatenate(list(index.snapshot.segments[0].fine.blocks())), decoded)
    some = build_index(tmp_path / f"v.{form}", tmp_path / "y", documents=documents, limit=3)
    assert some.info()["documents"] == 3
    add_to_index(tmp_path / "y", tmp_path / f"v.{form}", documents=documents)
    added = open_index(tmp_path / "y")
    assert (len(added), added.get(["d16"])) == (16, [documents[16]])


def test_codes_are_decoded_where_they_are_read() -> None:
    rows = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    ranges = Ranges.of(rows)
    lazy = DecodedRows(ranges.encode(rows), ranges)
    whole = ranges.decode(ranges.encode(rows))
    assert (len(lazy), lazy.shape, lazy[2:5].shape) == (9, (9, 4), (3, 4))
    np.testing.assert_array_equal(np.asarray(lazy), whole)
    np.testing.assert_array_equal(np.asarray(lazy[2:8][1:3], dtype=np.float64), whole[3:5])
    np.testing.assert_array_equal(np.asarray(lazy[np.array([5, 1])]), whole[[5, 1]])


@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_bits_are_no_rows_of_an_index(tmp_path: Path, form: str) -> None:
    embed_corpus(corpus(5), tmp_path / f"v.{form}", Windowed(), precision="binary")
    with pytest.raises(UsageError, match=rf"v\.{form} holds bits, .* embed again with --precision float16 or int8"):
        build_index(tmp_path / f"v.{form}", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_rows_may_be_given_names_of_their_own(tmp_path: Path) -> None:
    embed_corpus(corpus(5), tmp_path / "v.npy", Windowed())
    index = build_index(tmp_path / "v.npy", tmp_path / "x", ids=[10, 20, 30, 40, 50])
    assert list(index.snapshot.segments[0].ids) == ["10", "20", "30", "40", "50"]
    for wrong in ([1], list(range(6))):
        with pytest.raises(UsageError, match=f"{len(wrong)} ids came with 5 vectors"):
            build_index(tmp_path / "v.npy", tmp_path / "y", ids=wrong)


def test_rows_without_names_are_numbered() -> None:
    numbers = RowNumbers(5)
    assert (list(numbers), len(numbers), list(numbers[:3]), numbers[-1]) == (
        ["0", "1", "2", "3", "4"],
        5,
        ["0", "1", "2"],
        "4",
    )
    source = RowSource.of(np.ones((5, 3)), limit=2)
    assert (list(source.groups()), source.dim) == ([("0", 1), ("1", 1)], 3)


def test_rows_are_counted_by_document() -> None:
    assert rows_a_document("abcd", "aaccc").tolist() == [2, 0, 3, 0]
    assert rows_a_document("", "").tolist() == []
    for rows in ("ba", "abe"):
        with pytest.raises(DataError, match="which is no document; build the index again without --resume"):
            rows_a_document("ab", rows)


def test_the_first_text_stands_in_the_manifest_with_its_prompt() -> None:
    assert source_of(Windowed(), first=Document("a", "cat", title="red")).first_input == "document: red cat"
    assert source_of(Plain(), first=Document("a", "cat")).first_input == "cat"
    assert (source_of(Plain()).first_input, source_of(Plain()).model) == (None, "fake")


# --- added to -----------------------------------------------------------------------------------------------------


@HOW
def test_what_is_added_is_as_if_it_had_been_built(tmp_path: Path, on_long: Any) -> None:
    documents = corpus(40, (22,))
    folder, vectors = tmp_path / "x", tmp_path / "v.npy"
    build_index(documents[:20], folder, model=Windowed(), on_long=on_long).close()
    assert add_to_index(folder, documents[18:30], model=Windowed()) == (11, 1)  # two of them again, one set aside
    embed_corpus(documents[30:], vectors, Windowed(), on_long=on_long)
    assert add_to_index(folder, vectors, documents=documents[30:]).documents == 10
    left = [document for document in documents if document.text != "bad"]
    whole = build_index(left, tmp_path / "whole", model=Windowed(), on_long=on_long)
    index = open_index(folder, Windowed())
    assert (len(index), index.info()["rows"] - index.info()["deleted"] >= 39) == (39, True)
    for group in ("best", "mean", None):
        for text in ("abcde abcde ", "x"):
            found, expected = (one.search(text, k=39, group=group) for one in (index, whole))  # type: ignore[arg-type]
            np.testing.assert_array_equal(found.scores, expected.scores)
            assert found.ids == expected.ids
            assert found.documents == expected.documents
    assert not begun(folder) and not (folder / "add.npy").exists()


@HOW
def test_an_addition_that_was_stopped_ends_with_the_bytes_of_one_that_was_not(tmp_path: Path, on_long: Any) -> None:
    documents = corpus(30, (3, 21))
    for name in ("x", "whole"):
        build_index(documents[:12], tmp_path / name, model=Windowed(), on_long=on_long).close()
    assert add_to_index(tmp_path / "whole", documents[10:], model=Windowed()) == (19, 1)
    with pytest.raises(KeyboardInterrupt):
        add_to_index(tmp_path / "x", documents[10:], model=Stopping(3))
    assert begun(tmp_path / "x") == {"add.ledger", "add.npy.partial"}
    with open_index(tmp_path / "x", Windowed(), check=True) as index:  # it is as it was, meanwhile
        assert (len(index), index.manifest.number) == (11, 1)
    assert add_to_index(tmp_path / "x", documents[10:], model=Stopping(4), resume=True) == (19, 1)
    assert contents(tmp_path / "x") == contents(tmp_path / "whole")


def test_an_addition_that_is_not_gone_on_with_starts_again(tmp_path: Path) -> None:
    build_index(corpus(4), tmp_path / "x", model=Windowed()).close()
    with pytest.raises(KeyboardInterrupt):
        add_to_index(tmp_path / "x", corpus(20)[4:], model=Stopping(3))
    assert add_to_index(tmp_path / "x", [Document("other", "x")], model=Windowed()).documents == 1
    assert add_to_index(tmp_path / "x", corpus(6), model=Windowed(), limit=5).documents == 5
    index = open_index(tmp_path / "x", Windowed(), check=True)
    assert sorted(index.search("x", k=9).ids[0]) == ["d0", "d1", "d2", "d3", "d4", "other"]


def test_vectors_of_another_model_or_width_are_refused(tmp_path: Path) -> None:
    build_index(corpus(4), tmp_path / "x", model=Windowed()).close()
    other = Windowed()
    other.fingerprint = "0" * 64  # type: ignore[misc]
    embed_corpus(corpus(3), tmp_path / "other.npy", other)
    before = contents(tmp_path / "x")
    with pytest.raises(ModelMismatch, match=r"was built by ffffffffffff \(fake\), these rows by 000000000000 \(fake\)"):
        add_to_index(tmp_path / "x", tmp_path / "other.npy")
    with pytest.raises(ModelMismatch, match="ffffffffffff"):
        add_to_index(tmp_path / "x", corpus(3), model=other)
    with pytest.raises(UsageError, match=r"Rows of width 7 came; .* holds rows of width 5"):
        add_to_index(tmp_path / "x", np.ones((2, 7)), ids=["a", "b"])
    for arguments in ({"model": other}, {"dtype": "float32"}):
        with pytest.raises(UsageError, match="Vectors and a model came"):
            add_to_index(tmp_path / "x", np.ones((2, DIM)), ids=["a", "b"], **arguments)
    with pytest.raises(UsageError, match="holds no index"):
        add_to_index(tmp_path / "nowhere", corpus(3))
    assert contents(tmp_path / "x") == before


def test_bare_vectors_may_be_added_to_any_index_of_their_width(tmp_path: Path) -> None:
    """An array names no model; whoever gives it knows what it is."""
    build_index(corpus(4), tmp_path / "x", model=Windowed()).close()
    rows = np.array([row("one"), row("two")])
    assert add_to_index(
        tmp_path / "x", rows, ids=["a", "b"], documents=[{"id": "a", "text": "one"}, {"id": "b", "text": "two"}]
    ) == (2, 0)
    index = open_index(tmp_path / "x", Windowed())
    assert index.search("two", k=1).ids == [["b"]]
    assert [document.text for document in index.get(["a", "b"])] == ["one", "two"]


def test_an_index_without_texts_stays_without(tmp_path: Path) -> None:
    build_index(bent_rows(20, 8), tmp_path / "x").close()
    texts = [{"id": f"n{i}", "text": "some text", "year": 2000 + i} for i in range(4)]
    add_to_index(tmp_path / "x", bent_rows(4, 8, seed=1), ids=[row["id"] for row in texts], documents=texts)
    with Index(tmp_path / "x") as index:
        expected = Document("n1", "", metadata={"year": 2001})
        for _ in range(2):
            assert (index.get(["n1"]), index.info()["texts"], index.info()["empty_texts"]) == ([expected], False, 0)
            assert index.search(bent_rows(1, 8), k=9, where={"year": 2001}).ids == [["n1"]]
            index.compact()


def test_the_model_that_an_index_names_embeds_what_is_added(tmp_path: Path, tiny_model: Path) -> None:
    encoder = embedkit.load(tiny_model, dtype="float32")
    build_index(["cat", "dog"], tmp_path / "x", model=encoder).close()
    assert add_to_index(tmp_path / "x", [Document("n", "red fish")], dtype="float32", threads=1).documents == 1
    index = open_index(tmp_path / "x", dtype="float32")
    hits = index.search(encoder.encode(["red fish"]), k=1)
    assert hits.ids == [["n"]] and hits.scores[0, 0] == pytest.approx(1, abs=1e-3)
    moved = shutil.copytree(tiny_model, tmp_path / "moved")
    assert add_to_index(tmp_path / "x", [Document("m", "blue bird")], model=moved).documents == 1


def test_a_stream_is_read_once(tmp_path: Path) -> None:
    """Document by document, so that a corpus of any size passes through."""
    read = 0

    def stream() -> Iterator[Document]:
        nonlocal read
        for document in corpus(10):
            read += 1
            yield document

    assert len(build_index(stream(), tmp_path / "x", model=Windowed())) == read == 10
    assert add_to_index(tmp_path / "x", stream(), model=Windowed()).documents == 10
    assert read == 20


def test_a_layout_is_kept_for_what_is_added(tmp_path: Path) -> None:
    build_index(bent_rows(50), tmp_path / "x", fine="int8", coarse="SQ8", recall=0.9, metric="dot").close()
    add_to_index(tmp_path / "x", bent_rows(20, seed=1), ids=[f"n{i}" for i in range(20)])
    manifest = Index(tmp_path / "x").manifest
    assert (manifest.fine, manifest.coarse, manifest.recall_target, manifest.metric) == ("int8", "SQ8", 0.9, "dot")
    assert Layout(manifest.metric, manifest.coarse, manifest.fine, None, 0.9) == Layout("dot", "SQ8", "int8", None, 0.9)
