"""Folders: which of their files are the corpus, and what the names of folders say of the rows in them."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from embedkit.corpus.arrow import PlacedRows, parquet_rows, saved_dataset_rows
from embedkit.corpus.formats import STREAM_FORMATS, TEXT_SUFFIXES, file_rows, suffix_of, text_rows
from embedkit.corpus.images import IMAGE, IMAGE_SUFFIXES
from embedkit.errors import DataError, UsageError

logger = logging.getLogger(__name__)
NULL = "__HIVE_DEFAULT_PARTITION__"  # what Hive and Spark write for a missing value
NAMED = 3  # files left out that are named
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")  # "train-00000-of-00002", as the hub names the parts of a split
SPLITS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip


def folder_rows(folder: Path, leave_out: Collection[str] = (), *, images: bool = False) -> PlacedRows:
    """A BEIR folder, a saved `datasets` folder, parquet files, text files or images, whichever is found first. images: these
    before texts. Files and folders whose names begin with a dot, and folders that begin with an underscore, are no data; other
    files that are left out are said.

    Raises UsageError for a folder without a corpus, or with several splits."""
    for name in ("corpus.jsonl", "corpus.jsonl.gz"):
        if (folder / name).exists():
            return file_rows(folder / name)
    if (folder / "dataset_dict.json").exists():
        splits = ", ".join(sorted(path.parent.name for path in folder.glob("*/state.json")))
        raise UsageError(
            f"{folder} holds several splits ({splits}); give the folder of one, for example {folder}/train."
        )
    if (folder / "state.json").exists():
        return saved_dataset_rows(folder, leave_out)
    visible = [path for path in sorted(folder.rglob("*")) if path.is_file() and not _hidden(path.relative_to(folder))]
    files = [path for path in visible if not _is_set_aside(path.relative_to(folder))]
    if parquet := [path for path in files if path.suffix.lower() == ".parquet"]:
        _check_one_split(folder, parquet)
        return _saying(folder, visible, parquet, _partitioned(folder, parquet, leave_out))
    if tables := [path for path in files if suffix_of(path) in STREAM_FORMATS]:
        raise UsageError(f"{folder} holds {tables[0].name} and is no BEIR folder; name the file itself: {tables[0]}.")
    texts = [path for path in files if suffix_of(path) in TEXT_SUFFIXES]
    pictures = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if texts and not (images and pictures):
        return _saying(folder, visible, texts, text_rows(folder, texts))
    if pictures:
        return _saying(folder, visible, pictures, _image_rows(folder, pictures))
    raise UsageError(
        f"{folder} holds no corpus: looked for corpus.jsonl (BEIR), state.json (a saved datasets folder), *.parquet, "
        f"text files ({', '.join(TEXT_SUFFIXES)}) and images ({', '.join(IMAGE_SUFFIXES)})."
    )


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _is_set_aside(path: Path) -> bool:
    """In a folder such as _delta_log or _temporary, and not in one such as _year=2020; or a file such as _metadata, in parquet."""
    folders = any(part.startswith("_") and "=" not in part for part in path.parent.parts)
    return folders or (path.name.startswith("_") and path.suffix.lower() == ".parquet")


def _saying(folder: Path, visible: Sequence[Path], read: Sequence[Path], rows: PlacedRows) -> PlacedRows:
    """The rows, after a word on the files beside them that are not read."""
    taken = set(read)
    if left := [path.relative_to(folder).as_posix() for path in visible if path not in taken]:
        more = ", ..." if len(left) > NAMED else ""
        logger.info("%s: %d files are left out: %s%s", folder, len(left), ", ".join(left[:NAMED]), more)
    yield from rows


def _check_one_split(folder: Path, paths: Iterable[Path]) -> None:
    """Raises UsageError where the names of files say that they are several splits of one data set."""
    splits: dict[str, Path] = {}
    for path in paths:
        if split := _split(path.relative_to(folder)):
            splits.setdefault(split, path)
    if len(splits) > 1:
        raise UsageError(
            f"{folder} holds several splits ({', '.join(sorted(splits))}); give the file or the folder of one, for example "
            f"{next(iter(splits.values()))}."
        )


def _split(path: Path) -> str | None:
    """The split that a name stands for, as the hub reads names: "data/train-00000-of-00001.parquet", "dev/0.parquet"."""
    if shard := SHARD.match(path.stem):
        return SPLITS.get(shard[1].lower(), shard[1])
    words = re.split(r"[-._ 0-9/]+", path.with_suffix("").as_posix().lower())
    return next((SPLITS[word] for word in reversed(words) if word in SPLITS), None)


def _partitioned(folder: Path, paths: Sequence[Path], leave_out: Collection[str]) -> PlacedRows:
    """The rows of all files, with what their folders say as further fields: lang is "en" in lang=en/part-0.parquet."""
    keys = [_keys(path.relative_to(folder).parent) for path in paths]
    numbers = {name for some in keys for name in some} - {
        name for some in keys for name, value in some.items() if value is not None and not _is_whole(value)
    }
    for path, some in zip(paths, keys, strict=True):
        fields: dict[str, Any] = {
            name: int(value) if value is not None and name in numbers else value
            for name, value in some.items()
            if name not in leave_out
        }
        for where, row in parquet_rows(path, leave_out):
            for name in fields.keys() & row.keys():
                if str(row[name]) != str(fields[name]):
                    raise DataError(
                        f"{where}: the field {name!r} is {row[name]!r}, and {fields[name]!r} by the name of its folder; mend one of "
                        f"them, or use --leave-out {name}."
                    )
            yield where, {**fields, **row}


def _keys(folders: Path) -> dict[str, str | None]:
    """Of the folders of a table that Hive, Spark or pandas partitioned."""
    pairs = (part.split("=", 1) for part in folders.parts if "=" in part.strip("="))
    return {unquote(name): None if value == NULL else unquote(value) for name, value in pairs}


def _is_whole(value: str) -> bool:
    """A number that is written as Python writes it, so that nothing is lost: not "007"."""
    return re.fullmatch(r"0|-?[1-9][0-9]{0,17}", value) is not None


def _image_rows(root: Path, paths: Iterable[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """One document an image, its id the path below the root."""
    for number, path in enumerate(paths, 1):
        below = path.relative_to(root)
        yield f"{root}, row {number}", {"id": below.as_posix(), IMAGE: below}
