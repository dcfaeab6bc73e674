"""Outputs of other precisions: what is stored, by which ranges, and that a job which was stopped keeps them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

import embedkit.engine.run as run
from embedkit.engine import embed_to_file, open_vectors
from embedkit.engine.row_form import RowForm, check_calibration
from embedkit.errors import DataError, IntegrityError, UsageError
from embedkit.storage import file_record, read_json
from embedkit.types import Document
from embedkit.vectors import Ranges

from .fakes import DIM, Plain, Windowed, documents, rows
from .test_job import ODD, contents, records, stopped

PRECISIONS = ["float16", "int8", "binary"]
every_precision = pytest.mark.parametrize("precision", PRECISIONS)
GIVEN = documents(20)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "WINDOW", 3)


def expected(given: list[Document], precision: str, window: int = 3) -> np.ndarray:
    """By hand: int8 codes by the extremes of the first window."""
    floats = rows(document.full_text for document in given)
    if precision == "float16":
        return floats.astype(np.float16)
    if precision == "binary":
        return np.packbits(floats > 0, axis=1)
    lowest, highest = floats[:window].min(axis=0), floats[:window].max(axis=0)
    return np.clip(np.floor((floats - lowest) / ((highest - lowest) / 255)), 0, 255).astype(np.uint8)


@every_precision
@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_rows_are_stored_as_they_were_asked_for(tmp_path: Path, precision: Any, form: str) -> None:
    manifest = embed_to_file(GIVEN, tmp_path / f"x.{form}", Plain(), precision=precision)
    opened, wanted = open_vectors(tmp_path / f"x.{form}"), expected(GIVEN, precision)
    np.testing.assert_array_equal(opened.rows, wanted)
    assert opened.rows.dtype == wanted.dtype
    assert opened.ids == [document.id for document in GIVEN]
    assert (manifest["precision"], manifest["dtype"]) == (precision, wanted.dtype.name)
    assert (manifest["count"], manifest["dim"]) == (20, DIM)
    beside = {"x.manifest.json", f"x.{form}", *(["x.ids.txt"] if form == "npy" else [])}
    assert {path.name for path in tmp_path.iterdir()} == beside | ({"x.ranges.npy"} if precision == "int8" else set())
    if form == "npy":
        np.testing.assert_array_equal(np.load(tmp_path / "x.npy", allow_pickle=False), wanted)
    else:
        column = pyarrow.parquet.read_table(tmp_path / "x.parquet").column("embedding")
        assert column.to_pylist() == wanted.tolist()
        assert column.type.list_size == wanted.shape[1]


def test_the_ranges_lie_beside_the_codes_and_are_named_with_their_hash(tmp_path: Path) -> None:
    manifest = embed_to_file(GIVEN, tmp_path / "x.npy", Plain(), precision="int8")
    ranges = Ranges.read(tmp_path / "x.ranges.npy")
    first = rows(document.full_text for document in GIVEN[:3])
    np.testing.assert_array_equal(ranges.array, Ranges.of(first).array)
    assert manifest["files"]["x.ranges.npy"] == file_record(tmp_path / "x.ranges.npy")
    outside = ranges.outside(rows(document.full_text for document in GIVEN)) / (20 * DIM)
    assert manifest["ranges"] == {"given": False, "rows": 3, "outside": outside}
    opened = open_vectors(tmp_path / "x.npy")
    assert opened.ranges is not None
    np.testing.assert_array_equal(opened.ranges.array, ranges.array)


def test_ranges_that_are_given_code_other_vectors(tmp_path: Path) -> None:
    """Queries by those of the documents: each has the code that it would have among these."""
    ranges = Ranges.of(rows(document.full_text for document in GIVEN))
    manifest = embed_to_file(GIVEN[4:9], tmp_path / "x.npy", Plain(), precision="int8", ranges=ranges, kind="query")
    codes = ranges.encode(rows(document.full_text for document in GIVEN))
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), codes[4:9])
    assert manifest["ranges"] == {"given": True, "rows": None, "outside": 0.0}
    np.testing.assert_array_equal(Ranges.read(tmp_path / "x.ranges.npy").array, ranges.array)
    embed_to_file(GIVEN[5:6], tmp_path / "one.npy", Plain(), precision="int8", ranges=ranges)
    np.testing.assert_array_equal(np.load(tmp_path / "one.npy"), codes[5:6])
    again = embed_to_file(
        GIVEN, tmp_path / "z.npy", Plain(), precision="int8", ranges=Ranges.read(tmp_path / "x.ranges.npy")
    )
    assert again["files"]["z.ranges.npy"] == manifest["files"]["x.ranges.npy"]


def test_windows_before_the_first_vector_calibrate_nothing(tmp_path: Path) -> None:
    given = [*[Document(f"b{n}", "bad") for n in range(4)], Document("c", "one"), *GIVEN]
    manifest = embed_to_file(given, tmp_path / "x.npy", Windowed(), precision="int8")
    assert (manifest["ranges"]["rows"], manifest["set_aside"]) == (2, 4)


def test_no_vector_needs_no_ranges(tmp_path: Path) -> None:
    for name in ("x.npy", "x.parquet"):
        manifest = embed_to_file([Document("b", "bad")], tmp_path / name, Windowed(), precision="int8", overwrite=True)
        opened = open_vectors(tmp_path / name)
        assert (opened.rows.shape, opened.rows.dtype, opened.ranges) == ((0, DIM), np.uint8, None)
        assert "ranges" not in manifest


# --- going on -------------------------------------------------------------------------------------------------------


@every_precision
@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_a_run_that_ended_anywhere_goes_on_to_the_same_bytes(tmp_path: Path, precision: Any, form: str) -> None:
    given = [*ODD, *documents(8)]
    (tmp_path / "whole").mkdir()
    embed_to_file(given, tmp_path / "whole" / f"x.{form}", Windowed(), precision=precision)
    for count in (0, 3, 4, 8, 15):
        folder = tmp_path / f"again{count}"
        folder.mkdir()
        behind = [*given, Document("", "")]
        stopped(behind, count, folder / f"x.{form}", Windowed(), precision=precision, resume=True)
        stopped(behind, min(count + 4, 15), folder / f"x.{form}", Windowed(), precision=precision, resume=True)
        embed_to_file(given, folder / f"x.{form}", Windowed(), precision=precision, resume=True)
        assert contents(folder) == contents(tmp_path / "whole")


def test_a_job_that_goes_on_keeps_its_ranges_whatever_the_model_gives_now(tmp_path: Path) -> None:
    class Wide(Plain):
        def encode(self, inputs: Any, *, kind: str = "document") -> np.ndarray:
            return 10 * super().encode(inputs)

    path = stopped(GIVEN, 7, tmp_path / "x.npy", precision="int8")
    assert [("ranges" in record, record["outside"] >= 0) for record in records(path)[1:]] == [
        (True, True),
        (False, True),
    ]
    embed_to_file(GIVEN, path, Wide(), precision="int8", resume=True)
    codes = Ranges.of(rows(document.full_text for document in GIVEN[:3])).encode(
        10 * rows(document.full_text for document in GIVEN[6:])
    )
    np.testing.assert_array_equal(np.load(path)[6:], codes)


def test_rows_appended_to_a_first_window_calibrate_it_anew(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("embedkit.engine.job.seal", lambda *_: 1 // 0)
        embed_to_file(GIVEN[:2], tmp_path / "x.npy", Plain(), precision="int8")
    embed_to_file(GIVEN, tmp_path / "x.npy", Plain(), precision="int8", resume=True)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), expected(GIVEN, "int8"))


def test_another_precision_and_other_ranges_are_other_settings(tmp_path: Path) -> None:
    some, others = (Ranges.of(rows(document.full_text for document in GIVEN[start:])) for start in (0, 9))
    path = stopped(GIVEN, 7, tmp_path / "x.npy", precision="int8", ranges=some)
    with pytest.raises(UsageError, match=r"\(precision: int8 then, binary now, ranges: \w+ then, None now\)"):
        embed_to_file(GIVEN, path, Plain(), precision="binary", resume=True)
    with pytest.raises(UsageError, match=r"\(ranges: \w+ then, \w+ now\)"):
        embed_to_file(GIVEN, path, Plain(), precision="int8", ranges=others, resume=True)
    embed_to_file(GIVEN, path, Plain(), precision="int8", ranges=some, resume=True)


def test_an_output_that_is_overwritten_takes_its_ranges_along(tmp_path: Path) -> None:
    embed_to_file(GIVEN, tmp_path / "x.npy", Plain(), precision="int8")
    embed_to_file(GIVEN, tmp_path / "x.npy", Plain(), overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy", "x.ids.txt", "x.manifest.json"}
    (tmp_path / "y.ranges.npy").write_text("mine")
    with pytest.raises(UsageError, match=r"y\.ranges\.npy is there already"):
        embed_to_file(GIVEN, tmp_path / "y.npy", Plain(), precision="int8")


def test_ranges_that_changed_since_are_damage(tmp_path: Path) -> None:
    embed_to_file(GIVEN, tmp_path / "x.npy", Plain(), precision="int8")
    content = bytearray((tmp_path / "x.ranges.npy").read_bytes())
    content[-1] ^= 1
    (tmp_path / "x.ranges.npy").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"x\.ranges\.npy has changed"):
        open_vectors(tmp_path / "x.npy")


# --- what is said ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interrupted", [False, True])
def test_drift_is_said_once_and_stands_in_the_manifest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, interrupted: bool
) -> None:
    given = documents(200)
    ranges = Ranges.of(0.5 * rows(document.full_text for document in given))
    if interrupted:
        stopped(given, 7, tmp_path / "x.npy", precision="int8", ranges=ranges)
    embed_to_file(given, tmp_path / "x.npy", Plain(), precision="int8", ranges=ranges, resume=interrupted)
    share = ranges.outside(rows(document.full_text for document in given)) / (200 * DIM)
    assert share > 0.2
    assert read_json(tmp_path / "x.manifest.json")["ranges"]["outside"] == share
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.startswith(f"{100 * share:.2f} % of the values lie outside the int8 ranges")
    assert "--ranges" in warning and "--precision float16" in warning


def test_rows_within_the_ranges_are_no_drift(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ranges = Ranges.of(rows(document.full_text for document in GIVEN))
    embed_to_file(GIVEN, tmp_path / "x.npy", Plain(), precision="int8", ranges=ranges)
    assert not caplog.records or all(record.levelno < logging.WARNING for record in caplog.records)


@pytest.mark.parametrize(("precision", "value"), [("float16", 70000), ("int8", np.nan), ("binary", np.inf)])
def test_a_document_whose_vector_does_not_fit_is_named(tmp_path: Path, precision: Any, value: float) -> None:
    class Loud(Windowed):
        def _window(self, number: int, texts: Any, *rest: Any) -> Any:
            found = super()._window(number, texts, *rest)
            for row, place in enumerate(found.inputs):
                if texts[place] == "loud":
                    found.rows[row, 2] = value
            return found

    given = [*documents(4), Document("b", "bad"), Document("culprit", "loud"), *documents(9)[4:]]
    with pytest.raises(DataError, match=rf"^At the document 'culprit': The row .* which {precision} cannot hold"):
        embed_to_file(given, tmp_path / "x.npy", Loud(), precision=precision)
    embed_to_file(given[:5], tmp_path / "y.npy", Loud(), precision=precision)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "int8", "kind": "query"}, "int8 queries need the ranges of the documents"),
        ({"precision": "int8", "shard": (1, 2)}, "int8 parts need the same ranges"),
        ({"precision": "int4"}, "precision='int4' came"),
        ({"precision": "binary", "ranges": Ranges.of(np.eye(DIM, dtype=np.float32))}, "ranges belong to int8"),
        ({"precision": "int8", "ranges": Ranges.of(np.eye(3, dtype=np.float32))}, "Ranges of 3 dimensions came"),
    ],
)
def test_what_cannot_be_coded_well_is_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        embed_to_file(GIVEN, tmp_path / "x.npy", Plain(), **options)
    assert not list(tmp_path.iterdir())


def test_queries_and_parts_with_ranges_are_taken() -> None:
    for kind in ("query", "document"):
        check_calibration("int8", True, kind, sharded=True)
        check_calibration("float16", False, kind, sharded=True)
    check_calibration("int8", False, "document", sharded=False)


def test_bytes_a_row() -> None:
    widths = {name: RowForm(name, 13, None).width for name in ("float32", *PRECISIONS)}
    assert widths == {"float32": 52, "float16": 26, "int8": 13, "binary": 2}


def test_a_record_is_json(tmp_path: Path) -> None:
    form = RowForm("int8", DIM, None)
    _, facts = form.stored(rows(["a", "b"]))
    again = RowForm("int8", DIM, None)
    again.go_on_with(json.loads(json.dumps(facts))["ranges"])
    assert again.ranges is not None and form.ranges is not None
    np.testing.assert_array_equal(again.ranges.array, form.ranges.array)
