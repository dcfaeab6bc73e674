"""task.yaml: what a folder says of itself as a task, where its files do not say it or say several things."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from embedkit.errors import DataError, IntegrityError
from embedkit.limits import SETTINGS, read_at_most, shown
from embedkit.strict_yaml import read_yaml

FILE = "task.yaml"


@dataclass(frozen=True)
class TaskFile:
    """All of it may be left out."""

    name: str | None = None  # in reports, instead of the folder's
    type: str | None = None  # as --type; "retrieval" for a BEIR folder
    split: str | None = None  # where --split is left out
    metric: str | None = None  # the score that counts, by the name that reports give it
    licence: str | None = None  # for the report
    ignore_identical_ids: bool = False  # a document with its query's id is not found, as in ArguAna and Quora
    hash: Mapping[str, str] = field(default_factory=dict)  # file -> SHA-256, as reports give it; checked

    def check_hashes(self, found: Mapping[str, str], folder: Path) -> None:
        """Raises IntegrityError where a file that was read is not the one that was described."""
        for name, expected in self.hash.items():
            if found.get(name, expected) != expected:
                raise IntegrityError(
                    f"{folder / name} has SHA-256 {found[name][:12]}..., {FILE} says {expected[:12]}...; restore the "
                    f"file, or mend {FILE}."
                )


def read_task_file(folder: Path) -> TaskFile:
    """What task.yaml says; nothing where there is none. Raises DataError for what it cannot say."""
    path = folder / FILE
    if not path.exists():
        return TaskFile()
    content = read_at_most(path, SETTINGS, DataError)
    try:
        given = read_yaml(content.decode("utf-8"))
    except ValueError as error:
        raise DataError(f"{path} cannot be read as YAML: {error}.") from None
    given = {} if given is None else given
    known = [one.name for one in fields(TaskFile)]
    if not isinstance(given, dict):
        raise DataError(f"{path} holds {shown(given)}; expected some of {', '.join(known)}, each with a value.")
    for key, value in given.items():
        _check(path, key, value, known)
    return TaskFile(**given)


def _check(path: Path, key: Any, value: Any, known: list[str]) -> None:
    if key not in known:
        near = difflib.get_close_matches(str(key), known, n=1)
        meant = f"did you mean {near[0]}?" if near else f"expected {', '.join(known)}."
        raise DataError(f"{path} has the key {shown(str(key))}, which says nothing of a task; {meant}")
    if key == "hash":
        fits = isinstance(value, dict) and all(isinstance(text, str) for text in [*value, *value.values()])
    else:
        fits = isinstance(value, bool) if key == "ignore_identical_ids" else isinstance(value, str) and bool(value)
    if not fits:
        others = {"hash": "a mapping of file names to SHA-256 sums", "ignore_identical_ids": "true or false"}
        wanted = others.get(key, "a text")
        raise DataError(f"{path}: {key} is {shown(value)}; expected {wanted}.")
