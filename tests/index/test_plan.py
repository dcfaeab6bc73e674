"""What an index is said to take: the counting, and the choice among options."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from embedkit.errors import DataError, UsageError
from embedkit.index.calibration import HELD_OUT
from embedkit.index.costs import (
    Calibration,
    Reach,
    Task,
    code_work,
    predict,
    query_seconds,
    query_work,
    read_calibration,
)
from embedkit.index.plan import Goal, best, options
from embedkit.index.sizes import anatomy

# every cost is 1 of something, so that sums can be told in the head
COSTS = Calibration(
    machine={"cpu": "none"},
    process=10**8,
    documents=10**8,
    range_copies=3.0,
    block_copies=1.0,
    coded_copies=1.0,
    sample_copies=2.0,
    slack=1.5,
    document_s=1e-6,
    value_s=1e-9,
    byte_s=1e-10,
    flop_s=1e-11,
    coded_s={"fast": 1e-9, "scalar": 2e-9},
    query_s=1e-5,
    list_s=1e-6,
    scanned_s={
        "fast": ((1e6, 1e-11), (1e8, 3e-11)),
        "scalar": ((1e7, 1e-10),),
        "flat fast": ((1e7, 1e-11),),
        "flat scalar": ((1e7, 1e-10),),
    },
    verified_s=1e-7,
    exact_s={"float32": 1e-10, "float16": 2e-10, "int8": 3e-10},
    reach=(
        Reach(1.0, 0.9, 256, 12, 40),
        Reach(1.0, 0.97, 256, 26, 70),
        Reach(0.5, 0.9, 256, 100, 150),
    ),
    growth=0.5,
)


def test_an_exact_index_is_its_rows() -> None:
    said = predict(Task(10**6, 100, None, "float16"), COSTS, threads=2)
    rows, ids = 128 + 10**6 * 200, 128 + 4 * 10**6
    assert said.ram == rows + ids
    assert said.disk is not None and rows + ids < said.disk < rows + ids + 10**6 * 80
    assert said.query_seconds == pytest.approx(10**8 * 2e-10)
    assert said.probes is None and said.reached
    assert said.phases["documents"] == pytest.approx(1.0) and said.phases["rows"] == pytest.approx(0.1)
    assert said.build_peak == 10**8  # SQLite's caches are more than a block of rows


def test_the_work_of_codes_is_counted_by_hand() -> None:
    factory = "IVF1024,SQ8"
    task, parts = Task(10**6, 100, factory), anatomy(factory, 100)
    assert parts is not None
    work = code_work(task, parts)
    sample = 81_920  # 40 a list would be fewer
    assert work.train == sample * 10 * 2 * 1024 * 100
    assert work.assign == 10**6 * 2 * 1024 * 100
    assert work.coded == 10**8
    assert work.measure == 2 * 1024 * 10**8
    assert query_work(task, parts, 128) == (2 * 100 * 1024, 10**6 * 100 / 8)


def test_a_query_visits_what_the_calibration_needed_and_a_margin_where_no_recall_is_given() -> None:
    factory = "RR384,IVF1024,PQ96x4fs"  # 1 bit a dimension
    held = predict(Task(10**6, 384, factory, recall=0.95), COSTS, 1)
    assert (held.probes, held.shortlist, held.reached) == (
        52,
        70,
        True,
    )  # by the next recall above, 0.97; 26 * sqrt(1024 / 256)
    free = predict(Task(10**6, 384, factory), COSTS, 1)
    assert (free.probes, free.shortlist) == (128, 100)
    beyond = predict(Task(10**6, 384, factory, recall=0.99), COSTS, 1)
    assert (beyond.probes, beyond.reached) == (1024, False)
    scanned = 128 / 1024 * 10**6 * 48
    byte = 1e-11 + 2e-11 * math.log10(6) / 2  # 6 MB of codes, between 1 and 100
    found = 2 * 384 * (1024 + 384) * 1e-11  # to its lists, once it is turned
    assert free.query_seconds == pytest.approx(1e-5 + found + 128e-6 + scanned * byte + 100e-7)


@pytest.mark.parametrize("recall", [0.5, 0.9999])
def test_codes_without_lists_are_searched_whole(recall: float) -> None:
    """Whether they reach the recall or not."""
    task = Task(10**6, 384, "PQ12x4fs", recall=recall)
    said = predict(task, COSTS, 1)
    assert said.probes is None
    searched = query_seconds(task, anatomy("PQ12x4fs", 384), COSTS, None, 0)
    assert said.phases["measure"] == pytest.approx(HELD_OUT * (searched + 2 * 10**6 * 384 * COSTS.flop_s))


def test_threads_share_what_faiss_does_and_nothing_else() -> None:
    task = Task(10**6, 384, "IVF1024,SQ8")
    one, four = (predict(task, COSTS, threads) for threads in (1, 4))
    for phase in ("train", "code", "measure"):
        assert one.phases[phase] == pytest.approx(4 * four.phases[phase])
    for phase in ("documents", "rows", "seal"):
        assert one.phases[phase] == four.phases[phase]
    assert one.query_seconds == four.query_seconds


def test_less_memory_for_training_lowers_the_peak() -> None:
    task = Task(10**7, 384, "IVF1024,SQ8")
    costs = replace(COSTS, documents=0, slack=0.0, sample_copies=3.0)
    limited = predict(replace(task, sample_ram=200_000_000), costs, 1)
    free = predict(task, costs, 1)
    assert limited.build_peak is not None and free.build_peak is not None and limited.build_peak < free.build_peak


def test_kinds_that_are_not_known_have_no_numbers() -> None:
    assert predict(Task(10**5, 32, "IVF16_HNSW8,SQ8"), COSTS, 1).ram is None
    graph = predict(Task(10**5, 32, "HNSW16"), COSTS, 1)
    assert graph.ram is not None and graph.query_seconds is None and graph.build_seconds is None


def test_every_option_fits_its_machines_and_one_machine_fewer_is_too_few() -> None:
    ram = 16 * 10**9
    found = options(Goal(10**9, 384, ram, 8), COSTS)
    assert {option.fine for option in found} == {"float32", "float16", "int8"}
    assert {option.bytes_per_vector for option in found} == {24, 40, 56, 72, None}
    for option in found:
        assert option.prediction.ram is not None and option.prediction.build_peak is not None
        assert COSTS.process + max(option.prediction.ram, option.prediction.build_peak) <= ram
    exact = next(option for option in found if option.coarse is None and option.fine == "float16")
    assert exact.machines == -(-(10**9 * 772 + 256) // (ram - COSTS.process))
    assert exact.queries_per_second == pytest.approx(8 / (-(-(10**9) // exact.machines) * 384 * 2e-10))


def test_the_best_option_has_the_fewest_machines_that_reach_the_recall() -> None:
    found = options(Goal(10**8, 384, 16 * 10**9, 2, 0.95), COSTS)
    chosen = best(found)
    assert chosen is not None and chosen.bytes_per_vector in (56, 72)
    assert not any(one.prediction.reached for one in found if one.bytes_per_vector in (24, 40))
    assert best(options(Goal(10**8, 384, 10**8, 2), COSTS)) is None  # the process alone takes it


def test_few_rows_are_searched_exactly() -> None:
    assert {option.coarse for option in options(Goal(20_000, 384, 10**9, 2), COSTS)} == {None}


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**asdict(COSTS), "reach": [entry._asdict() for entry in COSTS.reach]}))
    assert read_calibration(path) == COSTS
    path.write_text("{}")
    with pytest.raises(DataError, match="is no calibration"):
        read_calibration(path)
    with pytest.raises(UsageError, match="is not there"):
        read_calibration(tmp_path / "none.json")


def test_the_calibration_that_embedkit_brings_has_a_cost_for_everything() -> None:
    shipped = read_calibration()
    said = predict(Task(10**6, 384, "PCAR192,IVF2048,PQ96x4fs"), shipped, 2)
    assert all(seconds > 0 for seconds in said.phases.values())
    assert {*shipped.exact_s} == {"float32", "float16", "int8"} and {*shipped.scanned_s} == {
        "fast",
        "scalar",
        "flat fast",
        "flat scalar",
    }
