"""Fewer dimensions and bits from full rows, against the model loaded so and against the codes' own scoring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit.encoders import load
from embedkit.errors import UsageError
from embedkit.eval.grid_page import pareto, shared_tasks, summaries
from embedkit.eval.report import read_reports, write_grid
from embedkit.eval.run import Plan, run
from embedkit.eval.run import read_tasks as tasks_of
from embedkit.eval.variants import SAMPLE, Narrowed, Variant, grid
from embedkit.types import Report
from embedkit.vectors import Ranges, sign_bits, sign_scores, unit_rows

from ..conftest import bent_rows

TEXTS = ["cat dog", "red bird", "fish swim two", "one", "blue dog run"]


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_narrowed_rows_are_those_of_the_model_loaded_with_dim(make_model: Any, similarity: str) -> None:
    folder = make_model(normalize=similarity == "cosine", similarity=similarity)
    full, short = load(folder, dtype="float32"), load(folder, dtype="float32", dim=8)
    narrowed = Narrowed(full, 8, "float32")
    np.testing.assert_allclose(narrowed.encode(TEXTS), short.encode(TEXTS), atol=1e-6)
    assert (narrowed.fingerprint, narrowed.dim) == (short.fingerprint, 8)
    assert narrowed.settings == short.settings
    np.testing.assert_array_equal(full.narrowed(8).encode(TEXTS), short.encode(TEXTS))
    with pytest.raises(UsageError, match="dim=33 was asked for"):
        Narrowed(full, 33, "float32")


class Rows:
    """Texts are numbers of rows."""

    dim, fingerprint, similarity, settings, compute = 32, "f", "cosine", {}, {"backend": "none"}

    def encode(self, inputs: Any, *, kind: str = "document") -> np.ndarray:
        return bent_rows(3000)[[int(one) for one in inputs]]


def test_codes_of_documents_score_as_the_codes_themselves_and_queries_stay() -> None:
    documents, queries = [str(n) for n in range(2500)], [str(n) for n in range(2500, 2600)]
    rows, asked = bent_rows(3000)[:2500], bent_rows(3000)[2500:2600]
    narrowed = Narrowed(Rows(), 16, "int8")
    cut, short = unit_rows(rows[:, :16]), unit_rows(asked[:, :16])
    ranges = Ranges.of(cut[:SAMPLE])
    decoded = narrowed.encode(documents)
    np.testing.assert_allclose(short @ decoded.T, ranges.scores(short, ranges.encode(cut)), atol=1e-5)
    np.testing.assert_array_equal(narrowed.encode(queries, kind="query"), short)
    signs = Narrowed(Rows(), 12, "binary")
    bits = sign_bits(unit_rows(rows[:, :12]))
    np.testing.assert_allclose(
        short[:, :12] @ signs.encode(documents).T * np.sqrt(12), sign_scores(short[:, :12], bits), atol=1e-5
    )
    assert [Narrowed(Rows(), 12, p).bytes_per_row for p in ("float32", "float16", "int8", "binary")] == [48, 24, 12, 2]
    assert signs.compute == {"backend": "none", "precision": "binary"}  # so that no cache takes one for the other
    assert not hasattr(signs, "encode_windows")


def test_a_grid_is_every_combination_and_keeps_layers_together() -> None:
    found = grid([32, 128], [3, 6], ["float32", "int8"])
    assert len(set(found)) == 8
    assert [variant.layers for variant in found] == [3] * 4 + [6] * 4
    assert grid([], [], []) == [Variant()]
    assert [variant.folder for variant in grid([8], [], ["int8", "float32"])] == ["dim=8,int8", "dim=8"]
    assert Variant().folder == "float32"


def test_the_front_by_hand() -> None:
    points = [(1.0, 0.5), (2.0, 0.7), (2.0, 0.6), (3.0, 0.7), (4.0, 0.9), (1.0, 0.5)]
    assert pareto(points) == [True, True, False, False, True, True]


def test_a_grid_of_reports_names_what_all_variants_have(tmp_path: Path) -> None:
    def report(score: float, milliseconds: float) -> Report:
        cost = {"p50 ms": milliseconds, "bytes per row": 4.0}
        return Report({"map": score}, {"map": (0.1, 0.9)}, {}, {"model": "m"}, "map", cost=cost)

    done = {
        Variant(dim=8): {"a": report(0.25, 1.0), "b": report(0.75, 3.0)},
        Variant(dim=16): {"a": report(0.5, 2.0)},  # not done yet with b
    }
    assert shared_tasks(done) == ["a"]
    assert [(row.quality, row.cost["p50 ms"]) for row in summaries(done)] == [(0.25, 1.0), (0.5, 2.0)]
    write_grid(tmp_path, done, "embedkit eval")
    written = json.loads((tmp_path / "report.json").read_text())["variants"]
    assert list(written) == ["dim=8", "dim=16"]
    assert written["dim=8"]["tasks"]["b"]["score"] == 0.75
    assert "| dim=16 | 0.5000 | 0.5000 (0.1000 to 0.9000) | 2 | 4 B |" in (tmp_path / "report.md").read_text()
    with pytest.raises(UsageError, match=r"several variants .*: dim=8, dim=16\."):
        read_reports(tmp_path)


def test_a_grid_encodes_once_and_scores_as_the_models_loaded_so(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"{left}\t{right}\t{score}" for left, right, score in PAIRS]
    (tmp_path / "pairs.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *lines]))
    (tasks,) = [tasks_of(tmp_path / "pairs.tsv")]
    counted: list[int] = []
    monkeypatch.setattr("embedkit.eval.run._with_cost", lambda report, *_: report)
    encode = __import__("embedkit.encoders.text_encoder", fromlist=["TextEncoder"]).TextEncoder.encode
    monkeypatch.setattr(
        "embedkit.encoders.text_encoder.TextEncoder.encode",
        lambda self, inputs, **options: counted.append(len(list(inputs))) or encode(self, inputs, **options),
    )
    model = {"model": str(tiny_model), "dtype": "float32"}
    variants = grid([8, 16], [], ["float32", "binary"])
    plan = Plan(tasks, tmp_path / "grid", model, variants=variants, cache=tmp_path / "cache")
    named = run(plan).reports
    assert sum(counted) == len({text for pair in PAIRS for text in pair[:2]})
    before = len(counted)
    assert run(plan).reports.keys() == named.keys()
    assert len(counted) == before  # a second run takes all from what is kept
    alone = Plan(tasks, tmp_path / "alone", {**model, "dim": 8})
    assert named["pairs dim=8"].scores == pytest.approx(run(alone).reports["pairs"].scores, abs=1e-6)
    assert read_reports(tmp_path / "grid" / "dim=8")["pairs"].scores == named["pairs dim=8"].scores
    assert named["pairs dim=8 binary"].scores != named["pairs dim=8"].scores
    assert (tmp_path / "grid" / "report.html").exists()


PAIRS = [
    ("cat", "dog", 3.0),
    ("red cat", "blue cat", 4.0),
    ("one fish", "two fish", 4.5),
    ("bird", "swim run", 0.5),
    ("dog run", "cat", 1.0),
]
