"""Vectors in several files: parts of autofaiss, folders of clip-retrieval, several outputs of `embedkit embed`, our own exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedkit.engine import holds_vectors
from embedkit.engine.vector_folder import JoinedRows
from embedkit.errors import DataError, UsageError
from embedkit.export import export_index
from embedkit.index import Index
from embedkit.jobs import add_to_index, build_index, embed_corpus
from embedkit.types import Document

from .conftest import bent_rows
from .engine.fakes import Plain, Windowed, documents, rows

ROWS = bent_rows(12)


def stored(index: Index) -> list[Document]:
    return [document for segment in index.snapshot.segments for document in segment.documents.stream()]


def vectors_of(index: Index) -> np.ndarray:
    return np.concatenate([block for segment in index.snapshot.segments for block in segment.fine.blocks()])


def autofaiss(folder: Path) -> Path:
    """Three parts; part_10 comes before part_2 there, too."""
    folder.mkdir()
    for name, part in (("part_1", ROWS[:3]), ("part_10", ROWS[3:4]), ("part_2", ROWS[4:])):
        np.save(folder / f"{name}.npy", part.astype(np.float16))
    return folder


def clip_retrieval(folder: Path) -> Path:
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for number, part in enumerate((slice(0, 5), slice(5, 12))):
        np.save(folder / f"img_emb/img_emb_{number}.npy", ROWS[part])
        np.save(folder / f"text_emb/text_emb_{number}.npy", -ROWS[part])
        places = range(12)[part]
        table = {
            "image_path": [f"{n}.jpg" for n in places],
            "caption": [None if n == 7 else f"a cat {n}" for n in places],
        }
        pq.write_table(pa.table({**table, "width": list(places)}), folder / f"metadata/metadata_{number}.parquet")
    return folder


@pytest.mark.parametrize("fine", ["float16", "int8"])
def test_parts_of_autofaiss_are_rows_in_the_order_of_their_names(tmp_path: Path, fine: str) -> None:
    with build_index(autofaiss(tmp_path / "parts"), tmp_path / "an.index", fine=fine) as index:
        np.testing.assert_allclose(vectors_of(index), ROWS, atol=1e-3 if fine == "float16" else 1e-2)
        assert [document.id for document in stored(index)] == [str(number) for number in range(12)]
    with build_index(tmp_path / "parts", tmp_path / "another.index", limit=4) as index:
        np.testing.assert_allclose(vectors_of(index), ROWS[:4], atol=1e-3)


def test_a_folder_of_clip_retrieval_brings_captions_and_metadata(tmp_path: Path) -> None:
    folder = clip_retrieval(tmp_path / "clip")
    with pytest.raises(UsageError, match=f"give the folder of one: {folder}/img_emb or {folder}/text_emb"):
        build_index(folder, tmp_path / "an.index")
    with build_index(folder / "text_emb", tmp_path / "an.index") as index:
        np.testing.assert_allclose(vectors_of(index), -ROWS, atol=1e-3)
        assert stored(index) == [
            Document(str(n), "" if n == 7 else f"a cat {n}", "", {"image_path": f"{n}.jpg", "width": n})
            for n in range(12)
        ]
    for path in (folder / "text_emb").iterdir():
        path.unlink()
    from embedkit.corpus import Fields

    with build_index(folder, tmp_path / "named.index", fields=Fields(id="image_path")) as index:
        np.testing.assert_allclose(vectors_of(index), ROWS, atol=1e-3)
        assert index.search(ROWS[7:8], k=1).ids == [["7.jpg"]]
        assert index.search(ROWS[7:8], k=1, where={"width": {"lt": 7}}).ids != [["7.jpg"]]


def test_files_that_do_not_fit_each_other_are_named(tmp_path: Path) -> None:
    folder = clip_retrieval(tmp_path / "clip")
    (folder / "text_emb/text_emb_0.npy").unlink()
    with pytest.raises(DataError, match="holds 1 files of vectors and 2 of metadata"):
        build_index(folder / "text_emb", tmp_path / "an.index")
    np.save(folder / "img_emb/img_emb_1.npy", ROWS[:6])
    with pytest.raises(DataError, match=r"img_emb_1.npy has 6 rows, .*metadata_1.parquet has 7"):
        build_index(folder / "img_emb", tmp_path / "an.index")
    parts = autofaiss(tmp_path / "parts")
    np.save(parts / "part_3.npy", ROWS[:, :5])
    with pytest.raises(DataError, match=r"part_3.npy holds rows of width 5 .*part_1.npy of width 32"):
        build_index(parts, tmp_path / "an.index")
    (parts / "part_3.npy").unlink()
    (parts / "part_2.ids.txt").write_text("".join(f"d{n}\n" for n in range(8)))
    with pytest.raises(DataError, match=r"part_1.npy has no ids beside it, other files"):
        build_index(parts, tmp_path / "an.index")
    assert not (tmp_path / "an.index").exists()


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
@pytest.mark.parametrize("on_long", ["truncate", "chunk"])
def test_several_outputs_of_embed_are_one_index_of_their_model(tmp_path: Path, suffix: str, on_long: Any) -> None:
    corpus = [*documents(5), Document("bad", "bad"), *documents(9, "a text that is long")[5:]]
    for number, part in enumerate((corpus[:4], corpus[4:])):
        embed_corpus(part, tmp_path / f"out/part-{number}{suffix}", Windowed(), on_long=on_long)
    assert holds_vectors(tmp_path / "out")
    with build_index(tmp_path / "out", tmp_path / "an.index") as index:
        assert [document.id for document in stored(index)] == [f"d{number}" for number in range(9)]
        assert (index.manifest.source.fingerprint, index.manifest.source.on_long) == ("f" * 64, on_long)
        embed_corpus(corpus, tmp_path / "whole.npy", Windowed(), on_long=on_long)
        with build_index(tmp_path / "whole.npy", tmp_path / "whole.index") as whole:
            np.testing.assert_array_equal(vectors_of(index), vectors_of(whole))
            assert index.search(rows(["text 3"]), k=9).passages == whole.search(rows(["text 3"]), k=9).passages


def test_outputs_of_two_models_are_refused_and_added_ones_checked(tmp_path: Path) -> None:
    class Another(Plain):
        fingerprint = "a" * 64

    embed_corpus(documents(3), tmp_path / "out/a.npy", Plain(), precision="int8")
    with build_index(tmp_path / "out", tmp_path / "an.index") as index:  # the ranges beside it are no part
        assert len(index) == 3
    assert add_to_index(tmp_path / "an.index", tmp_path / "out").documents == 3
    embed_corpus(documents(3), tmp_path / "out/b.npy", Another())
    with pytest.raises(
        DataError, match=r"b.npy holds rows of width 5 by aaaaaaaaaaaa .*a.npy of width 5 by ffffffffffff"
    ):
        build_index(tmp_path / "out", tmp_path / "another.index")


def test_an_export_to_numpy_is_built_again_as_it_was(tmp_path: Path) -> None:
    corpus = [Document(f"d{n}", f"text {n}", f"title {n}", {"year": n, "lang": "de"}) for n in range(9)]
    with build_index(corpus, tmp_path / "an.index", model=Plain()) as index:
        expected, vectors = stored(index), vectors_of(index)
    export_index(tmp_path / "an.index", tmp_path / "out", "numpy")
    with build_index(tmp_path / "out", tmp_path / "again.index") as again:
        assert (stored(again), again.manifest.source.fingerprint) == (expected, "f" * 64)
        np.testing.assert_allclose(vectors_of(again), vectors, atol=1e-3)  # brought to length 1 again


def test_a_corpus_folder_stays_a_corpus_with_vectors_in_it(tmp_path: Path) -> None:
    autofaiss(tmp_path / "parts")
    assert holds_vectors(tmp_path / "parts") and not holds_vectors(tmp_path)
    (tmp_path / "parts/corpus.jsonl").write_text("")
    assert not holds_vectors(tmp_path / "parts")


def test_joined_rows_are_sliced_as_one_array() -> None:
    parts = [ROWS[:0], ROWS[:3], ROWS[3:4], ROWS[4:]]
    joined = JoinedRows(parts)
    for start in range(13):
        for stop in (start, start + 1, start + 5, 12, None):
            np.testing.assert_array_equal(np.asarray(joined[start:stop]), ROWS[start:stop])
            assert joined[start:stop].shape == ROWS[start:stop].shape
    places = np.array([0, 2, 3, 4, 11])
    np.testing.assert_array_equal(joined[places], ROWS[places])
