"""Bytes that are worked out, against those of what is really built."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest

from embedkit.index import Layout, coarse
from embedkit.index.document_writer import DocumentWriter
from embedkit.index.documents import DocumentReader
from embedkit.index.ids import write_ids
from embedkit.index.sizes import anatomy, document_bytes, fine_bytes, id_bytes
from embedkit.jobs import build_index
from embedkit.types import Document

from ..conftest import bent_rows

DIM = 32


@pytest.mark.parametrize("rows", [1000, 3001])
@pytest.mark.parametrize(
    "factory",
    [
        "SQ8",
        "Flat",
        "PQ16x4fs",
        "PQ15x4fs",
        "IVF16,SQ8",
        "IVF16,Flat",
        "IVF16,RaBitQ",
        "PQ8x4",
        "PCAR32,IVF16,PQ32x4fs",
        "PCAR24,IVF64,PQ12x4fs",
        "RR32,IVF16,PQ16x4fs",
        "HNSW16",
        "HNSW8_SQ8",
    ],
)
def test_codes_take_what_faiss_writes(factory: str, rows: int) -> None:
    dim = 30 if "PQ15" in factory else DIM
    vectors = bent_rows(rows, dim)
    index = coarse.new_codes(factory, dim)
    index.train(vectors)
    index.add(vectors)
    written, found = len(faiss.serialize_index(index)), anatomy(factory, dim)
    assert found is not None
    headers = 500
    slack = 0.02 * written if "fs" in factory or "HNSW" in factory else 0.001 * written
    assert abs(found.codes(rows) - written) < headers + slack


def test_a_million_rows_take_codes_row_numbers_and_centroids() -> None:
    """By hand: 96 pieces of 4 bits are 48 bytes; half a block of 32 rows is empty in each list."""
    found = anatomy("RR384,IVF2048,PQ96x4fs", 384)
    assert found is not None
    rows = 10**6 * (48 + 8) + 2048 * 31 * 24
    fixed = 4 * 384 * 384 + 2048 * (4 * 384 + 24) + 4 * 384 * 16
    assert found.codes(10**6) == rows + fixed


@pytest.mark.parametrize("factory", ["IVF16_HNSW8,SQ8", "RR32,IVF16,RaBitQfs", "NSG16"])
def test_codes_of_other_kinds_are_not_guessed(factory: str) -> None:
    assert anatomy(factory, DIM) is None


@pytest.mark.parametrize("fine", ["float32", "float16", "int8"])
def test_the_rows_of_an_index_take_what_was_said(fine: str, tmp_path: Path) -> None:
    index = build_index(bent_rows(100, DIM), tmp_path / "an.index", fine=fine, coarse="none")
    files = index.manifest.segments[0].files
    assert files["fine.npy"]["bytes"] == fine_bytes(100, DIM, fine)
    assert files["ids.npy"]["bytes"] == id_bytes(100, None)


def test_ids_take_what_was_said(tmp_path: Path) -> None:
    for names, mean in ((["0", "17", "4000000000"], None), (["a", "bcd", "ß"], 2.0)):
        parts = write_ids(lambda part: tmp_path / part, names)
        assert sum((tmp_path / part).stat().st_size for part in parts) == id_bytes(3, mean)


@pytest.mark.parametrize("text", [0, 60, 700, 3000, 9000])
@pytest.mark.parametrize("count", [600, 5000])
def test_documents_take_nearly_what_was_said(text: int, count: int, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    writer = DocumentWriter(tmp_path / "d.sqlite")
    lengths = draw.integers(text // 2, 3 * text // 2 + 1, size=count).tolist()
    writer.append((Document(f"doc-{row}", "x" * length) for row, length in enumerate(lengths)), texts=True)
    writer.close()
    DocumentReader(tmp_path / "d.sqlite", count).close()
    said = document_bytes(count, writer.text_bytes / count, writer.id_bytes / count)
    assert said == pytest.approx((tmp_path / "d.sqlite").stat().st_size, rel=0.15)


def test_automatic_codes_are_planned_for_at_any_size() -> None:
    for rows in (20_001, 10**6, 10**9):
        factory = Layout().factory(rows, 384)
        assert factory is not None and anatomy(factory, 384) is not None
