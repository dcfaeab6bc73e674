"""What building a segment was predicted to take, beside what it took: one small file a segment, for people.

It is no part of the index: nothing is read from it to search, and its manifest does not name it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from embedkit.errors import EmbedkitError
from embedkit.index.costs import Prediction, Task, predict, read_calibration
from embedkit.index.faiss_import import thread_count
from embedkit.index.manifest import BUILT, DOCUMENTS, FINE, Manifest, SegmentRecord
from embedkit.index.meter import Meter
from embedkit.storage import read_json, sealed_json, sealed_partial

KINDS = ("predicted", "measured")
COMPARED = ("ram", "disk", "build_peak", "build_seconds", "query_seconds")


class _Said(TypedDict):
    """What COMPARED names."""

    ram: int | float | None
    disk: int | float | None
    build_peak: int | float | None
    build_seconds: int | float | None
    query_seconds: int | float | None


class _Built(TypedDict):
    """What a record says, as far as it is read."""

    threads: int
    predicted: _Said | None
    measured: _Said


def write_record(
    path: Path, record: SegmentRecord, task: Task, meter: Meter, dense: frozenset[str], query_seconds: float | None
) -> None:
    """dense: the parts that a plan counts; a sparse leg is not among them."""
    threads = thread_count()
    ram, disk = bytes_of(record, dense)
    seconds = {name: took for name, took in meter.seconds.items() if name != "sparse"}
    measured = Prediction(
        ram, disk, meter.peak, sum(seconds.values()), query_seconds, record.probes, record.shortlist, True, seconds
    )
    predicted = _predicted(task, threads)
    with sealed_partial(path) as stream:
        stream.write(
            sealed_json(
                {
                    "task": vars(task),
                    "threads": threads,
                    "predicted": None if predicted is None else _facts(predicted),
                    "measured": {**_facts(measured), "core_seconds": meter.core_seconds, "peaks": meter.peaks},
                }
            )
        )


def _predicted(task: Task, threads: int) -> Prediction | None:
    """A build does not fail for want of a prediction."""
    try:
        return predict(task, read_calibration(), threads)
    except EmbedkitError:
        return None


def _facts(said: Prediction) -> dict[str, Any]:
    return {name: getattr(said, name) for name in (*COMPARED, "probes", "shortlist", "phases")}


def bytes_of(record: SegmentRecord, dense: frozenset[str]) -> tuple[int, int]:
    """What a search must hold of these parts, and what they take on disk."""
    sizes = {part: entry["bytes"] for part, entry in record.files.items() if part in dense}
    left_there = {DOCUMENTS} if record.coarse is None else {DOCUMENTS, FINE}
    return sum(size for part, size in sizes.items() if part not in left_there), sum(sizes.values())


def build_facts(folder: Path, manifest: Manifest) -> list[dict[str, Any]]:
    """Of each segment that has a record, what was predicted beside what was measured; the phases stand in the file alone. Raises
    IntegrityError for a damaged one."""
    found = []
    for segment in manifest.segments:
        path = folder / segment.name(BUILT)
        if path.is_file():
            said = read_json(path, _Built)
            pairs = {name: {kind: _short(said, kind, name) for kind in KINDS} for name in COMPARED}
            found.append({"segment": segment.number, "threads": said["threads"], **pairs})
    return found


def _short(said: Mapping[str, Any], kind: str, name: str) -> int | float | None:
    """As it was said, times with four digits."""
    value = None if said[kind] is None else said[kind][name]
    return float(f"{value:.4g}") if isinstance(value, float) else value
