"""Images through whole jobs: rows set aside, kills, changed files, several workers, memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedkit
from embedkit import encoder, jobs, limits
from embedkit.corpus import Fields
from embedkit.engine import embed_to_file, run
from embedkit.errors import DataError, UsageError
from embedkit.types import Document, Picture
from tests.image_models import encoded, picture, write_pictures

FILES = (".npy", ".ids.txt", ".quarantine.jsonl")


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "WINDOW", 8)


@pytest.fixture(scope="module")
def clip(clip_model: Path) -> Any:
    return embedkit.load(clip_model, dtype="float32", threads=1)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """30 images, of which one is cut and one empty."""
    paths = write_pictures(tmp_path / "photos", 30)
    paths[3].write_bytes(paths[3].read_bytes()[:-100])
    paths[20].write_bytes(b"")
    return tmp_path / "photos"


def written(path: Path) -> list[bytes]:
    return [path.with_suffix(suffix).read_bytes() for suffix in FILES]


def test_a_corrupt_image_costs_its_row_and_no_other(clip: Any, photos: Path, tmp_path: Path) -> None:
    manifest = jobs.embed_corpus(photos, tmp_path / "x.npy", clip)
    assert (manifest["count"], manifest["set_aside"], manifest["empty_texts"]) == (28, 2, 0)
    assert manifest["first_input"] == f"<image {photos}/p00.png>"
    aside = [json.loads(line) for line in (tmp_path / "x.quarantine.jsonl").read_text().splitlines()]
    assert [row["id"] for row in aside] == ["p03.png", "p20.png"] and "empty (0 bytes)" in aside[1]["reason"]
    ids = (tmp_path / "x.ids.txt").read_text().split()
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), clip.encode([photos / name for name in ids]), atol=1e-6)


def test_an_image_that_is_no_file_of_a_limited_length_is_set_aside(
    clip: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a device a read never ends, a pipe is waited for, and no name holds a null byte."""
    (fine,) = write_pictures(tmp_path, 1)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "long.png").write_bytes(encoded(picture(0)) + bytes(10_000))
    monkeypatch.setattr(limits, "IMAGE", 10_000)
    reasons = {
        "/dev/zero": "is a device; expected a regular file",
        "pipe.png": "is a pipe; expected a regular file",
        "a\0b": "embedded null byte",
        "long.png": "has more than 10,000 bytes",
    }
    rows = [{"id": str(number), "image": name} for number, name in enumerate([fine.name, *reasons])]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest = jobs.embed_corpus(tmp_path / "rows.jsonl", tmp_path / "x.npy", clip, fields=Fields(image="image"))
    assert (manifest["count"], manifest["set_aside"]) == (1, 4)
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), clip.encode([fine]), atol=1e-6)
    aside = [json.loads(line) for line in (tmp_path / "x.quarantine.jsonl").read_text().splitlines()]
    assert [row["id"] for row in aside] == ["1", "2", "3", "4"]
    for row, reason in zip(aside, reasons.values(), strict=True):
        assert reason in row["reason"]


@pytest.mark.parametrize("ended_at", [17, 28])
def test_a_job_that_was_ended_goes_on_to_the_same_bytes(clip: Any, photos: Path, tmp_path: Path, ended_at: int) -> None:
    documents = list(embedkit.read_corpus(photos))

    def ending() -> Iterator[Document]:
        yield from documents[:ended_at]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_to_file(ending(), tmp_path / "x.npy", clip)
    assert (tmp_path / "x.ledger").exists() and not (tmp_path / "x.npy").exists()
    embed_to_file(documents, tmp_path / "x.npy", clip, resume=True)
    embed_to_file(documents, tmp_path / "y.npy", clip)
    assert written(tmp_path / "x.npy") == written(tmp_path / "y.npy")


def test_an_image_that_changed_since_it_was_embedded_ends_the_resumption(
    clip: Any, photos: Path, tmp_path: Path
) -> None:
    documents = list(embedkit.read_corpus(photos))

    def ending() -> Iterator[Document]:
        yield from documents[:20]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_to_file(ending(), tmp_path / "x.npy", clip)
    kept = (photos / "p05.png").read_bytes()
    (photos / "p05.png").write_bytes(encoded(picture(99)))
    with pytest.raises(DataError, match=r"'p05\.png' has another image or text since it was embedded"):
        embed_to_file(documents, tmp_path / "x.npy", clip, resume=True)
    (photos / "p05.png").write_bytes(kept)
    assert embed_to_file(documents, tmp_path / "x.npy", clip, resume=True)["count"] == 28


@pytest.mark.long
def test_two_workers_give_the_bytes_of_one(clip_model: Path, photos: Path, tmp_path: Path) -> None:
    clip = embedkit.load(clip_model, dtype="float32", threads=2)
    jobs.embed_corpus(photos, tmp_path / "two.npy", clip, workers=2)
    jobs.embed_corpus(photos, tmp_path / "one.npy", embedkit.load(clip_model, dtype="float32", threads=1))
    assert written(tmp_path / "two.npy") == written(tmp_path / "one.npy")


def test_shards_are_the_rows_of_one(clip: Any, photos: Path, tmp_path: Path) -> None:
    for part in (1, 2):
        jobs.embed_corpus(photos, tmp_path / f"{part}.npy", clip, shard=(part, 2))
    jobs.embed_corpus(photos, tmp_path / "x.npy", clip)
    parts = [
        dict(zip(_ids(tmp_path / f"{part}.npy"), np.load(tmp_path / f"{part}.npy"), strict=True)) for part in (1, 2)
    ]
    whole = dict(zip(_ids(tmp_path / "x.npy"), np.load(tmp_path / "x.npy"), strict=True))
    assert parts[0].keys().isdisjoint(parts[1]) and parts[0].keys() | parts[1].keys() == whole.keys()
    assert all(np.array_equal(row, whole[name]) for part in parts for name, row in part.items())


def _ids(path: Path) -> list[str]:
    return path.with_suffix(".ids.txt").read_text().split()


def test_a_model_that_reads_no_images_ends_the_job_at_the_first(tiny_model: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"At the document 'p00\.png': .* does not read images"):
        jobs.embed_corpus(photos, tmp_path / "x.npy", embedkit.load(tiny_model, dtype="float32"))
    assert not list(tmp_path.glob("x.*"))


def test_a_window_ends_where_the_bytes_of_its_images_fill_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "IMAGE_BYTES", 100)
    documents = [Document(str(i), "", image=Picture(bytes(size))) for i, size in enumerate((40, 70, 10, 10, 200, 1))]
    windows = list(run.windows_of([*documents, *(Document(f"t{i}", "text") for i in range(8))]))
    assert [(window.number, window.row, len(window.documents)) for window in windows] == [
        (0, 0, 2),
        (1, 2, 3),
        (2, 5, 8),
        (3, 13, 1),
    ]


def test_a_window_ends_where_its_texts_fill_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "CHARACTERS", 100)
    documents = [Document(str(i), "x" * size) for i, size in enumerate((40, 70, 10, 200, 1, 1))]
    assert [(window.row, len(window.documents)) for window in run.windows_of(documents)] == [(0, 2), (2, 2), (4, 2)]


def test_inputs_of_one_call_are_taken_in_windows_as_well(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of `encode` and of an index that adds: the same rows, and no more than a window tokenized at once."""
    model, taken = embedkit.load(tiny_model, dtype="float32"), []
    texts = ["cat " * count for count in (10, 20, 1, 40, 2)]
    wanted = model.encode(texts)
    pieces = type(model._opened.tokenization).pieces
    monkeypatch.setattr(
        type(model._opened.tokenization),
        "pieces",
        lambda own, some, *rest: taken.append(len(some)) or pieces(own, some, *rest),
    )
    monkeypatch.setattr(encoder, "CHARACTERS", 100)
    np.testing.assert_allclose(model.encode(texts), wanted, atol=1e-6)
    assert taken == [2, 2, 1]
    index = jobs.build_index(texts[:1], tmp_path / "x.index", model=model)
    taken.clear()
    index.add([{"id": f"d{i}", "text": text.strip()} for i, text in enumerate(texts)])
    assert taken == [2, 2, 1]


def test_no_more_batches_are_decoded_than_are_due(clip: Any, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 28 images in batches of 2: while a batch is computed, those before it are done and one a thread is ahead."""
    decoded, ahead = [], []
    from embedkit.encoders import torch_backend

    take, compute = torch_backend.rgb, torch_backend.TorchBackend._rows
    monkeypatch.setattr(torch_backend, "rgb", lambda one: decoded.append(one) or take(one))

    def watched(self: Any, batch: Any, features: Any) -> Any:
        rows = compute(self, batch, features)
        ahead.append(len(decoded) - 2 * len(ahead))
        return rows

    monkeypatch.setattr(torch_backend.TorchBackend, "_rows", watched)
    monkeypatch.setattr(torch_backend.torch, "get_num_threads", lambda: 2)
    good = [path for path in sorted(photos.iterdir()) if path.name not in ("p03.png", "p20.png")]
    clip.encode(good, batch_size=2)
    assert len(decoded) == 28 and max(ahead) <= 2 * 3


def test_an_index_of_images_answers_texts_and_images_and_keeps_no_pixels(
    clip: Any, photos: Path, tmp_path: Path
) -> None:
    with jobs.build_index(photos, tmp_path / "x.index", model=clip, fine="float32") as index:
        assert (len(index), index.info()["deleted"], index.info()["empty_texts"]) == (28, 2, 0)
        hits = index.search(photos / "p07.png", k=1)
        assert hits.ids == [["p07.png"]] and hits.scores[0, 0] == pytest.approx(1, abs=1e-5)
        assert hits.documents == [[Document("p07.png", "p07.png", metadata={"image": "p07.png"})]]
        several = index.search([photos / "p01.png", "a cat", {"image": picture(2, 34, 30)}], k=2)
        assert several.ids[0][0] == "p01.png" and several.ids[2][0] == "p02.png"
        assert index.add([photos / "p00.png"]) == 1 and index.get(["0"])[0].text == str(photos / "p00.png")
        again = index.search({"text": "a cat"}, k=3).ids
        assert again == [[*index.search("a cat", k=3).ids[0]]]
