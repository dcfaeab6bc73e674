"""mteb's own tasks and benchmarks: every type, its prompts, its search protocol and its result files, against mteb itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedkit
from embedkit.errors import DataError, UsageError
from embedkit.eval.mteb_index import MtebIndex, recipe_of
from embedkit.eval.mteb_model import MtebModel
from embedkit.eval.mteb_tasks import HubTask, evaluate_mteb, find_benchmark
from embedkit.eval.run import Plan, run
from embedkit.jobs import IndexRecipe

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
PROMPTS = {
    "query": "red ",
    "document": "blue ",
    "STS": "one ",
    "MockRetrievalTask": "two ",
    "MockRerankingTask-query": "cat ",
    "Reranking-document": "dog ",
    "Classification": "fish ",
}
UNITS = {
    "MockRetrievalTask": "query",
    "MockRerankingTask": "query",
    "MockInstructionReranking": "query",
    "MockSTSTask": "pair",
    "MockPairClassificationTask": "pair",
    "MockBitextMiningTask": "pair",
    "MockClassificationTask": "repetition",
    "MockMultilabelClassification": "repetition",
    "MockRegressionTask": "repetition",
    "LegacyMockClusteringFastTask": "repetition",
    "MockSummarizationTask": "",
    "MockTextZeroShotClassificationTask": "",
}


def mock(name: str) -> Any:
    from mteb.mocks import mock_tasks
    from mteb.mocks.mock_tasks import zeroshot_classification

    return (getattr(mock_tasks, name, None) or getattr(zeroshot_classification, name))()


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> Any:
    return embedkit.load(tiny_model, dtype="float32")


@pytest.mark.parametrize("name", UNITS)
def test_every_type_of_task_gives_its_main_score_and_says_what_the_interval_is_over(
    name: str, encoder: Any, no_network: None
) -> None:
    measured = evaluate_mteb(mock(name), MtebModel(encoder))
    (result,) = measured.results
    for report in measured.reports.values():
        rows = result.scores[report.context["data"]["split"]]
        (own,) = [row for row in rows if row["hf_subset"] == report.context["data"]["subset"]]
        assert report.scores[report.main] == pytest.approx(own["main_score"], abs=1e-4, nan_ok=True)
        if UNITS[name]:
            assert (report.unit, report.units > 0) == (UNITS[name], True)
            assert set(report.intervals) <= set(report.scores)
        else:
            assert report.intervals == {}
        assert any(key.startswith("first_") for key in report.context)


def test_subsets_have_reports_of_their_own(encoder: Any) -> None:
    reports = evaluate_mteb(mock("MockMultilingualSTSTask"), MtebModel(encoder)).reports
    assert list(reports) == ["MockMultilingualSTSTask/eng", "MockMultilingualSTSTask/fra"]


def test_a_task_made_of_others_is_combined_as_mteb_does(encoder: Any) -> None:
    task = mock("MockAggregatedTask")
    measured = evaluate_mteb(task, MtebModel(encoder))
    assert measured.results[-1].task_name == task.metadata.name
    means = [result.get_score() for result in measured.results[:-1]]
    assert measured.results[-1].get_score() == pytest.approx(np.mean(means))


def test_a_model_of_texts_is_not_given_images(encoder: Any) -> None:
    with pytest.raises(DataError, match=r"is of image, which .* does not take; choose tasks of text\."):
        evaluate_mteb(mock("MockVisualSTSTask"), MtebModel(encoder))


# --- prompts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("default", [None, "STS"])
@pytest.mark.parametrize(
    "name", ["MockRetrievalTask", "MockRerankingTask", "MockSTSTask", "MockClassificationTask", "MockBitextMiningTask"]
)
def test_prompts_are_those_that_mteb_gives_sentence_transformers(
    make_model: Any, name: str, default: str | None
) -> None:
    from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
    from mteb.types import PromptType
    from sentence_transformers import SentenceTransformer

    folder = make_model(prompts=PROMPTS)
    if default is not None:
        path = folder / "config_sentence_transformers.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "default_prompt_name": default}))
    wrapper = SentenceTransformerEncoderWrapper(SentenceTransformer(str(folder), device="cpu"))
    # mteb leaves out the keys of tasks that it does not list, as its mocks are
    wrapper.model_prompts = PROMPTS
    ours = MtebModel(embedkit.load(folder, dtype="float32"))
    metadata = mock(name).metadata
    for role in (None, PromptType.query, PromptType.document):
        place: dict[str, Any] = {"task_metadata": metadata, "prompt_type": role, "hf_split": "", "hf_subset": ""}
        expected = wrapper.encode(_loader(["swim", "run cat"]), **place)
        np.testing.assert_allclose(ours.encode(_loader(["swim", "run cat"]), **place), expected, atol=1e-5)


def _loader(texts: list[str]) -> Any:
    from mteb._create_dataloaders import _create_dataloader_from_texts

    return _create_dataloader_from_texts(texts)


def test_the_first_literal_input_of_each_role_is_recorded(make_model: Any) -> None:
    encoder = embedkit.load(make_model(prompts=PROMPTS), dtype="float32")
    report = evaluate_mteb(mock("MockRetrievalTask"), MtebModel(encoder)).reports["MockRetrievalTask/test"]
    assert report.context["first_query"] == "two This is a test sentence"
    assert report.context["first_document"].startswith("two Title of d1 ")
    report = evaluate_mteb(mock("MockSTSTask"), MtebModel(encoder)).reports["MockSTSTask"]
    assert report.context["first_text"].startswith("one ")


def test_a_prompt_that_was_chosen_comes_before_those_of_the_task(make_model: Any) -> None:
    folder = make_model(prompts=PROMPTS)
    encoder = embedkit.load(folder, dtype="float32", prompt_names={"query": "STS"})
    report = evaluate_mteb(mock("MockRetrievalTask"), MtebModel(encoder)).reports["MockRetrievalTask/test"]
    assert report.context["first_query"] == "one This is a test sentence"


# --- through an index -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["MockRetrievalTask", "MockRerankingTask", "MockSTSTask"])
def test_an_exact_index_scores_as_mteb_without_one(name: str, encoder: Any, tmp_path: Path) -> None:
    recipe = IndexRecipe(coarse="none", fine="float32")
    through = evaluate_mteb(mock(name), MtebIndex(encoder, recipe, tmp_path)).reports
    plain = evaluate_mteb(mock(name), MtebModel(encoder)).reports
    assert {key: one.scores for key, one in through.items()} == {
        key: pytest.approx(one.scores, abs=1e-5, nan_ok=True) for key, one in plain.items()
    }
    assert list(tmp_path.iterdir()) == []


def test_a_built_index_is_searched_by_mteb(encoder: Any, tmp_path: Path) -> None:
    task = mock("MockRetrievalTask")
    task.load_data()
    rows = [
        {"_id": row["id"], "title": row["title"], "text": row["text"]}
        for row in task.dataset["default"]["test"]["corpus"]
    ]
    index = embedkit.build_index(rows, tmp_path / "an.index", model=encoder, fine="float32")
    model = MtebIndex(encoder, index)
    plain = evaluate_mteb(mock("MockRetrievalTask"), MtebModel(encoder)).reports["MockRetrievalTask/test"]
    found = evaluate_mteb(mock("MockRetrievalTask"), model).reports["MockRetrievalTask/test"]
    assert found.scores == pytest.approx(plain.scores, abs=1e-5)
    assert model.mteb_model_meta.experiment_kwargs == {"index": "an.index"}
    other = embedkit.build_index([{"_id": "x", "text": "cat"}], tmp_path / "other.index", model=encoder)
    with pytest.raises(DataError, match=r"other\.index holds no document of this task's corpus"):
        evaluate_mteb(mock("MockRetrievalTask"), MtebIndex(encoder, other))


def test_mteb_takes_the_index_as_a_search_model(encoder: Any) -> None:
    from mteb.models.models_protocols import EncoderProtocol, SearchProtocol

    model = MtebIndex(encoder, IndexRecipe())
    assert isinstance(model, SearchProtocol)
    assert isinstance(model, EncoderProtocol)


def test_a_recipe_is_a_factory_string_a_name_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text("coarse: SQ8\nfine: int8\n")
    assert recipe_of(str(path)) == IndexRecipe(coarse="SQ8", fine="int8")
    assert recipe_of(str(path)).settings == {"coarse": "SQ8", "fine": "int8"}
    assert recipe_of("IVF64,SQ8") == IndexRecipe(coarse="IVF64,SQ8")
    assert recipe_of("exact") == IndexRecipe.read("exact") == IndexRecipe(coarse="none", fine="float32")
    with pytest.raises(UsageError, match="hybrid has a sparse leg"):
        recipe_of("hybrid")
    for text in ("corse: SQ8", "- SQ8", "a: [", "!!python/object:os.system {}"):
        path.write_text(text)
        with pytest.raises(UsageError, match=r"small\.yaml"):
            recipe_of(str(path))


# --- result files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def results(tiny_model: Path, tmp_path: Path, no_network: None) -> Iterator[Path]:
    tasks = [HubTask(name, mock(name)) for name in ("MockRetrievalTask", "MockSTSTask")]
    for index in (None, IndexRecipe("none")):
        run(Plan(tasks, tmp_path / "out", {"model": tiny_model, "dtype": "float32"}, index=index))
    yield tmp_path / "out"


def test_mteb_loads_the_result_files(results: Path, encoder: Any) -> None:
    from mteb import ResultCache

    cache = ResultCache(results)
    meta = MtebModel(encoder).mteb_model_meta
    loaded = cache.load_results(load_experiments="no_experiments")
    (model,) = loaded.model_results
    assert (model.model_name, model.model_revision) == (meta.name, meta.revision)
    expected = evaluate_mteb(mock("MockSTSTask"), MtebModel(encoder)).results[0].get_score()
    assert {one.task_name: one.get_score() for one in model.task_results}["MockSTSTask"] == pytest.approx(expected)
    assert {one.task_name for one in model.task_results} == {"MockRetrievalTask", "MockSTSTask"}
    assert len(cache.load_results(load_experiments="match_name").model_results) == 2  # and through the index


def test_benchmarks_are_found_by_mtebs_names() -> None:
    import mteb

    for name in ("MTEB(eng, v2)", "BEIR", "NanoBEIR"):
        assert [task.name for task in find_benchmark(name)] == [
            task.metadata.name for task in mteb.get_benchmark(name).tasks
        ]
    with pytest.raises(UsageError, match=r"'NanoBIER' not found\. Did you mean: NanoBEIR"):
        find_benchmark("NanoBIER")


def test_a_task_without_data_does_not_stop_the_others(
    tiny_model: Path, no_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from embedkit.cli.main import main

    class Unreachable(type(mock("MockSTSTask"))):  # type: ignore[misc]
        def load_data(self, **_: Any) -> None:
            raise ConnectionError("no route to the hub")

    tasks = [HubTask("Unreachable", Unreachable()), HubTask("MockSTSTask", mock("MockSTSTask"))]
    monkeypatch.setattr("embedkit.eval.mteb_tasks.find_benchmark", lambda _: tasks)
    with pytest.raises(SystemExit) as ended:
        main(["eval", "--benchmark", "Two", "--model", str(tiny_model), "-o", str(tmp_path / "out")])
    assert ended.value.code == 3
    shown = capsys.readouterr()
    assert "The data of MockSTSTask cannot be had: no route to the hub" in shown.err
    assert shown.out.startswith("MockSTSTask  spearman")
