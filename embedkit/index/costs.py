"""What one index will take, before it is built: RAM, disk, time and memory of the build, time of a query.

Bytes follow from the formats (`sizes.py`). Times and the memory of a build are work, counted by the algorithm, times a cost that
was measured: `index/plan_calibration.py` writes `plan.json` beside this file, or another that `read_calibration` reads. Core-seconds
are wall seconds times threads: what faiss does is taken to spread over all of them, what Python and SQLite do is not. How many lists a
query must visit depends on the vectors; the calibration holds what its own needed and how that grows, and a build measures it anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np

from embedkit.errors import DataError, UsageError
from embedkit.index.calibration import (
    HELD_OUT,
    PROBED_AT_LEAST,
    PROBED_SHARE,
    PROBES,
    SHORTLISTS,
    USUAL_RECALL,
    VERIFIED_AT_LEAST,
)
from embedkit.index.coarse import TURN_SAMPLE, sample_for_lists
from embedkit.index.fine import BLOCK, RANGE_SAMPLE
from embedkit.index.sizes import FLOAT, Anatomy, anatomy, document_bytes, fine_bytes, id_bytes
from embedkit.limits import MANIFEST, read_at_most
from embedkit.typed import checked, parsed

SHIPPED = Path(__file__).with_name("plan.json")
KMEANS_ROUNDS = 10  # of faiss, for inverted lists
ID_COPIES = {True: 12, False: 20}  # bytes an id while they are written; True: whole numbers
NUMBER_DIGITS = 7.0  # mean length of an id that is a whole number


class Reach(NamedTuple):
    """What the calibration's own rows needed to keep `recall` of the 10 nearest, with codes of so many bits a dimension."""

    bits: float
    recall: float
    lists: int  # that there were
    probes: int  # of them, that a query had to visit
    shortlist: int


@dataclass(frozen=True)
class Calibration:
    """What a unit of work costs on a machine. Times are core-seconds, memory is in bytes."""

    machine: Mapping[str, Any]
    # memory
    process: int  # of a process that has imported what a build needs, and what it keeps when the documents are written
    documents: int  # of SQLite's caches while documents are written, at most
    range_copies: float  # copies of the float32 rows that the ranges of int8 are taken from
    block_copies: float  # copies of a block of float32 rows, while they are written
    coded_copies: float  # likewise, while they are coded
    sample_copies: float  # of the training sample, while faiss trains
    slack: float  # bytes held for each byte of codes, whose lists grow by doubling
    # a build
    document_s: float  # a document: its row, its id, its place in the table of ids
    value_s: float  # a value of a fine row: made unit, checked, cast, written
    byte_s: float  # a byte of a file: read again for its checksum
    flop_s: float  # a floating point operation in matrix products: centroids, rotations
    coded_s: Mapping[str, float]  # a value of a row that is coded, by family of codes
    # a query, in a batch
    query_s: float  # whatever it finds
    list_s: float  # a list that is visited
    # a byte of codes that is scanned, by `Anatomy.scanned`: (bytes that a query scans, cost), growing
    scanned_s: Mapping[str, Sequence[tuple[float, float]]]
    verified_s: float  # a candidate that the fine rows verify: a row from the page cache
    exact_s: Mapping[str, float]  # a value of an exact search, by the fine rows' dtype
    reach: Sequence[Reach]
    growth: float  # lists that a query must visit grow as the number of lists to this power


def read_calibration(path: Path = SHIPPED) -> Calibration:
    """Raises UsageError for a file that is not there, DataError for one that is no calibration."""
    try:
        found = parsed(read_at_most(path, MANIFEST, DataError))
        reach = tuple(Reach(**entry) for entry in found["reach"])
        scanned = {kind: tuple(map(tuple, points)) for kind, points in found["scanned_s"].items()}
        calibration = Calibration(**{**found, "reach": reach, "scanned_s": scanned})
        for name, kind in get_type_hints(Calibration).items():
            checked(getattr(calibration, name), kind, path, DataError)
        return calibration
    except FileNotFoundError:
        raise UsageError(f"{path} is not there; write it with: python index/plan_calibration.py -o {path}.") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path} is no calibration ({error}); write one with index/plan_calibration.py.") from None


@dataclass(frozen=True)
class Task:
    """What is to be built."""

    rows: int
    dim: int
    factory: str | None  # faiss factory string; None: exact
    fine: str = "float16"
    recall: float | None = None  # as `Layout.recall`
    text: float = 0.0  # mean bytes of title, text and metadata
    identifier: float | None = None  # mean bytes of an id; None: whole numbers
    sample_ram: int | None = None  # for training


@dataclass(frozen=True)
class Prediction:
    """None: of a kind of codes that the model does not know."""

    ram: int | None  # bytes that a search must hold
    disk: int | None
    build_peak: int | None  # bytes above what the process holds before
    build_seconds: float | None
    query_seconds: float | None  # of one thread, in a batch
    probes: int | None
    shortlist: int
    reached: bool  # the recall, by the calibration's own rows
    phases: Mapping[str, float]  # seconds of the build


def predict(task: Task, calibration: Calibration, threads: int) -> Prediction:
    """Of one index on one machine."""
    parts = None if task.factory is None else anatomy(task.factory, task.dim)
    fine, ids = fine_bytes(task.rows, task.dim, task.fine), id_bytes(task.rows, task.identifier)
    documents = document_bytes(task.rows, task.text, task.identifier or NUMBER_DIGITS)
    if task.factory is None:
        phases = _shared_phases(task, calibration, fine + documents + ids)
        exact = task.rows * task.dim * calibration.exact_s[task.fine]
        peak = max(_before_codes(task, calibration))
        return Prediction(
            fine + ids, fine + documents + ids, peak, sum(phases.values()), exact, None, SHORTLISTS[0], True, phases
        )
    if parts is None:
        return Prediction(None, None, None, None, None, None, SHORTLISTS[0], False, {})
    codes = parts.codes(task.rows)
    probes, shortlist, reached = settings(task, parts, calibration)
    phases = _shared_phases(task, calibration, fine + documents + ids + codes)
    peak = max(*_before_codes(task, calibration), *_of_codes(task, parts, calibration))
    query: float | None = None
    seconds: float | None = None
    if parts.family is not None:
        query = query_seconds(task, parts, calibration, probes, shortlist)
        phases |= {name: work / threads for name, work in _code_phases(task, parts, calibration).items()}
        seconds = sum(phases.values())
    disk = fine + documents + ids + codes
    return Prediction(codes + ids, disk, peak, seconds, query, probes, shortlist, reached, phases)


def settings(task: Task, parts: Anatomy, calibration: Calibration) -> tuple[int | None, int, bool]:
    """(lists visited, candidates verified, whether the recall is reached), as a build will choose on rows like the calibration's."""
    reach = _reach(parts, task.recall or USUAL_RECALL, calibration)
    probes = parts.lists if reach is None else _probes(reach, parts.lists, calibration)
    shortlist = SHORTLISTS[-1] if reach is None else reach.shortlist
    if task.recall is None:
        probes = max(probes, PROBED_AT_LEAST, round(PROBED_SHARE * parts.lists))
        shortlist = max(shortlist, VERIFIED_AT_LEAST)
    return (min(probes, parts.lists) if parts.lists else None), shortlist, reach is not None


def _reach(parts: Anatomy, recall: float, calibration: Calibration) -> Reach | None:
    """The nearest size of codes, the next recall above; None where it was not reached."""
    bits = 8 * parts.code / parts.dim
    nearest = min((entry.bits for entry in calibration.reach), key=lambda known: abs(math.log(known / bits)), default=0)
    found = (entry for entry in calibration.reach if entry.bits == nearest and entry.recall >= recall)
    return min(found, key=lambda entry: entry.recall, default=None)


def _probes(reach: Reach, lists: int, calibration: Calibration) -> int:
    """Of so many lists."""
    grown = reach.probes * math.pow(lists / reach.lists, calibration.growth)
    return min(lists, max(1, round(grown)))


# --- memory -----------------------------------------------------------------------------------------------------------


def _before_codes(task: Task, calibration: Calibration) -> Iterator[int]:
    """Bytes in the phases that every build has: documents, ids, rows."""
    yield calibration.documents
    yield ID_COPIES[task.identifier is None] * task.rows
    yield round(calibration.block_copies * _block(task))
    if task.fine == "int8":
        yield round(calibration.range_copies * FLOAT * min(task.rows, RANGE_SAMPLE) * task.dim)


def _of_codes(task: Task, parts: Anatomy, calibration: Calibration) -> Iterator[int]:
    """Bytes while codes are trained and filled."""
    yield round(calibration.sample_copies * trained_bytes(task, parts))
    yield round(calibration.slack * parts.codes(task.rows) + calibration.coded_copies * _block(task))


def _sample(task: Task, parts: Anatomy) -> int:
    return sample_for_lists(parts.lists, str(task.factory), task.dim, task.rows, task.sample_ram)


def trained_bytes(task: Task, parts: Anatomy) -> int:
    """Of the rows that a rotation is trained on, twice; or of the sample, the residuals that the coder learns from, and a block."""
    sample = _sample(task, parts)
    turned = 2 * min(sample, TURN_SAMPLE) * task.dim if parts.turned else 0
    coded = (sample + min(sample, parts.learned_from)) * parts.inner_dim + min(task.rows, BLOCK) * task.dim
    return FLOAT * max(turned, coded)


def _block(task: Task) -> int:
    """Bytes of the float32 rows that are written or coded at once."""
    return FLOAT * min(task.rows, BLOCK) * task.dim


# --- time -------------------------------------------------------------------------------------------------------------


def _shared_phases(task: Task, calibration: Calibration, disk: int) -> dict[str, float]:
    """Seconds of what every build does, in one thread."""
    return {
        "documents": task.rows * calibration.document_s,
        "rows": task.rows * task.dim * calibration.value_s,
        "seal": disk * calibration.byte_s,
    }


def _code_phases(task: Task, parts: Anatomy, calibration: Calibration) -> dict[str, float]:
    """Core-seconds of training, coding, and measuring the settings."""
    work = code_work(task, parts)
    target = _reach(parts, task.recall or USUAL_RECALL, calibration)
    last = parts.lists if target is None else _probes(target, parts.lists, calibration)
    tried: list[int | None] = [probes for probes in PROBES if probes <= 2**0.25 * last and probes < parts.lists]
    if target is None or not parts.lists:
        tried.append(parts.lists or None)
    searched = sum(query_seconds(task, parts, calibration, probes, 0) for probes in tried)
    return {
        "train": work.train * calibration.flop_s,
        "code": work.assign * calibration.flop_s + work.coded * calibration.coded_s[str(parts.family)],
        "measure": work.measure * calibration.flop_s + HELD_OUT * searched,
    }


class CodeWork(NamedTuple):
    """Floating point operations in matrix products, and values that are coded."""

    train: float
    assign: float
    coded: float
    measure: float


def code_work(task: Task, parts: Anatomy) -> CodeWork:
    sample = _sample(task, parts)
    turn = 2 * task.dim * parts.inner_dim if parts.turned else 0
    nearest_list = 2 * parts.lists * parts.inner_dim
    return CodeWork(
        train=sample * (KMEANS_ROUNDS * nearest_list + turn) + 2 * min(sample, TURN_SAMPLE) * turn,
        assign=task.rows * (nearest_list + turn),
        coded=task.rows * parts.inner_dim,
        measure=2 * HELD_OUT * task.rows * task.dim,
    )


def query_work(task: Task, parts: Anatomy, probes: int | None) -> tuple[float, float]:
    """(floating point operations to find its lists, bytes of codes scanned) of one query."""
    found = 2 * parts.inner_dim * (parts.lists + task.dim * parts.turned)
    visited = 1.0 if probes is None else probes / parts.lists
    return found, visited * task.rows * parts.code


def query_seconds(task: Task, parts: Anatomy, calibration: Calibration, probes: int | None, shortlist: int) -> float:
    """Core-seconds of one query of a batch that visits so many lists and verifies so many candidates."""
    found, scanned = query_work(task, parts, probes)
    return (
        calibration.query_s
        + found * calibration.flop_s
        + (probes or 0) * calibration.list_s
        + scanned * _scanned_byte(parts, scanned, calibration)
        + shortlist * calibration.verified_s
    )


def _scanned_byte(parts: Anatomy, scanned: float, calibration: Calibration) -> float:
    """Core-seconds: more for few bytes, whose lists are short, and for more than the processor's caches hold. Between sizes that were
    measured, by their logarithm; beyond them, as at the last."""
    sizes, costs = zip(*calibration.scanned_s[parts.scanned], strict=True)
    return float(np.interp(math.log(scanned), np.log(sizes), costs))
