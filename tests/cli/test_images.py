"""Images on the command line: embedded, indexed, and searched by words and by images."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from tests.cli.conftest import Run, write_jsonl
from tests.image_models import write_pictures


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six images and one that is none."""
    write_pictures(tmp_path / "photos", 6)
    (tmp_path / "photos" / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    return tmp_path / "photos"


def test_a_folder_is_embedded_and_what_is_no_image_is_set_aside(
    run: Run, photos: Path, clip_model: Path, tmp_path: Path
) -> None:
    options = ("-o", tmp_path / "x.npy", "--model", clip_model, "--dtype", "float32")
    done = run("embed", photos, *options)
    assert (done.code, done.out) == (3, f"6 vectors of 16 dimensions in {tmp_path / 'x.npy'}\n")
    assert "1 rows were set aside" in done.remarks[-1]
    (aside,) = (json.loads(line) for line in (tmp_path / "x.quarantine.jsonl").read_text().splitlines())
    assert aside["id"] == "torn.jpg" and aside["reason"].endswith("it is none of JPEG, PNG, WEBP, GIF, BMP, TIFF")
    assert run("embed", photos, *options, "--resume").code == 3


def test_paths_in_a_column_give_the_rows_of_the_files(run: Run, photos: Path, clip_model: Path, tmp_path: Path) -> None:
    (photos / "torn.jpg").unlink()
    options = ("--model", clip_model, "--dtype", "float32")
    rows = [{"id": f"r{i}", "file": f"photos/p0{i}.png"} for i in range(6)]
    table = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert run("embed", photos, "-o", tmp_path / "x.npy", *options).code == 0
    assert run("embed", table, "-o", tmp_path / "y.npy", "--image", "file", *options).code == 0
    assert np.array_equal(np.load(tmp_path / "x.npy"), np.load(tmp_path / "y.npy"))
    refused = run("embed", table, "-o", tmp_path / "z.npy", "--image", "file", "--text", "id", *options)
    assert "does not read texts together with images" in refused.sentence(2)


def test_an_index_of_images_is_searched_by_words_by_an_image_and_by_a_file_of_images(
    run: Run, photos: Path, clip_model: Path, tmp_path: Path
) -> None:
    index, one = tmp_path / "x.index", photos / "p03.png"
    built = run("index", "build", photos, "-o", index, "--model", clip_model, "--dtype", "float32")
    assert built.code == 3 and built.out.startswith("6 documents")
    assert len(run("search", index, "a cat", "-k", 3, "--json").facts["hits"]) == 3
    found = run("search", index, "--image", one, "-k", 1, "--dtype", "float32")
    rank, score, *names = found.out.split()
    assert (rank, names) == ("1", ["p03.png", "p03.png"]) and float(score) == pytest.approx(1, abs=1e-3)  # float16 rows
    assert run("search", index, "--image", one, "-k", 1, "--json").facts["query"] == f"<image {one}>"
    table = write_jsonl(tmp_path / "q.jsonl", [{"id": f"q{i}", "file": f"photos/p0{i}.png"} for i in (5, 2)])
    lines = run("search", index, "--queries", table, "--image", "file", "-k", 1).out.splitlines()
    assert [line.split()[:3:2] for line in lines] == [["q5", "p05.png"], ["q2", "p02.png"]]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--image", "gone.jpg"), "gone.jpg is not there; expected the file of an image."),
        (("--image", "{photos}/torn.jpg"), "it is none of JPEG, PNG, WEBP, GIF, BMP, TIFF; mend it or leave it out."),
        (("a cat", "--image", "{photos}/p00.png"), "does not read texts together with images"),
    ],
)
def test_wrong_images_are_one_sentence(
    run: Run, photos: Path, clip_model: Path, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    run("index", "build", photos, "-o", tmp_path / "x.index", "--model", clip_model, "--dtype", "float32")
    failed = run("search", tmp_path / "x.index", *(argument.format(photos=photos) for argument in arguments))
    assert sentence in failed.sentence(3 if "torn" in arguments[-1] else 2)


def test_an_image_beside_like_or_nothing_at_all_is_refused(run: Run, tmp_path: Path) -> None:
    for arguments in ((), ("--like", "a", "--image", "b"), ("a", "--queries", "q.jsonl")):
        assert run("search", tmp_path, *arguments).code == 2


@pytest.mark.data
def test_emoji_find_themselves(run: Run, data: Path, clip_model: Path, tmp_path: Path) -> None:
    """PNG with transparency; some are the same image twice."""
    table, index = data / "emoji_images" / "data.parquet", tmp_path / "emoji.index"
    exact = ("--dtype", "float32")
    options = ("--model", clip_model, *exact, "--id", "file", "--limit", 200)
    assert run("index", "build", table, "-o", index, *options, "--fine", "float32").code == 0
    rows = pyarrow.parquet.read_table(table, columns=["file", "image"]).slice(0, 200).to_pylist()
    contents = {row["file"]: row["image"]["bytes"] for row in rows}
    for row in rows[::40]:
        (tmp_path / "question.png").write_bytes(row["image"]["bytes"])
        (hit,) = run("search", index, "--image", tmp_path / "question.png", "-k", 1, "--json", *exact).facts["hits"]
        assert hit["score"] == pytest.approx(1, abs=1e-5)
        assert hit["id"] == row["file"] or contents[hit["id"]] == row["image"]["bytes"]
        assert hit["metadata"]["name"] and "bytes" not in json.dumps(hit)


@pytest.mark.data
def test_photographs_and_captions_find_each_other(run: Run, data: Path, clip_model: Path, tmp_path: Path) -> None:
    """Both ways through the command line; random weights know nothing, so hits are compared with sentence-transformers'."""
    from sentence_transformers import SentenceTransformer

    source = data / "flickr8k_1k" / "data.parquet"
    rows = pyarrow.parquet.read_table(source, columns=["file", "image", "captions"]).slice(0, 40).to_pylist()
    captions = write_jsonl(tmp_path / "c.jsonl", [{"id": row["file"], "text": row["captions"][0]} for row in rows])
    exact = ("--dtype", "float32")
    options = ("--model", clip_model, *exact, "--fine", "float32")
    photos, texts = tmp_path / "photos.index", tmp_path / "texts.index"
    assert run("index", "build", source, "-o", photos, "--id", "file", "--limit", 40, *options).code == 0
    assert run("index", "build", captions, "-o", texts, *options).code == 0
    (tmp_path / "question.jpg").write_bytes(rows[7]["image"]["bytes"])
    by_image = run("search", texts, "--image", tmp_path / "question.jpg", "-k", 40, "--json", *exact).facts["hits"]
    by_text = run("search", photos, rows[7]["captions"][0], "-k", 40, "--json", *exact).facts["hits"]
    model = SentenceTransformer(str(clip_model), device="cpu")
    images = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
    image_rows = model.encode(images, normalize_embeddings=True)
    text_rows = model.encode([row["captions"][0] for row in rows], normalize_embeddings=True)
    for hits, scores in ((by_image, text_rows @ image_rows[7]), (by_text, image_rows @ text_rows[7])):
        wanted = {row["file"]: score for row, score in zip(rows, scores, strict=True)}
        assert {hit["id"] for hit in hits} == wanted.keys()
        np.testing.assert_allclose([hit["score"] for hit in hits], sorted(scores)[::-1], atol=1e-5)
        np.testing.assert_allclose([hit["score"] for hit in hits], [wanted[hit["id"]] for hit in hits], atol=1e-5)
