"""Corpora of images: which field is one, where its file is, what is embedded and what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from embedkit.corpus import Fields, read_corpus
from embedkit.errors import DataError, UsageError
from embedkit.types import Document, Picture
from tests.image_models import encoded, picture, write_pictures

CONTENT = encoded(picture(0))


def parts(document: Document) -> tuple[Any, str | None]:
    """Image and text that are embedded."""
    assert isinstance(document.content, Picture)
    return document.content.image, document.content.text


def test_a_folder_of_images_is_one_document_a_file(tmp_path: Path) -> None:
    write_pictures(tmp_path / "deep", 1)
    (tmp_path / "b.JPG").write_bytes(b"")
    (tmp_path / ".hidden.png").write_bytes(b"")
    found = list(read_corpus(tmp_path))
    assert [document.id for document in found] == ["b.JPG", "deep/p00.png"]
    assert parts(found[1]) == (tmp_path / "deep/p00.png", None)
    assert (found[1].text, found[1].metadata) == ("deep/p00.png", {"image": "deep/p00.png"})


def test_texts_beside_images_come_first_unless_images_are_asked_for(tmp_path: Path) -> None:
    write_pictures(tmp_path, 2)
    (tmp_path / "notes.txt").write_text("a text")
    assert [document.id for document in read_corpus(tmp_path)] == ["notes.txt"]
    assert [document.id for document in read_corpus(tmp_path, Fields(image="image"))] == ["p00.png", "p01.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="and images"):
        list(read_corpus(tmp_path / "empty"))


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_paths_in_a_column_begin_beside_the_file(name: str, tmp_path: Path) -> None:
    row = {"id": "a", "file": "photos/x.png", "caption": "red", "title": "T", "year": "1"}
    lines = {"rows.csv": ",".join(row) + "\n" + ",".join(row.values()), "rows.jsonl": json.dumps(row)}
    (tmp_path / name).write_text(lines[name])
    (alone,) = read_corpus(tmp_path / name, Fields(image="file"))
    assert parts(alone) == (tmp_path / "photos/x.png", None)
    assert (alone.text, alone.title) == ("photos/x.png", "")
    assert alone.metadata == {"file": "photos/x.png", "caption": "red", "title": "T", "year": "1"}
    (both,) = read_corpus(tmp_path / name, Fields(image="file", text="caption", title="title"))  # type: ignore[arg-type]
    assert parts(both) == (tmp_path / "photos/x.png", "T red")
    assert (both.text, both.title, both.metadata) == ("red", "T", {"file": "photos/x.png", "year": "1"})
    with pytest.raises(DataError, match=r"the field 'none' is missing .* another with --image FIELD"):
        list(read_corpus(tmp_path / name, Fields(image="none")))


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_the_column_that_datasets_stores_is_told_without_a_name(tmp_path: Path) -> None:
    rows = [{"id": str(i), "image": {"bytes": CONTENT, "path": f"x{i}.png"}, "n": i} for i in range(70)]
    found = list(read_corpus(write_parquet(tmp_path / "rows.parquet", rows)))
    assert [parts(document) for document in found] == [(CONTENT, None)] * 70
    assert (found[69].text, found[69].metadata) == ("x69.png", {"image": "x69.png", "n": 69})


def test_a_stored_image_without_bytes_is_a_file_beside_the_rows(tmp_path: Path) -> None:
    rows = [
        {"id": "file", "image": {"bytes": None, "path": "x.png"}},
        {"id": "none", "image": {"bytes": None, "path": None}},
        {"id": "null", "image": None},
    ]
    path = write_parquet(tmp_path / "rows.parquet", rows)
    file, none, null = read_corpus(path, Fields(image="image"))
    assert parts(file) == (tmp_path / "x.png", None)
    assert parts(none) == parts(null) == (b"", None)  # set aside when they are embedded
    assert (null.text, null.metadata) == ("", {"image": None})


def test_captions_of_rows_with_images_keep_the_path_alone(tmp_path: Path) -> None:
    rows = [{"id": "a", "caption": "red", "image": {"bytes": CONTENT, "path": "x.png"}}]
    path = write_parquet(tmp_path / "rows.parquet", rows)
    (document,) = read_corpus(path, Fields(text="caption"))  # type: ignore[arg-type]
    assert (document.content, document.metadata) == ("red", {"image": "x.png"})


def test_datasets_are_read_without_being_decoded(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image()})
    rows = {"id": ["a", "b"], "image": [{"bytes": CONTENT, "path": "a.png"}, {"bytes": b"noise", "path": "b.png"}]}
    table = datasets.Dataset.from_dict(rows, features=features)
    table.save_to_disk(tmp_path / "saved")
    for source in (table, tmp_path / "saved"):
        assert [parts(document) for document in read_corpus(source)] == [(CONTENT, None), (b"noise", None)]


def test_rows_from_python_may_be_images(tmp_path: Path) -> None:
    image = picture(0)
    rows = [tmp_path / "x.png", image, {"id": "a", "image": image}, Document("b", "t", image=Picture(CONTENT, "t"))]
    path, plain, named, whole = read_corpus(rows)
    assert (path.id, path.text, parts(path)) == ("0", str(tmp_path / "x.png"), (tmp_path / "x.png", None))
    assert (plain.id, plain.text, parts(plain)) == ("1", "", (image, None))
    assert (named.id, parts(named)) == ("a", (image, None))
    assert (whole.text, parts(whole)) == ("t", (CONTENT, "t"))
    texts = list(read_corpus([{"id": "c", "text": "red", "image": image}]))
    assert (texts[0].content, texts[0].metadata) == ("red", {"image": None})  # a text is a text


@pytest.mark.parametrize("value", [3, ["a.png"], {"url": "a"}])
def test_what_is_no_image_is_named_with_its_row(value: Any) -> None:
    with pytest.raises(DataError, match=r"^the rows, row 1: the field 'image' is a (int|list|dict)"):
        list(read_corpus([{"id": "a", "image": value}], Fields(image="image")))


@pytest.mark.data
def test_the_real_collections_are_read_by_their_image_column(data: Path) -> None:
    for name, count, magic in (("emoji_images", 1650, b"\x89PNG"), ("flickr8k_1k", 1000, b"\xff\xd8\xff")):
        documents = list(read_corpus(data / name / "data.parquet", Fields(id="file")))
        assert len(documents) == count
        assert all(document.image is not None and document.image.image.startswith(magic) for document in documents)
