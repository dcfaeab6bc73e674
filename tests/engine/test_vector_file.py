"""Vectors on disk, beside what made them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit.engine import embed_to_file, open_vectors
from embedkit.errors import DataError, IntegrityError, UsageError
from embedkit.storage import sealed_json
from embedkit.types import Document

TEXTS = ["cat", "dog dog", "", "red fish"]


DOCUMENTS = [Document(f"d{i}", text) for i, text in enumerate(TEXTS)]


@pytest.fixture
def path(tmp_path: Path, word_counts: Any) -> Path:
    embed_to_file(DOCUMENTS, tmp_path / "a.npy", word_counts)
    return tmp_path / "a.npy"


def test_numpy_reads_the_rows_and_the_ids_stand_beside(path: Path, word_counts: Any) -> None:
    np.testing.assert_array_equal(np.load(path), word_counts.encode(TEXTS))
    assert path.with_suffix(".ids.txt").read_text() == "d0\nd1\nd2\nd3\n"
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["a.ids.txt", "a.manifest.json", "a.npy"]


def test_the_manifest_says_what_made_them(path: Path, word_counts: Any) -> None:
    manifest = json.loads(path.with_suffix(".manifest.json").read_text())
    said = {key: manifest[key] for key in ("count", "dim", "dtype", "kind", "similarity", "fingerprint", "compute")}
    assert said == {
        "count": 4,
        "dim": 12,
        "dtype": "float32",
        "kind": "document",
        "similarity": "cosine",
        "fingerprint": word_counts.fingerprint,
        "compute": {"backend": "counting"},
    }
    assert manifest["files"]["a.npy"]["bytes"] == path.stat().st_size


def test_they_open_as_they_were_written(path: Path, word_counts: Any) -> None:
    opened = open_vectors(path)
    assert opened.ids == ["d0", "d1", "d2", "d3"]
    assert opened.manifest["fingerprint"] == word_counts.fingerprint
    np.testing.assert_array_equal(opened.rows, word_counts.encode(TEXTS))


@pytest.mark.parametrize("name", ["a.npy", "a.ids.txt", "a.manifest.json"])
def test_a_flipped_byte_is_found(path: Path, name: str) -> None:
    damaged = path.with_name(name)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(IntegrityError, match=name):
        open_vectors(path)


def test_an_array_of_anybody_is_numbered(tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", np.eye(3))
    opened = open_vectors(tmp_path / "b.npy")
    assert (list(opened.ids), opened.manifest) == (["0", "1", "2"], {})
    (tmp_path / "b.ids.txt").write_text("x\ny\n")
    with pytest.raises(DataError, match=r"has 2 lines, .* has 3 rows"):
        open_vectors(tmp_path / "b.npy")


@pytest.mark.parametrize(
    "array",
    [np.zeros(3), np.zeros((2, 2), int), np.zeros((2, 2, 2)), np.array([["a"]])],
    ids=["1d", "int", "3d", "text"],
)
def test_other_arrays_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "c.npy", array)
    with pytest.raises(DataError, match=r"expected floats of shape \(rows, dim\)"):
        open_vectors(tmp_path / "c.npy")


def test_pickled_arrays_and_other_files_are_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "e.npy").write_bytes(b"nothing")
    for name in ("d.npy", "e.npy"):
        with pytest.raises(DataError, match="is not an array of numbers"):
            open_vectors(tmp_path / name)
    with pytest.raises(UsageError, match=r"f\.npy is not there"):
        open_vectors(tmp_path / "f.npy")


def test_a_newer_format_is_refused(path: Path) -> None:
    from embedkit.storage import read_json, write_json

    manifest = path.with_suffix(".manifest.json")
    write_json(manifest, {**read_json(manifest), "version": 3})
    with pytest.raises(IntegrityError, match="has another format than embedkit-vectors 2"):
        open_vectors(path)


# --- of strangers -----------------------------------------------------------------------------------------------------


def resealed(path: Path, change: Any) -> None:
    """The manifest as somebody may hand it on: changed, its checksum made anew."""
    manifest = json.loads(path.with_suffix(".manifest.json").read_text())
    del manifest["checksum"]
    change(manifest)
    path.with_suffix(".manifest.json").write_bytes(sealed_json(manifest))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.pop("files"), "files is missing"),
        (lambda m: m.update(files=[1]), "files is [1], not a mapping"),
        (lambda m: m["files"].update({"a.npy": None}), "files.a.npy is None, not a mapping"),
        (lambda m: m["files"]["a.npy"].update(bytes="1"), "files.a.npy.bytes is '1', not a whole number"),
        (lambda m: m["files"].update({"/dev/zero": {"bytes": 0, "sha256": ""}}), "names a file of another output"),
        (lambda m: m.update(dtype="evil"), "dtype is 'evil', not 'float32' or"),
        (lambda m: m.update(settings=[1]), "settings is [1], not a mapping"),
        (lambda m: m.update(settings={"model": 3}), "settings.model is 3, not a text or null"),
        (lambda m: m.update(on_long="perhaps"), "on_long is 'perhaps'"),
        (lambda m: m.update(fingerprint=7), "fingerprint is 7"),
        (lambda m: m.update(count=10**30), "rows of 12 numbers in float32, a.npy is of shape (4, 12)"),
        (lambda m: m.update(dim=13), "4 rows of 13 numbers in float32"),
        (lambda m: m.update(precision="int8"), "4 rows of 12 numbers in int8"),
    ],
)  # fmt: skip
def test_a_manifest_with_other_fields_is_damage(path: Path, change: Any, words: str) -> None:
    resealed(path, change)
    with pytest.raises(IntegrityError) as caught:
        open_vectors(path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "ids"),
    [
        (b"\xef\xbb\xbfa\r\nb\r\n", ["a", "b"]),
        (b"\xef\xbb\xbfa\nb", ["a", "b"]),
        (b"a\rb\r", ["a", "b"]),
        ("a\u2028c\nb\u0085\n".encode(), ["a\u2028c", "b\u0085"]),  # no line ends of such files
    ],
)
def test_lists_of_ids_as_editors_write_them(tmp_path: Path, content: bytes, ids: list[str]) -> None:
    np.save(tmp_path / "v.npy", np.eye(2, dtype=np.float32))
    (tmp_path / "v.ids.txt").write_bytes(content)
    assert open_vectors(tmp_path / "v.npy").ids == ids


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a\nb".encode("utf-16"), "v.ids.txt is not UTF-8"),
        (b"a\n\n", "v.ids.txt, line 2: the line is empty"),
        (b"x\na\rb\n", "v.ids.txt, line 2: a carriage return stands inside the line"),
    ],
)
def test_lists_of_ids_that_are_none(tmp_path: Path, content: bytes, words: str) -> None:
    np.save(tmp_path / "v.npy", np.eye(2, dtype=np.float32))
    (tmp_path / "v.ids.txt").write_bytes(content)
    with pytest.raises(DataError, match=words):
        open_vectors(tmp_path / "v.npy")


def npy(header: dict[str, Any], data: bytes = b"") -> bytes:
    text = repr(header).ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize(
    "content",
    [
        npy({"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 0)}),  # an id a row would fill all memory
        npy({"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 8)}, b"1234"),
        npy({"descr": "<f4", "fortran_order": False, "shape": (-1, 8)}),
        npy({"descr": "|O", "fortran_order": False, "shape": (1, 1)}),
        npy({"descr": "<c8", "fortran_order": False, "shape": (1, 1)}, bytes(8)),
        b"PK\x03\x04" + bytes(40),  # a zip archive, which numpy would open as several arrays
    ],
    ids=["no width", "short", "negative", "objects", "complex", "zip"],
)
def test_an_array_that_is_none_is_refused_at_once(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "v.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"v\.npy (is not an array of numbers|holds .*; expected floats)"):
        open_vectors(tmp_path / "v.npy")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("o\udcff.npy", "is no name in UTF-8; choose another"),
        ("x" * 240 + ".npy", "is too long a name: files beside it would have 265 bytes, 255 are possible"),
    ],
)
def test_names_that_cannot_be_published_are_refused_before_the_first_text(
    tmp_path: Path, name: str, words: str
) -> None:
    def opened() -> Any:
        raise AssertionError("no model is opened")

    with pytest.raises(UsageError, match=words):
        embed_to_file(DOCUMENTS, tmp_path / name, opened)
    assert not any(tmp_path.iterdir())


def test_the_longest_name_is_published(tmp_path: Path, word_counts: Any) -> None:
    path = tmp_path / ("x" * 230 + ".npy")
    embed_to_file(DOCUMENTS, path, word_counts)
    assert open_vectors(path).ids == ["d0", "d1", "d2", "d3"]


def test_rows_without_ids_are_numbered_and_take_no_memory(tmp_path: Path) -> None:
    """A sparse file of a few blocks holds as many rows as its header says."""
    count = 1 << 33
    (tmp_path / "v.npy").write_bytes(npy({"descr": "<f2", "fortran_order": False, "shape": (count, 1)}))
    with (tmp_path / "v.npy").open("r+b") as stream:
        stream.truncate(128 + 2 * count)
    opened = open_vectors(tmp_path / "v.npy")
    assert (len(opened.ids), opened.ids[count - 1]) == (count, str(count - 1))
