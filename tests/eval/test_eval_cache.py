"""What is kept between evaluations: rows and outcomes that are exact, complete, and never of something else."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedkit
from embedkit.errors import IntegrityError
from embedkit.eval import embedding_cache
from embedkit.eval import run as runner
from embedkit.eval.embedding_cache import CachedEncoder, RowStore
from embedkit.eval.result_cache import Outcome, ResultCache
from embedkit.eval.run import Plan, System, Variant, read_tasks, run
from embedkit.jobs import IndexRecipe
from embedkit.storage import write_json
from embedkit.types import Report

from ..conftest import WordCounts

TEXTS = ["cat dog", "red", "cat dog", "blue bird run", ""]
PAIRS = "sentence1\tsentence2\tscore\ncat\tcat dog\t5\nred\tblue\t0\none two\ttwo\t3\n"


class Counting(WordCounts):
    """Counts the texts that are embedded, and takes a prompt as TextEncoder does."""

    prompts = {"query": "query ", "document": ""}  # noqa: RUF012

    def __init__(self, fingerprint: str = "f" * 64) -> None:
        super().__init__(fingerprint)
        self.embedded: list[str] = []

    def encode(self, inputs: Any, *, kind: str = "document", prompt: str | None = None) -> np.ndarray:
        self.embedded += list(inputs)
        literal = self.prompts[kind] if prompt is None else prompt
        return super().encode([literal + text for text in inputs])


# --- rows -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to], ids=["link", "hard link"])
def test_nothing_is_kept_through_a_link(tmp_path: Path, link: Callable[[Path, Path], None]) -> None:
    """The folder of results may have come from elsewhere."""
    victim, folder, key = tmp_path / "victim", tmp_path / "results", {"task": "one"}
    victim.write_text("precious")
    cache = ResultCache(folder)
    cache.put(key, Outcome({}))
    cache.path(key).unlink()
    link(cache.path(key), victim)
    assert cache.get(key) is None
    cache.put(key, Outcome({}))
    assert cache.get(key) == Outcome({})
    CachedEncoder(Counting(), folder).encode(TEXTS)
    (rows,) = folder.glob("*.rows")
    rows.unlink()
    link(rows, victim)
    with pytest.raises(IntegrityError, match=rows.name):
        CachedEncoder(Counting(), folder).encode(TEXTS)
    assert victim.read_text() == "precious"


def test_rows_are_computed_once_and_are_the_same_bits(tmp_path: Path) -> None:
    first = Counting()
    expected = Counting().encode(TEXTS)
    np.testing.assert_array_equal(CachedEncoder(first, tmp_path).encode(TEXTS), expected)
    assert first.embedded == ["cat dog", "red", "blue bird run", ""]  # each once
    second = Counting()
    cached = CachedEncoder(second, tmp_path)
    np.testing.assert_array_equal(cached.encode([*TEXTS, "swim"]), Counting().encode([*TEXTS, "swim"]))
    assert (second.embedded, cached.taken) == (["swim"], 5)


def test_windows_are_taken_from_the_cache_too(tmp_path: Path) -> None:
    encoder = Counting()
    cached = CachedEncoder(encoder, tmp_path)
    cached.encode(["red", "cat dog"])
    windows = [TEXTS[:3], ["red"], [*TEXTS[3:], "swim"]]
    rows = np.concatenate([found.rows for found in cached.encode_windows(iter(windows))])
    texts = [text for window in windows for text in window]
    np.testing.assert_array_equal(rows, Counting().encode(texts))
    assert encoder.embedded == ["red", "cat dog", "blue bird run", "", "swim"]


def test_an_encoder_with_windows_of_its_own_gives_the_same_rows(tiny_model: Path, tmp_path: Path) -> None:
    encoder = embedkit.load(tiny_model, dtype="float32")
    texts = [*TEXTS, "cat " * 60]
    plain = np.concatenate([found.rows for found in encoder.encode_windows([texts, texts])])
    for _ in range(2):
        cached = CachedEncoder(encoder, tmp_path)
        found = list(cached.encode_windows([texts, texts]))
        np.testing.assert_allclose(np.concatenate([one.rows for one in found]), plain, atol=1e-6)
    assert cached.taken == 2 * len(texts)
    assert cached.first_input("cat", "query") == encoder.first_input("cat", "query")


CHANGES: dict[str, Callable[[Any], Any]] = {
    "fingerprint": lambda encoder: setattr(encoder, "fingerprint", "e" * 64),
    "compute": lambda encoder: setattr(encoder, "compute", {"backend": "counting", "dtype": "bfloat16"}),
    "prompt": lambda encoder: setattr(encoder, "prompts", {"query": "", "document": "red "}),
}


def test_a_row_remembers_that_its_text_was_cut(tiny_model: Path, tmp_path: Path) -> None:
    encoder, long = embedkit.load(tiny_model, dtype="float32", max_tokens=4), "cat dog fish bird red blue"
    for windows in (
        [["cat", long, "dog"], [long]],
        [[long, "red", "dog"], ["cat"]],
    ):  # the second ones partly from the cache
        plain = [list(one.truncated) for one in encoder.encode_windows(windows)]
        cached = list(CachedEncoder(encoder, tmp_path).encode_windows(windows))
        assert [list(one.truncated) for one in cached] == plain != [[], []]
        assert [len(one.rows) for one in cached] == [3, 1]


@pytest.mark.parametrize("what", CHANGES)
def test_a_row_of_another_space_is_never_taken(what: str, tmp_path: Path) -> None:
    CachedEncoder(Counting(), tmp_path).encode(TEXTS)
    other = Counting()
    CHANGES[what](other)
    expected = other.encode(TEXTS)
    other.embedded.clear()
    np.testing.assert_array_equal(CachedEncoder(other, tmp_path).encode(TEXTS), expected)
    assert len(other.embedded) == 4


def test_a_row_of_another_role_or_prompt_is_never_taken(tmp_path: Path) -> None:
    encoder = Counting()
    cached = CachedEncoder(encoder, tmp_path)
    for options in ({"kind": "document"}, {"kind": "query"}, {"prompt": "query "}, {"kind": "query", "prompt": "red "}):
        encoder.embedded.clear()
        np.testing.assert_array_equal(cached.encode(["cat"], **options), Counting().encode(["cat"], **options))
        assert encoder.embedded == ["cat"]


@pytest.mark.parametrize("place", [0, 20, 60, 71])
def test_a_flipped_bit_is_noticed_and_the_row_computed_again(tmp_path: Path, place: int) -> None:
    CachedEncoder(Counting(), tmp_path).encode(TEXTS)
    (path,) = tmp_path.glob("*.rows")
    size = path.stat().st_size // 4  # of a record
    assert size == 16 + 12 * 4 + 8
    content = bytearray(path.read_bytes())
    content[size + place] ^= 4
    path.write_bytes(content)
    for expected in (["red"], []):  # mended by then
        encoder = Counting()
        np.testing.assert_array_equal(CachedEncoder(encoder, tmp_path).encode(TEXTS), Counting().encode(TEXTS))
        assert encoder.embedded == expected


def test_a_torn_end_is_written_over(tmp_path: Path) -> None:
    CachedEncoder(Counting(), tmp_path).encode(TEXTS)
    (path,) = tmp_path.glob("*.rows")
    os.truncate(path, path.stat().st_size - 5)
    for expected in ([""], []):
        encoder = Counting()
        np.testing.assert_array_equal(CachedEncoder(encoder, tmp_path).encode(TEXTS), Counting().encode(TEXTS))
        assert encoder.embedded == expected


def test_rows_beyond_the_limit_are_computed_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_cache, "LIMIT", 150)
    cached = CachedEncoder(Counting(), tmp_path)
    for texts in (["cat"], ["dog"], ["red"]):
        np.testing.assert_array_equal(cached.encode(texts), Counting().encode(texts))
    assert sum(path.stat().st_size for path in tmp_path.glob("*.rows")) == 144


def test_two_processes_do_not_write_over_each_other(tmp_path: Path) -> None:
    """Both have the file open when the other appends."""
    space = {"fingerprint": "f"}
    one, other = RowStore(tmp_path, space, 2), RowStore(tmp_path, space, 2)
    one.put(["a"], np.array([[1, 2]], np.float32))
    other.put(["b"], np.array([[3, 4]], np.float32))
    rows, missing, _ = RowStore(tmp_path, space, 2).get(["a", "b", "c"])
    assert (rows.tolist(), missing.tolist()) == ([[1, 2], [3, 4], [0, 0]], [2])
    assert other.get(["a"])[1].tolist() == []


# --- outcomes ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    (tmp_path / "pairs.tsv").write_text(PAIRS)
    return tmp_path / "pairs.tsv"


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the tasks that were evaluated, not taken."""
    names: list[str] = []
    outcome = runner._outcome

    def noting(task: Any, *rest: Any) -> Any:
        names.append(task.name)
        return outcome(task, *rest)

    monkeypatch.setattr(runner, "_outcome", noting)
    return names


def test_an_outcome_is_taken_with_all_that_is_written(pairs: Path, tiny_model: Path, evaluated: list[str]) -> None:
    plan = Plan(read_tasks(pairs), pairs.parent / "out", {"model": tiny_model}, cache=pairs.parent / "cache")
    first = run(plan)
    written = {path: path.read_bytes() for path in (pairs.parent / "out").rglob("*.*")}
    assert {path.name for path in written} >= {"report.json", "report.md", "pairs.json", "model_meta.json"}
    again = run(replace(plan, output=pairs.parent / "again"))
    assert evaluated == ["pairs"]
    assert again.reports == first.reports
    for path, content in written.items():
        assert (pairs.parent / "again" / path.relative_to(pairs.parent / "out")).read_bytes() == content


def key(**changes: Any) -> dict[str, Any]:
    """The key of an evaluation in which something is different."""
    encoder = Counting()
    for name in {"fingerprint", "compute", "prompts", "stored_prompts"} & set(changes):
        setattr(encoder, name, changes[name])
    system = System(encoder, changes.get("through"))
    return runner._key(changes["task"], changes.get("variant", Variant()), system)


def test_each_part_of_the_key_makes_another(pairs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (task,) = read_tasks(pairs)
    keys = [
        key(task=task),
        key(task=task, fingerprint="e" * 64),
        key(task=task, compute={"backend": "counting", "threads": "2"}),
        key(task=task, prompts={"query": "", "document": ""}),
        key(task=task, stored_prompts={"STS": "red "}),
        key(task=task, variant=Variant(precision="int8")),
        key(task=task, through=IndexRecipe("none")),
        key(task=task, through=IndexRecipe("none", fine="int8")),
    ]
    index = embedkit.build_index(["cat"], tmp_path / "an.index", model=WordCounts())
    keys.append(key(task=task, through=index))
    index.add([{"_id": "more", "text": "dog"}])
    keys.append(key(task=task, through=embedkit.open_index(tmp_path / "an.index")))
    pairs.write_text(PAIRS.replace("\t3", "\t4"))
    keys.append(key(task=read_tasks(pairs)[0]))
    pairs.write_text(PAIRS)
    keys.append(key(task=read_tasks(pairs, "all")[0]))
    with monkeypatch.context() as patched:
        patched.setattr(runner, "__version__", "99")
        keys.append(key(task=task))
    with monkeypatch.context() as patched:
        patched.setattr("mteb.__version__", "99")
        keys.append(key(task=task))
    cache = ResultCache(tmp_path)
    assert len({cache.path(one) for one in keys}) == len(keys)
    assert cache.path(key(task=read_tasks(pairs)[0])) == cache.path(keys[0])


def test_a_score_of_mteb_that_is_no_number_is_kept_as_none(tmp_path: Path) -> None:
    """mteb's classification has an "ap" that is NaN where there are several classes; it was never taken from the cache."""
    cache = ResultCache(tmp_path)
    cache.put({"task": "a"}, Outcome({"a": Report({"f1": 0.5}, {}, {}, {})}, {"a": {"ap": float("nan"), "f1": 0.5}}))
    found = cache.get({"task": "a"})
    assert found is not None
    assert (found.reports["a"].scores, found.results) == ({"f1": 0.5}, {"a": {"ap": None, "f1": 0.5}})


def test_a_score_of_ours_that_is_no_number_is_kept_as_well(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path)
    cache.put({}, Outcome({"a": Report({"spearman": math.nan}, {}, {}, {})}))
    found = cache.get({})
    assert found is not None and math.isnan(found.reports["a"].scores["spearman"])


@pytest.mark.parametrize(
    "changes", [{"results": {"../outside": {}}}, {"results": {"/outside": {}}}, {"reports": {"a": 5}}]
)
def test_a_record_that_somebody_sealed_is_not_used(changes: dict[str, Any], tmp_path: Path) -> None:
    """Its checksum fits: it names files outside the results, or holds no report."""
    cache = ResultCache(tmp_path)
    write_json(cache.path({}), {"key": {}, "reports": {}, "results": {}, **changes})
    assert cache.get({}) is None


def test_a_revision_of_mtebs_data_is_another_task() -> None:
    from embedkit.eval.mteb_tasks import find_tasks

    (task,) = find_tasks(["STSBenchmark"])
    before = key(task=task)
    task.task.metadata = task.task.metadata.model_copy(
        update={"dataset": {**task.task.metadata.dataset, "revision": "x"}}
    )
    assert key(task=task) != before


@pytest.mark.parametrize("damage", ["flip", "tear", "swap"])
def test_a_damaged_record_is_evaluated_again(
    pairs: Path, tiny_model: Path, evaluated: list[str], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    plan = Plan(read_tasks(pairs), pairs.parent / "out", {"model": tiny_model}, cache=pairs.parent / "cache")
    first = run(plan)
    (path,) = (pairs.parent / "cache" / "results").glob("*.json")
    content = path.read_text()
    if damage == "swap":  # the record of another evaluation, whole in itself
        assert run(replace(plan, model={"model": tiny_model, "max_tokens": 4})).reports != first.reports
        (other,) = set((pairs.parent / "cache" / "results").glob("*.json")) - {path}
        content, evaluated[:] = other.read_text(), evaluated[:1]
    path.write_text(
        {"flip": content.replace('"spearman": ', '"spearman": 1', 1), "tear": content[:-9]}.get(damage, content)
    )
    assert run(plan).reports.keys() == first.reports.keys()
    assert evaluated == ["pairs", "pairs"]
    assert "is evaluated again" in caplog.text
    assert run(plan).reports["pairs"].scores == first.reports["pairs"].scores
    assert evaluated == ["pairs", "pairs"]


KILLED = """
import sys
from pathlib import Path
from embedkit.eval import run as runner
outcome = runner._outcome
def slow(task, *rest):
    if task.name == sys.argv[1]:
        print("at", task.name, flush=True)
        sys.stdin.read()
    return outcome(task, *rest)
runner._outcome = slow
from embedkit.cli.main import main
main(sys.argv[2:])
"""


def beir(folder: Path, answer: str) -> Path:
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "1", "text": "cat"}\n{"_id": "2", "text": "dog run"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "run"}\n')
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\nq\t{answer}\t1\n")
    return folder


def test_a_killed_run_goes_on_at_its_task(tmp_path: Path, tiny_model: Path, evaluated: list[str]) -> None:
    folders = [beir(tmp_path / name, answer) for name, answer in (("first", "1"), ("second", "2"), ("third", "1"))]
    command = ["eval", "--data", *folders, "--model", tiny_model, "--dtype", "float32", "-o", tmp_path / "out"]
    words = [sys.executable, "-c", KILLED, "second", *map(str, command)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"at second\n"
        process.send_signal(signal.SIGKILL)
    assert list(json.loads((tmp_path / "out" / "report.json").read_text())["tasks"]) == ["first"]
    plan = Plan(
        [task for folder in folders for task in read_tasks(folder)],
        tmp_path / "out",
        {"model": str(tiny_model), "dtype": "float32"},
        cache=tmp_path / "out" / "cache",
    )
    assert list(run(plan).reports) == ["first", "second", "third"]
    assert evaluated == ["second", "third"]
