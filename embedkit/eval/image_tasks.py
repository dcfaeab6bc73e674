"""Images with captions as two retrieval tasks of mteb: the image that a caption is of, and the captions of an image.

Equal captions are one text and equal images one image, so whatever was said of either is relevant. Nothing is decoded here: the
model reads the bytes, or the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embedkit.corpus.images import IMAGE, is_stored_image

CAPTIONS = "captions"  # the column; one caption a row may stand in one of the others
SINGLE = ("caption", "name")
DIRECTIONS = {"t2i": "text-to-image", "i2t": "image-to-text"}
Row = Mapping[str, Any]


def with_captions(row: Row, base: Path) -> Row:
    """The row of an image, with its captions as a list and its path from the folder of its file; any other row as it is."""
    if IMAGE not in row:
        return row
    image = row[IMAGE]
    if isinstance(image, str) and image:
        image = {"bytes": None, "path": str(base / image)}
    single = next((row[name] for name in SINGLE if isinstance(row.get(name), str)), None)
    captions = {} if CAPTIONS in row or single is None else {CAPTIONS: [single]}
    return {**row, IMAGE: image, **captions}


def image_text_data(rows: Sequence[Row], direction: str) -> dict[str, Any]:
    """What mteb's retrieval tasks hold: queries, corpus, relevant_docs. Raises ValueError for rows that are no images with captions."""
    images: dict[Any, dict[str, Any]] = {}  # the stored image -> its row of the corpus
    texts: dict[str, dict[str, Any]] = {}
    pairs: list[tuple[str, str]] = []  # (id of a text, id of an image)
    for number, row in enumerate(rows):
        image, captions = row[IMAGE], row[CAPTIONS]
        if not is_stored_image(image) or not (image.get("bytes") or image.get("path")):
            raise ValueError(f"row {number}: image is {image!r:.40}, expected the path of an image, or its bytes")
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            raise ValueError(f"row {number}: captions are {captions!r:.40}, expected a list of texts")
        place = Path(image["path"] or "").name or "image"
        own = images.setdefault(image.get("bytes") or image["path"], {"id": f"{number}-{place}", IMAGE: image})
        for caption in captions:
            text = texts.setdefault(caption, {"id": f"text{len(texts)}", "text": caption})
            pairs.append((text["id"], own["id"]))
    if not pairs:
        raise ValueError("no image has a caption")
    relevant: dict[str, dict[str, int]] = {}
    for text_id, image_id in pairs:
        query, document = (text_id, image_id) if direction == "t2i" else (image_id, text_id)
        relevant.setdefault(query, {})[document] = 1
    sides = {"text": _dataset(list(texts.values())), IMAGE: _images(list(images.values()))}
    queries, corpus = ("text", IMAGE) if direction == "t2i" else (IMAGE, "text")
    return {"queries": sides[queries], "corpus": sides[corpus], "relevant_docs": relevant, "top_ranked": None}


def _dataset(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows)


def _images(rows: list[dict[str, Any]]) -> Any:
    import datasets

    features = datasets.Features({"id": datasets.Value("string"), IMAGE: datasets.Image(decode=False)})
    return datasets.Dataset.from_list(rows, features=features)
