"""Images with captions as retrieval tasks, against a loop over the same rows; and their rows in the cache."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedkit
from embedkit.errors import DataError, UsageError
from embedkit.eval.embedding_cache import CachedEncoder
from embedkit.eval.local_tasks import LocalTask
from embedkit.eval.mteb_model import MtebModel
from embedkit.eval.mteb_tasks import evaluate_mteb
from embedkit.eval.run import Plan, read_tasks, run
from embedkit.types import Picture

pytest.importorskip("PIL")
from tests.image_models import encoded, picture, write_pictures

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
CAPTIONS = [["a cat", "red"], ["a dog"], ["blue", "a cat"], ["dog run"]]  # "a cat" is said of two


def parquet(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    folder.mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), folder / "data.parquet")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    stored = [{"bytes": encoded(picture(seed)), "path": f"{seed}.png"} for seed in range(4)]
    return parquet(
        tmp_path / "seen", [{"image": one, "captions": some} for one, some in zip(stored, CAPTIONS, strict=True)]
    )


@pytest.fixture(scope="module")
def encoder(clip_model: Path) -> Any:
    return embedkit.load(clip_model, dtype="float32")


def ndcg(scores: np.ndarray, relevant: np.ndarray) -> float:
    """Of one query, all documents ranked."""
    order = np.argsort(-scores)
    gain = sum(1 / math.log2(rank + 2) for rank, one in enumerate(order) if relevant[one])
    return gain / sum(1 / math.log2(rank + 2) for rank in range(int(relevant.sum())))


def test_both_directions_score_as_a_loop(folder: Path, encoder: Any, no_network: None) -> None:
    tasks = read_tasks(folder)
    assert [(task.name, task.type) for task in tasks if isinstance(task, LocalTask)] == [
        ("seen/t2i", "text-to-image"),
        ("seen/i2t", "image-to-text"),
    ]
    texts = list(dict.fromkeys(caption for some in CAPTIONS for caption in some))
    likeness = encoder.encode_query(texts) @ encoder.encode([Picture(encoded(picture(seed))) for seed in range(4)]).T
    relevant = np.array([[text in some for some in CAPTIONS] for text in texts])
    expected = {
        "seen/t2i": np.mean([ndcg(row, its) for row, its in zip(likeness, relevant, strict=True)]),
        "seen/i2t": np.mean([ndcg(row, its) for row, its in zip(likeness.T, relevant.T, strict=True)]),
    }
    for task in tasks:
        assert isinstance(task, LocalTask)
        (report,) = evaluate_mteb(task.task, MtebModel(encoder)).reports.values()
        assert report.scores["ndcg@10"] == pytest.approx(expected[task.name], abs=1e-5)
        assert (report.unit, report.units) == ("query", 5 if task.name == "seen/t2i" else 4)
        assert report.context["first_document"] == ("<image 0.png>" if task.name == "seen/t2i" else "a cat")


def test_equal_images_are_one_document(folder: Path, tmp_path: Path, encoder: Any) -> None:
    one = {"bytes": encoded(picture(0)), "path": "x.png"}
    twice = parquet(tmp_path / "twice", [{"image": one, "name": "a cat"}, {"image": one, "name": "red"}])
    for task in read_tasks(twice):
        assert isinstance(task, LocalTask)
        part = task.task.dataset["default"]["test"]
        assert sorted([len(part["queries"]), len(part["corpus"])]) == [1, 2]
        (report,) = evaluate_mteb(task.task, MtebModel(encoder)).reports.values()
        assert report.scores["recall@100"] == 1


def test_paths_are_read_from_the_folder_of_their_file(tmp_path: Path, encoder: Any) -> None:
    paths = write_pictures(tmp_path / "mine" / "images", 3)
    rows = [{"image": f"images/{path.name}", "caption": f"a {word}"} for path, word in zip(paths, "abc", strict=True)]
    (tmp_path / "mine" / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for task in read_tasks(tmp_path / "mine"):
        assert isinstance(task, LocalTask)
        (report,) = evaluate_mteb(task.task, MtebModel(encoder)).reports.values()
        assert report.units == 3


BAD = {
    "no image": [{"image": {"bytes": None, "path": None}, "captions": ["a"]}],
    "no list": [{"image": {"bytes": b"x", "path": "x"}, "captions": "a"}],
    "no captions": [{"image": {"bytes": b"x", "path": "x"}, "captions": []}],
}


@pytest.mark.parametrize("what", BAD)
def test_rows_that_are_no_images_with_captions_are_named(what: str, tmp_path: Path) -> None:
    with pytest.raises((DataError, UsageError), match=r"cannot be scored as text-to-image"):
        read_tasks(parquet(tmp_path / "bad", BAD[what]))


def test_an_image_that_cannot_be_read_is_one_sentence(tmp_path: Path, encoder: Any) -> None:
    stored = [{"bytes": encoded(picture(0)), "path": "a.png"}, {"bytes": b"no image", "path": "b.png"}]
    broken = parquet(tmp_path / "broken", [{"image": one, "caption": "x"} for one in stored])
    (task, _) = read_tasks(broken)
    assert isinstance(task, LocalTask)
    with pytest.raises(DataError, match="Input 1"):
        evaluate_mteb(task.task, MtebModel(encoder))


def test_a_model_of_texts_is_refused_and_the_others_go_on(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    reports, failed = run(Plan(read_tasks(folder), tmp_path / "out", {"model": tiny_model}))
    assert reports == {}
    assert all("is of image and text, which" in str(error) for error in failed.values())


def test_images_are_taken_from_the_cache_by_their_bytes(encoder: Any, tmp_path: Path) -> None:
    paths = write_pictures(tmp_path, 2)
    inputs = [Picture(paths[0]), Picture(paths[1].read_bytes()), "a cat", Picture(paths[0], None, "again")]
    expected = encoder.encode(inputs)
    for taken in (0, 4):
        cached = CachedEncoder(encoder, tmp_path / "rows")
        np.testing.assert_allclose(cached.encode(inputs), expected, atol=1e-5)
        assert cached.taken == taken
    swapped = [Picture(paths[1]), Picture(paths[0].read_bytes())]
    np.testing.assert_allclose(cached.encode(swapped), expected[[1, 0]], atol=1e-5)
    assert cached.taken == 6
    np.testing.assert_allclose(cached.encode([picture(0)]), encoder.encode([picture(0)]), atol=1e-5)  # of Pillow's
    windows = [inputs, [Picture(picture(1)), "a cat"]]
    rows = np.concatenate([found.rows for found in CachedEncoder(encoder, tmp_path / "rows").encode_windows(windows)])
    np.testing.assert_allclose(rows[:4], expected, atol=1e-5)
    np.testing.assert_allclose(rows[4:], encoder.encode([Picture(picture(1)), "a cat"]), atol=1e-5)
