"""What a build was predicted to take and what it took, in a file beside the segment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedkit.errors import IntegrityError
from embedkit.index import Index
from embedkit.index.meter import Meter
from embedkit.jobs import build_index
from embedkit.storage import read_json

from ..conftest import bent_rows

FIRST = "segment-0001.built.json"


def test_a_build_says_what_it_took_beside_what_was_predicted(tmp_path: Path) -> None:
    index = build_index(bent_rows(2000), tmp_path / "an.index", coarse="IVF16,SQ8", recall=0.9)
    (said,) = index.info()["builds"]
    assert said["segment"] == 1 and said["threads"] >= 1
    assert (said["ram"]["measured"], said["disk"]["measured"]) == (index.bytes_in_ram(), index.bytes_on_disk())
    assert said["ram"]["predicted"] == pytest.approx(index.bytes_in_ram(), rel=0.05)
    assert said["disk"]["predicted"] == pytest.approx(index.bytes_on_disk(), rel=0.1)
    assert min(said["query_seconds"].values()) > 0
    whole = read_json(index.path / FIRST)["measured"]
    assert whole["probes"] == index.manifest.segments[0].probes
    assert {"documents", "ids", "rows", "train", "code", "measure", "seal"} <= set(whole["phases"])
    assert whole["build_seconds"] == pytest.approx(sum(whole["phases"].values()))


def test_a_sparse_leg_is_not_counted(tmp_path: Path) -> None:
    rows = [{"_id": str(n), "text": f"word{n} and more"} for n in range(50)]
    vectors = bent_rows(50)
    plain = build_index(vectors, tmp_path / "a", documents=rows).info()["builds"][0]
    both = build_index(vectors, tmp_path / "b", documents=rows, sparse="bm25").info()["builds"][0]
    assert (both["ram"], both["disk"]) == (plain["ram"], plain["disk"])
    assert "sparse" not in read_json(tmp_path / "b" / FIRST)["measured"]["phases"]


def test_codes_of_an_unknown_kind_are_measured_alone(tmp_path: Path) -> None:
    index = build_index(bent_rows(1000), tmp_path / "an.index", coarse="IVF4_HNSW4,SQ8")
    assert index.info()["builds"][0]["ram"] == {"predicted": None, "measured": index.bytes_in_ram()}


def test_the_record_stays_as_long_as_its_segment(tmp_path: Path) -> None:
    rows = bent_rows(300)
    with build_index(rows[:200], tmp_path / "an.index", ids=[str(n) for n in range(200)]) as index:
        index.add(rows[200:202], ids=["a", "b"])
        assert (index.path / FIRST).is_file() and [said["segment"] for said in index.info()["builds"]] == [1]
        index.verify()
        index.delete(["0"])
        index.compact()
    assert not (index.path / FIRST).exists()
    assert Index(index.path).info()["builds"] == []


def test_a_record_that_was_changed_is_found_and_one_that_is_missing_is_not_missed(tmp_path: Path) -> None:
    index = build_index(bent_rows(30), tmp_path / "an.index")
    path = index.path / FIRST
    content = path.read_bytes()
    for changed in (content.replace(b'"segment', b'"Segment').replace(b"1", b"2", 1), content[:-1], b""):
        path.write_bytes(changed)
        with pytest.raises(IntegrityError, match=r"built\.json"):
            index.verify()
    path.unlink()
    index.verify()
    assert index.info()["builds"] == [] and len(index.search(bent_rows(30)[:1], 3).ids[0]) == 3


def test_memory_is_that_of_the_phase_it_was_held_in() -> None:
    meter = Meter()
    if meter.peak is None and not Path("/proc/self/statm").exists():
        pytest.skip("no /proc here")
    with meter.phase("much"):
        held = np.ones(8_000_000)
        assert held.sum() == len(held)
    del held
    with meter.phase("little"), pytest.raises(ValueError, match="no"):
        raise ValueError("no")
    assert 60e6 < meter.peaks["much"] < 100e6 and meter.peaks["little"] < 30e6
    assert meter.peak == meter.peaks["much"] and list(meter.seconds) == ["much", "little"]
