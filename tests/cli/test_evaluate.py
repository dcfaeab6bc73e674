"""embedkit eval: scores that can be worked out by hand, in report.json, report.md and on the screen."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import QUESTION, ROWS, Run, write_jsonl

Ranking = Callable[[str], list[tuple[str, float]]]
QUERIES = {"q1": QUESTION, "q2": "blue bird", "q3": "swim"}
HEADER = "query-id\tcorpus-id\tscore\n"


@pytest.fixture
def beir(tmp_path: Path, ranking: Ranking) -> Path:
    """In `test` the answers of q1 and q2 are ranked first and second, in `dev` that of q3 is ranked third."""
    folder = tmp_path / "small"
    write_jsonl(folder / "corpus.jsonl", ROWS)
    write_jsonl(folder / "queries.jsonl", [{"_id": name, "text": text} for name, text in QUERIES.items()])
    (folder / "qrels").mkdir()
    ranked = {name: [identifier for identifier, _ in ranking(text)] for name, text in QUERIES.items()}
    (folder / "qrels" / "test.tsv").write_text(f"{HEADER}q1\t{ranked['q1'][0]}\t1\nq2\t{ranked['q2'][1]}\t1\n")
    (folder / "qrels" / "dev.tsv").write_text(f"{HEADER}q3\t{ranked['q3'][2]}\t1\n")
    return folder


# one relevant document at rank r: nDCG@10 = 1 / log2(r + 1), MRR = MAP = 1 / r; seven documents are all among the 100, of which one is
# judged
EXPECTED = {
    "test": {
        "ndcg@10": (1 + 1 / math.log2(3)) / 2,
        "judged@10": 1 / 7,
        "recall@100": 1.0,
        "mrr@10": 3 / 4,
        "map": 3 / 4,
    },
    "dev": {"ndcg@10": 1 / 2, "judged@10": 1 / 7, "recall@100": 1.0, "mrr@10": 1 / 3, "map": 1 / 3},
}


@pytest.fixture
def evaluate(run: Run, tmp_path: Path, tiny_model: Path) -> Callable[..., Any]:
    """evaluate(*options) -> the tasks of report.json."""

    def call(*options: object) -> Any:
        done = run("eval", *options, "--model", tiny_model, "--dtype", "float32", "-o", tmp_path / "results")
        assert done.code == 0, done
        return json.loads((tmp_path / "results" / "report.json").read_text(encoding="utf-8"))["tasks"]

    return call


@pytest.mark.parametrize(("options", "split"), [([], "test"), (["--split", "dev"], "dev")])
def test_the_scores_are_those_worked_out_by_hand(
    evaluate: Callable[..., Any], beir: Path, options: list[str], split: str
) -> None:
    task = evaluate("--data", beir, *options)["small"]
    assert task["scores"] == pytest.approx(EXPECTED[split], abs=1e-6)
    assert task["units"] == (2 if split == "test" else 1)


def test_the_report_holds_what_is_needed_to_repeat_it(
    evaluate: Callable[..., Any], beir: Path, tiny_model: Path
) -> None:
    from embedkit.encoders import load

    task = evaluate("--data", beir)["small"]
    context = task["context"]
    assert context["fingerprint"] == load(tiny_model).fingerprint
    assert (context["model"], context["compute"]["dtype"]) == (str(tiny_model), "float32")
    assert (context["data"]["name"], context["data"]["split"]) == ("small", "test")
    assert set(context["data"]["sha256"]) == {"corpus.jsonl", "queries.jsonl", "test.tsv"}
    assert (context["first_query"], context["first_document"]) == (QUESTION, "cat red run")
    assert task["per_query"]["mrr@10"] == {"q1": 1.0, "q2": 0.5}
    for metric, score in task["scores"].items():
        low, high = task["intervals"][metric]
        assert 0 <= low <= score <= high <= 1


def test_the_report_for_people_has_the_same_scores(evaluate: Callable[..., Any], beir: Path, tmp_path: Path) -> None:
    scores = evaluate("--data", beir)["small"]["scores"]
    lines = (tmp_path / "results" / "report.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| small")]
    assert {row[1]: row[2] for row in cells} == {metric: f"{score:.4f}" for metric, score in scores.items()}
    assert {row[4] for row in cells} == {"2"}
    assert {path.name for path in (tmp_path / "results").iterdir()} == {
        "report.json",
        "report.md",
        "report.html",
        "cache",
    }


def test_two_folders_after_one_flag_are_two_tasks(evaluate: Callable[..., Any], beir: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    (packed / "qrels").mkdir(parents=True)
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        (packed / f"{name}.gz").write_bytes(gzip.compress((beir / name).read_bytes()))
    tasks = evaluate("--data", beir, packed)
    assert list(tasks) == ["small", "packed"]
    assert tasks["small"]["scores"] == tasks["packed"]["scores"]
    assert list(evaluate("--data", beir, "--data", packed)) == ["small", "packed"]  # the flag may be repeated


def test_two_folders_of_one_name_are_both_in_the_report(
    evaluate: Callable[..., Any], beir: Path, tmp_path: Path
) -> None:
    other = tmp_path / "elsewhere" / "small"
    other.parent.mkdir()
    other.symlink_to(beir)
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / "small"
    twin.mkdir()
    for name in ("corpus.jsonl", "queries.jsonl", "qrels"):
        (twin / name).symlink_to(beir / name)
    assert list(evaluate("--data", beir, twin)) == ["small", str(twin)]


def test_the_screen_shows_score_and_interval_of_every_metric(run: Run, beir: Path, tiny_model: Path) -> None:
    done = run("eval", "--data", beir, "--model", tiny_model, "-o", beir / "r", "--dtype", "float32")
    shown = {line.split()[1]: line.split()[2] for line in done.out.splitlines()}
    assert shown == {metric: f"{score:.4f}" for metric, score in EXPECTED["test"].items()}
    assert str(beir / "r" / "report.md") in done.err
    facts = run("eval", "--data", beir, "--model", tiny_model, "-o", beir / "r", "--json", "--dtype", "float32").facts
    assert facts["tasks"]["small"]["scores"] == pytest.approx(EXPECTED["test"], abs=1e-6)


@pytest.mark.parametrize("coarse", ["none", "SQ8"])
def test_an_index_is_measured_as_it_is_served(
    run: Run, evaluate: Callable[..., Any], beir: Path, tiny_model: Path, tmp_path: Path, coarse: str
) -> None:
    folder = tmp_path / "an.index"
    run("index", "build", beir, "-o", folder, "--model", tiny_model, "--coarse", coarse, "--fine", "float32")
    task = evaluate("--data", beir, "--index", folder)["small"]
    assert task["scores"] == pytest.approx(EXPECTED["test"], abs=1e-6)
    assert task["context"]["search"]["coarse"] == coarse


def test_a_recipe_is_measured_as_the_index_that_it_builds(
    run: Run, evaluate: Callable[..., Any], beir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    mine, folder = tmp_path / "mine.yaml", tmp_path / "an.index"
    mine.write_text("coarse: SQ8\nfine: float32\nrecall: 0.9\n")
    run("index", "build", beir, "-o", folder, "--model", tiny_model, "--dtype", "float32", "--recipe", mine)
    served, built = (evaluate("--data", beir, "--index", one)["small"] for one in (folder, mine))
    assert built["scores"] == served["scores"] == pytest.approx(EXPECTED["test"], abs=1e-6)
    for name in ("coarse", "fine", "segments"):
        assert built["context"]["search"][name] == served["context"]["search"][name]


def test_an_index_of_another_model_is_refused(
    run: Run, beir: Path, index: Path, prompted_model: Path, tmp_path: Path
) -> None:
    sentence = run("eval", "--data", beir, "--index", index, "--model", prompted_model, "-o", tmp_path / "r").sentence(
        5
    )
    assert "was built by" in sentence
    assert not (tmp_path / "r").exists()


def test_results_go_to_a_folder_of_that_name_when_none_is_given(
    run: Run, beir: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("eval", "--data", "small", "--model", tiny_model).code == 0
    assert {path.name for path in (tmp_path / "results").iterdir()} == {
        "report.json",
        "report.md",
        "report.html",
        "cache",
    }


@pytest.mark.parametrize(
    ("name", "content", "code", "words"),
    [
        ("qrels/train.tsv", None, 2, "no judgements for the split 'train'; it has dev, test"),
        ("queries.jsonl", None, 2, "queries.jsonl (or queries.jsonl.gz) is missing"),
        ("qrels/test.tsv", "q1\td0\t1\n", 3, "line 1: data came, a header was expected"),
        ("qrels/test.tsv", f"{HEADER}q1\td0\t0.5\n", 3, "line 2"),
        ("qrels/test.tsv", f"{HEADER}q1 d0 1\n", 3, "line 2"),
        ("qrels/test.tsv", HEADER, 3, "holds no judgements"),
        ("qrels/test.tsv", f"{HEADER}q9\td0\t1\n", 3, "No query judged"),
        ("qrels/test.tsv", f"{HEADER}q1\td0\t0\n", 3, "has a relevant document"),
    ],
)
def test_judgements_that_cannot_be_used_are_named(
    run: Run, beir: Path, tiny_model: Path, tmp_path: Path, name: str, content: str | None, code: int, words: str
) -> None:
    if content is None:
        (beir / name).unlink(missing_ok=True)
    else:
        (beir / name).write_text(content)
    split = Path(name).stem if name.startswith("qrels") else "test"
    done = run("eval", "--data", beir, "--split", split, "--model", tiny_model, "-o", tmp_path / "r")
    assert words in done.sentence(code)
    assert not (tmp_path / "r").exists()


def test_a_full_disk_leaves_the_old_report(
    run: Run,
    evaluate: Callable[..., Any],
    beir: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluate("--data", beir)
    before = {path: path.read_bytes() for path in (tmp_path / "results").glob("report.*")}

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    done = run("eval", "--data", beir, "--split", "dev", "--model", tiny_model, "-o", tmp_path / "results")
    assert "The disk is full" in done.sentence(75)
    assert {path: path.read_bytes() for path in (tmp_path / "results").glob("report.*")} == before


def test_two_models_are_compared(run: Run, beir: Path, tiny_model: Path, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for folder, options in ((a, []), (b, ["--max-tokens", "3"])):
        assert run("eval", "--data", beir, "-o", folder, "--model", tiny_model, *options).code == 0
    done = run("compare", a, b)
    assert done.code == 0
    assert done.out.startswith("| task | metric | one | other | difference |")
    (found,) = run("compare", a, b, "--json").facts
    assert found["metric"] == "ndcg@10"
    assert found["wins"] + found["ties"] + found["losses"] == found["units"] > 0
    assert 0 < found["p"] <= found["p_holm"] <= 1
    (same,) = run("compare", a, a, "--json").facts
    assert (same["p"], same["wins"], same["moved"]) == (1.0, 0, [])


def test_a_folder_without_a_report_is_refused(run: Run, tmp_path: Path) -> None:
    assert "holds no report.json" in run("compare", tmp_path, tmp_path).sentence(2)


def test_files_of_pairs_and_folders_of_folders_are_tasks(
    run: Run, beir: Path, tiny_model: Path, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("sentence1\tsentence2\tscore\nred cat\tred cat\t5\nred cat\tblue dog\t0\none\tone run\t3\n")
    (tmp_path / "both").mkdir()
    for name in ("en", "de"):
        (tmp_path / "both" / name).symlink_to(beir)
    done = run("eval", "--data", pairs, tmp_path / "both", "-o", tmp_path / "r", "--model", tiny_model, "--json")
    assert {name: max(task["units"], 1) for name, task in done.facts["tasks"].items()} == {
        "pairs": 3,
        "both/de": 2,
        "both/en": 2,
    }
    (own,) = (tmp_path / "r" / "results").rglob("pairs.json")
    assert json.loads(own.read_text())["task_name"] == "pairs"
    (found, *_) = run("compare", tmp_path / "r", tmp_path / "r", "--json").facts
    assert (found["metric"], found["unit"], found["p"]) == ("spearman", "pair", 1.0)


def test_an_index_is_scored_on_beir_folders(run: Run, index: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("sentence1\tsentence2\tscore\na\tb\t5\nc\td\t0\n")
    assert "pairs searches no corpus; an index is evaluated on one" in run(
        "eval", "--data", pairs, "--index", index
    ).sentence(2)


def test_a_grid_has_a_report_of_all_and_one_of_each(run: Run, beir: Path, tmp_path: Path, tiny_model: Path) -> None:
    out = tmp_path / "grid"
    arguments = ["eval", "--data", beir, "--model", tiny_model, "--dtype", "float32", "-o", out]
    done = run(*arguments, "--dims", "8,32", "--precision", "float32,binary", "--json")
    assert done.code == 0, done
    names = ["dim=8", "dim=8,binary", "dim=32", "dim=32,binary"]
    assert list(done.facts["tasks"]) == [f"small {name.replace(',', ' ')}" for name in names]
    variants = json.loads((out / "report.json").read_text())["variants"]
    assert list(variants) == names
    assert variants["dim=32"]["tasks"]["small"]["score"] == pytest.approx(EXPECTED["test"]["ndcg@10"], abs=1e-6)
    sizes = {name: variants[name]["tasks"]["small"]["cost"]["bytes per row"] for name in names}
    assert sizes == {"dim=8": 32, "dim=8,binary": 1, "dim=32": 128, "dim=32,binary": 4}
    page = (out / "report.html").read_text()
    assert "--dims 8,32 --precision float32,binary" in page and "dim%3D8/report.html" in page
    compared = run("compare", out / "dim=32", out / "dim=8", "--html", tmp_path / "page.html", "--json")
    assert compared.code == 0, compared
    assert "dim=8 against dim=32" in (tmp_path / "page.html").read_text()
    refused = run("compare", out, out)
    assert (refused.code, "holds several variants" in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--dims", "8,x"], "expected whole numbers"),
        (["--dims", "0"], "expected whole numbers"),
        (["--dims", "8,64"], "dim=64 was asked for"),
        (["--layers", "9"], "the model has 2 layers"),
        (["--precision", "int4"], "precision='int4' came"),
        (["--precision", "int8", "--index", "auto"], "--precision goes without --index"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_before_anything_is_written(
    run: Run, beir: Path, tmp_path: Path, tiny_model: Path, options: list[str], said: str
) -> None:
    done = run("eval", "--data", beir, "--model", tiny_model, "-o", tmp_path / "out", *options)
    assert (done.code, said in done.err) == (2, True), done
    assert not (tmp_path / "out" / "report.json").exists()


def test_costs_stand_beside_the_scores(evaluate: Callable[..., Any], beir: Path) -> None:
    task = evaluate("--data", beir)["small"]
    cost = task["cost"]
    assert cost["bytes per row"] == 4 * 32
    assert cost["bytes in RAM"] == 7 * 4 * 32
    assert 0 < cost["p50 ms"] <= cost["p99 ms"]
    assert {"texts/s", "tokens/s", "queries/s", "peak RSS", "seconds"} <= set(cost)
    assert task["context"]["machine"]["cores"] >= 1
