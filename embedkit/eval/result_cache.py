"""Outcomes of evaluations, kept until anything changes that they depend on.

A record is a JSON file with its own checksum, named by the hash of its key, and it holds the key: a record that is damaged,
or of another key, is none. A run that was interrupted goes on at the task where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from embedkit.errors import IntegrityError
from embedkit.eval.report import ReportFacts, as_json, from_json, plain
from embedkit.storage import read_json, write_json
from embedkit.types import Report

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What one task gave."""

    reports: dict[str, Report]  # one a subset
    results: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # mteb's files: path without .json -> content


class Record(TypedDict):
    """What a file of the cache holds."""

    key: dict[str, Any]
    reports: dict[str, ReportFacts]
    results: dict[str, Mapping[str, Any]]


class ResultCache:
    """A folder of outcomes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: Mapping[str, Any]) -> Path:
        return self.folder / f"{hashlib.sha256(_canonical(key).encode()).hexdigest()[:32]}.json"

    def get(self, key: Mapping[str, Any]) -> Outcome | None:
        """None where there is none, or none that can be trusted."""
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            record = read_json(path, Record)
            if record["key"] != json.loads(_canonical(key)):
                raise IntegrityError(f"{path} is the record of another evaluation.")
            if any(Path(name).is_absolute() or ".." in Path(name).parts for name in record["results"]):
                raise IntegrityError(f"{path} names files outside the folder of the results.")
            return Outcome({name: from_json(facts) for name, facts in record["reports"].items()}, record["results"])
        except IntegrityError as error:
            logger.warning("A kept result is not used (%s); the task is evaluated again.", error)
            return None

    def put(self, key: Mapping[str, Any], outcome: Outcome) -> None:
        reports = {name: as_json(report) for name, report in outcome.reports.items()}
        write_json(self.path(key), plain({"key": key, "reports": reports, "results": outcome.results}))


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
