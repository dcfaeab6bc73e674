"""Our Encoder in mteb's own evaluators, without the network."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

import embedkit
from embedkit.errors import DataError, UsageError
from embedkit.eval.mteb_model import MtebModel
from embedkit.eval.mteb_tasks import HubTask, evaluate_mteb, find_tasks, load_data

from ..conftest import WordCounts

pytestmark = pytest.mark.filterwarnings("ignore:The task .* is superseded")
PAIRS = [
    ("cat dog", "cat", 4.0),
    ("red", "blue", 0.0),
    ("one two", "two one", 5.0),
    ("cat dog fish", "fish", 3.0),
    ("bird", "swim", 1.0),
]


def local_task(pairs: list[tuple[str, str, float]]) -> Any:
    """mteb's STSBenchmark over these pairs instead of its download."""
    import datasets

    task = find_tasks(["STSBenchmark"])[0].task
    columns = {"sentence1": [p[0] for p in pairs], "sentence2": [p[1] for p in pairs], "score": [p[2] for p in pairs]}

    def load_data(**_: Any) -> None:
        task.dataset = {"default": {"test": datasets.Dataset.from_dict(columns)}}
        task.data_loaded = True

    task.load_data = load_data
    return task


def test_mteb_accepts_the_model() -> None:
    from mteb.models.models_protocols import EncoderProtocol

    assert isinstance(MtebModel(WordCounts()), EncoderProtocol)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("owner/model", "owner/model"),
        ("/a/folder/tiny", "folder/tiny"),
        (None, "embedkit/encoder"),
        ("one", "embedkit/one"),
    ],
)
def test_mteb_knows_the_model_by_name_and_fingerprint(word_counts: Any, model: str | None, name: str) -> None:
    word_counts.settings = {} if model is None else {"model": model}
    meta = MtebModel(word_counts).mteb_model_meta
    assert (meta.name, meta.revision, meta.embed_dim) == (name, "f" * 16, 12)


def test_sts_runs_offline_and_agrees_with_scipy(word_counts: Any, no_network: None) -> None:
    measured = evaluate_mteb(local_task(PAIRS), MtebModel(word_counts))
    reports, own = measured.reports, measured.results[0].to_dict()
    left, right = (word_counts.encode([pair[side] for pair in PAIRS]) for side in (0, 1))
    expected = spearmanr((left * right).sum(axis=1), [pair[2] for pair in PAIRS]).statistic
    assert list(reports) == ["STSBenchmark"]
    assert reports["STSBenchmark"].scores["spearman"] == pytest.approx(expected)
    assert (reports["STSBenchmark"].unit, reports["STSBenchmark"].units) == ("pair", 5)
    low, high = reports["STSBenchmark"].intervals["spearman"]
    assert low <= expected <= high
    assert own["scores"]["test"][0]["cosine_spearman"] == pytest.approx(expected)
    assert reports["STSBenchmark"].context["fingerprint"] == word_counts.fingerprint


def test_texts_without_a_role_get_no_prompt_of_a_role(make_model: Any, no_network: None) -> None:
    folder = make_model(prompts={"query": "red red red ", "document": "blue blue blue "})
    bare, prompted = embedkit.load(make_model(), dtype="float32"), embedkit.load(folder, dtype="float32")
    batches = [{"text": ["cat"]}, {"text": ["dog", "a"]}]
    np.testing.assert_allclose(MtebModel(prompted).encode(batches), bare.encode(["cat", "dog", "a"]), atol=1e-6)
    np.testing.assert_allclose(
        MtebModel(prompted).encode(batches, prompt_type="query"),
        prompted.encode(["cat", "dog", "a"], kind="query"),
        atol=1e-6,
    )
    np.testing.assert_allclose(
        MtebModel(prompted).encode(batches, prompt_type="document"), prompted.encode(["cat", "dog", "a"]), atol=1e-6
    )


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_similarities_are_those_of_the_model(word_counts: Any, similarity: str) -> None:
    word_counts.similarity = similarity
    model = MtebModel(word_counts)
    left, right = np.array([[3.0, 4.0], [1, 0]], np.float32), np.array([[1.0, 0.0], [0, 2]], np.float32)
    whole = (
        np.array([[3, 8], [1, 0]], np.float32) if similarity == "dot" else np.array([[0.6, 0.8], [1, 0]], np.float32)
    )
    np.testing.assert_allclose(model.similarity(left, right), whole, atol=1e-6)
    np.testing.assert_allclose(model.similarity_pairwise(left, right), np.diag(whole), atol=1e-6)


def test_an_unknown_task_is_one_sentence() -> None:
    with pytest.raises(UsageError, match="NoSuchTask"):
        find_tasks(["NoSuchTask"])


def test_a_task_whose_data_cannot_be_had_is_one_sentence(word_counts: Any, no_network: None) -> None:
    task = local_task(PAIRS)

    def load_data(**_: Any) -> None:
        raise ConnectionError("no route to the hub")

    task.load_data = load_data
    with pytest.raises(
        DataError, match="The data of STSBenchmark cannot be had: no route to the hub; they come from the hub"
    ):
        evaluate_mteb(task, MtebModel(word_counts))


def test_evaluate_runs_a_task_by_its_name(
    word_counts: Any, no_network: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "embedkit.eval.run.find_tasks",
        lambda names: [HubTask(names[0], local_task(PAIRS))] if names == ["STSBenchmark"] else [],
    )
    assert set(embedkit.evaluate(word_counts, "STSBenchmark").scores) == {"spearman", "pearson"}
    index = embedkit.build_index(["cat"], tmp_path / "x", model=word_counts)
    with pytest.raises(UsageError, match="STSBenchmark searches no corpus"):
        embedkit.evaluate(index, "STSBenchmark")


def test_the_command_runs_a_task_and_keeps_mtebs_own_result(
    tiny_model: Path,
    no_network: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from embedkit.cli.main import main

    monkeypatch.setattr(
        "embedkit.eval.mteb_tasks.find_tasks", lambda names: [HubTask(name, local_task(PAIRS)) for name in names]
    )
    with pytest.raises(SystemExit) as ended:
        main(["eval", "--tasks", "STSBenchmark", "--model", str(tiny_model), "-o", str(tmp_path / "out")])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("STSBenchmark  spearman")
    (path,) = (tmp_path / "out" / "results").rglob("STSBenchmark.json")
    own = json.loads(path.read_text())
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["tasks"]["STSBenchmark"]["scores"]["spearman"] == own["scores"]["test"][0]["cosine_spearman"]


@pytest.mark.data
@pytest.mark.model
def test_sts_benchmark_gives_the_published_score(data: Path, default_encoder: Any, no_network: None) -> None:
    """0.8203 on the leaderboard for all-MiniLM-L6-v2."""
    plain = data / "stsb" / "data.tsv"
    with plain.open(newline="") if plain.exists() else gzip.open(f"{plain}.gz", "rt", newline="") as stream:
        rows = [row for row in csv.DictReader(stream, delimiter="\t") if row["split"] == "test"]
    task = local_task([(row["sentence1"], row["sentence2"], float(row["score"])) for row in rows])
    reports = evaluate_mteb(task, MtebModel(default_encoder)).reports
    assert reports["STSBenchmark"].scores["spearman"] == pytest.approx(0.820, abs=0.002)


@pytest.mark.parametrize(
    ("offline", "step"), [(True, "fetch them once without it"), (False, "or set HF_HUB_OFFLINE=1")]
)
def test_offline_is_not_advised_where_it_is_set(offline: bool, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreachable:
        metadata = SimpleNamespace(name="STSBenchmark")

        def load_data(self) -> None:
            raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    with pytest.raises(DataError, match=step):
        load_data(Unreachable())
