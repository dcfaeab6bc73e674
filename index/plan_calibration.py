"""What a unit of the index's work costs on this machine: writes the model behind `embedkit index plan`.

    python index/plan_calibration.py VECTORS.npy [-o plan.json] [--disk FOLDER]

Builds and searches small indexes of synthetic rows, each in a process of its own, and divides what every phase took by the work that
the model counts for it; a query's costs are the non-negative least squares of many settings, by relative error. VECTORS.npy are rows of
texts, (n, dim) float32: SAMPLE and FEWER of them are built for several recalls, which says how many lists a query must visit, and how
that grows. Without -o the file goes into the package, where `plan` and every build find it; with -o, name it with `plan --calibration`.
Facts of each build go to plan_calibration.jsonl at once, and a build that stands there is not repeated. Costs about nine minutes on two
cores.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from million import make_rows
from plan_builds import document_costs, measured
from scipy.optimize import nnls

from embedkit.eval.cost import machine
from embedkit.index.calibration import USUAL_RECALL
from embedkit.index.coarse import automatic_factory
from embedkit.index.costs import SHIPPED, Calibration, Reach, Task, code_work, query_work, trained_bytes
from embedkit.index.fine import BLOCK, RANGE_SAMPLE
from embedkit.index.plan import automatic_bytes
from embedkit.index.sizes import FLOAT, LISTS, anatomy

HERE = Path(__file__).parent
ROWS = HERE / "plan_calibration.jsonl"
DIM, SAMPLE = 384, 50_000
FEWER, FEWER_LISTS = 12_500, 128  # of the sample's rows, in half as many lists: how the lists to visit grow
RECALLS = (0.9, 0.95, 0.97, 0.99)
SHARES = (24, 12, 8, 6)
STEP = 4  # between the sizes at which the cost of a scanned byte is fitted: more of them follow the noise
GROWTH = tuple((share, recall) for share in (12, 8) for recall in RECALLS)  # codes that reach all of them
SYNTHETIC = ((8, 0.95), (8, USUAL_RECALL))  # what synthetic rows are held to as well, for plan_check.py
Done = dict[str, dict[str, Any]]  # key -> facts of a build
# (rows, layout); none of them is one that plan_check.py predicts
BUILDS: tuple[tuple[int, dict[str, Any]], ...] = (
    (60_000, {}),
    (300_000, {}),
    (800_000, {}),  # whose codes no cache holds
    (300_000, {"bytes_per_vector": automatic_bytes(DIM, 12), "fine": "int8"}),
    (150_000, {"coarse": "IVF512,SQ8", "fine": "float32"}),
    (300_000, {"coarse": "IVF1024,SQ8"}),
    (800_000, {"coarse": "IVF1024,SQ8"}),
    (150_000, {"coarse": "PQ64x4fs"}),
    (60_000, {"coarse": "SQ8"}),
    *((300_000, {"coarse": "none", "fine": fine}) for fine in ("float32", "float16", "int8")),
)


def calibrated(
    builds: list[dict[str, Any]], needed: tuple[Reach, ...], grows: float, documents: dict[str, float]
) -> Calibration:
    coded = [build for build in builds if build["coarse"] is not None]
    flop = _median(_phase(one, "train") / _work(one).train for one in coded if _parts(one).scanned == "fast")
    return Calibration(
        machine={**machine(), "threads": builds[0]["threads"], "rows": "synthetic, 384 dimensions"},
        process=round(_median(one["peak"] - one["measured"]["build_peak"] for one in builds)),
        **_memory_costs(builds, coded),
        documents=round(documents["peak"]),
        document_s=documents["core_seconds"] / documents["count"]
        + _median(_phase(one, "ids") / one["rows"] for one in builds),
        value_s=_median(_phase(one, "rows") / (one["rows"] * one["dim"]) for one in builds),
        byte_s=_median((_phase(one, "seal") + _phase(one, "write")) / one["disk"] for one in builds),
        flop_s=flop,
        coded_s={
            family: _median(
                max(0.0, _phase(one, "code") - _work(one).assign * flop) / _work(one).coded
                for one in coded
                if _family(one) == family
            )
            for family in ("fast", "scalar")
        },
        **_query_costs(coded, flop),
        exact_s={one["fine"]: one["query_s"] / (one["rows"] * one["dim"]) for one in builds if one["coarse"] is None},
        reach=needed,
        growth=grows,
    )


def _memory_costs(builds: list[dict[str, Any]], coded: list[dict[str, Any]]) -> dict[str, Any]:
    """Each from the phase that it stands for."""
    blocks = [FLOAT * BLOCK * one["dim"] for one in coded]
    coding = np.array([[block, _parts(one).codes(one["rows"])] for block, one in zip(blocks, coded, strict=True)])
    (copies, slack), _ = nnls(coding, np.array([_peak(one, "code") for one in coded]))
    return {
        "range_copies": _median(
            _peak(one, "ranges") / (FLOAT * RANGE_SAMPLE * one["dim"])
            for one in builds
            if "ranges" in one["measured"]["peaks"]
        ),
        "block_copies": max(_peak(one, "rows") / (FLOAT * BLOCK * one["dim"]) for one in builds),
        "coded_copies": float(copies),
        "sample_copies": _median(_peak(one, "train") / trained_bytes(_task(one), _parts(one)) for one in coded),
        "slack": float(slack),
    }


def _query_costs(coded: list[dict[str, Any]], flop: float) -> dict[str, Any]:
    """Least squares over all settings: (constant, lists, candidates, bytes by how they are scanned, at each size) -> core-seconds."""
    searches = [
        (one, asked, *query_work(_task(one), _parts(one), asked["probes"])) for one in coded for asked in one["grid"]
    ]
    scanned_by_kind: dict[str, list[float]] = {}
    for one, _, _, scanned in searches:
        scanned_by_kind.setdefault(_parts(one).scanned, []).append(scanned)
    sizes = {kind: _sizes(scanned) for kind, scanned in sorted(scanned_by_kind.items())}
    features, seconds = [], []
    for one, asked, found, scanned in searches:
        bytes_at = [scanned * (kind == _parts(one).scanned) * _shares(scanned, at) for kind, at in sizes.items()]
        features.append(np.concatenate([[1, asked["probes"] or 0, asked["shortlist"]], *bytes_at]))
        seconds.append(max(asked["seconds"] - found * flop, 0.1 * asked["seconds"]))
    weights = 1 / np.array(seconds)
    costs, _ = nnls(np.array(features) * weights[:, None], np.ones(len(weights)))
    query, visited, verified, *by_size = map(float, costs)
    rest = iter(by_size)
    scanned_s = {kind: [(float(f"{size:.4g}"), next(rest)) for size in at] for kind, at in sizes.items()}
    return {"query_s": query, "list_s": visited, "scanned_s": scanned_s, "verified_s": verified}


def _sizes(scanned: list[float]) -> np.ndarray:
    """From the least to the most, about STEP times each other."""
    steps = math.log(max(scanned) / min(scanned), STEP)
    return np.geomspace(min(scanned), max(scanned), 1 + max(1, round(steps)) if steps else 1)


def _shares(scanned: float, sizes: np.ndarray) -> np.ndarray:
    """How much each size counts for so many bytes, as `costs.py` interpolates."""
    return np.array([np.interp(math.log(scanned), np.log(sizes), one) for one in np.eye(len(sizes))])


def _task(one: dict[str, Any]) -> Task:
    return Task(one["rows"], one["dim"], one["coarse"], one["fine"])


def _parts(one: dict[str, Any]) -> Any:
    return anatomy(one["coarse"], one["dim"])


def _work(one: dict[str, Any]) -> Any:
    return code_work(_task(one), _parts(one))


def _family(one: dict[str, Any]) -> Any:
    return _parts(one).family


def _phase(one: dict[str, Any], name: str) -> float:
    """Core-seconds, 0 where it had no such phase."""
    return float(one["measured"]["core_seconds"].get(name, 0.0))


def _peak(one: dict[str, Any], name: str) -> float:
    return float(one["measured"]["peaks"][name])


def _median(values: Iterator[float]) -> float:
    return float(f"{np.median(list(values)):.4g}")


def text_reach(done: Done) -> tuple[Reach, ...]:
    """What codes of each size need for each recall on rows of texts; not those that do not reach it."""
    found = (reach(done, True, share, recall) for share in SHARES for recall in RECALLS)
    return tuple(entry for entry in found if entry is not None)


def reach(done: Done, of_texts: bool, share: int, recall: float) -> Reach | None:
    """As the build of SAMPLE rows found out; None where it is not reached."""
    one = done[key(of_texts, SAMPLE, held(share, recall))]
    parts = _parts(one)
    if one["recall"][1] < recall:
        return None
    return Reach(8 * parts.code / parts.dim, recall, parts.lists, one["probes"], one["shortlist"])


def growth(done: Done, of_texts: bool, share: int, recall: float) -> float:
    """The power of the number of lists that the lists to visit grow by, from FEWER rows to SAMPLE."""
    few, many = done[key(of_texts, FEWER, fewer_rows(share, recall))], done[key(of_texts, SAMPLE, held(share, recall))]
    lists = [_parts(one).lists for one in (few, many)]
    return min(1.0, max(0.0, math.log(many["probes"] / few["probes"]) / math.log(lists[1] / lists[0])))


def held(share: int, recall: float) -> dict[str, Any]:
    return {"bytes_per_vector": automatic_bytes(DIM, share), "recall": recall}


def fewer_rows(share: int, recall: float) -> dict[str, Any]:
    """The layout of the same codes, in lists for FEWER rows."""
    factory = str(automatic_factory(SAMPLE, DIM, automatic_bytes(DIM, share)))
    return {"coarse": LISTS.sub(str(FEWER_LISTS), factory), "recall": recall}


def wanted() -> Iterator[tuple[bool, int, dict[str, Any]]]:
    """(of texts, how many rows, layout)."""
    yield from ((False, rows, layout) for rows, layout in BUILDS)
    yield from ((True, SAMPLE, held(share, recall)) for share in SHARES for recall in RECALLS)
    yield from ((True, FEWER, fewer_rows(share, recall)) for share, recall in GROWTH)
    yield from ((False, SAMPLE, held(share, recall)) for share, recall in SYNTHETIC)
    yield from ((False, FEWER, fewer_rows(share, recall)) for share, recall in SYNTHETIC)


def key(of_texts: bool, count: int, layout: dict[str, Any]) -> str:
    return json.dumps([of_texts, count, layout])


def read_done() -> Done:
    lines = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    return {json.dumps(line["asked"]): line for line in lines}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("vectors", type=Path)
    arguments.add_argument("-o", "--output", type=Path, default=SHIPPED)
    arguments.add_argument("--disk", default=tempfile.gettempdir())
    asked = arguments.parse_args()
    done = read_done()
    with tempfile.TemporaryDirectory(dir=asked.disk) as scratch:
        synthetic, real = Path(scratch) / "synthetic.npy", Path(scratch) / "real.npy"
        make_rows(synthetic, max(rows for rows, _ in BUILDS), DIM)
        every = np.load(asked.vectors, mmap_mode="r", allow_pickle=False)
        if len(every) < SAMPLE:
            raise SystemExit(f"{asked.vectors} holds {len(every):,} rows; {SAMPLE:,} are needed.")
        np.save(real, every[np.random.default_rng(3).choice(len(every), SAMPLE, replace=False)])
        for of_texts, count, layout in wanted():
            name = key(of_texts, count, layout)
            if name in done:
                continue
            grid = (count, layout) in BUILDS and not of_texts
            facts = measured(real if of_texts else synthetic, None, count, layout, grid=grid)
            done[name] = {"asked": [of_texts, count, layout], **facts}
            with ROWS.open("a") as stream:
                stream.write(json.dumps(done[name]) + "\n")
            print(name, f"{facts['wall_s']:.1f} s", flush=True)
    builds = [done[key(False, count, layout)] for count, layout in BUILDS]
    needed = text_reach(done)
    grows = _median(growth(done, True, share, recall) for share, recall in GROWTH)
    found = asdict(calibrated(builds, needed, grows, document_costs()))
    asked.output.write_text(json.dumps({**found, "reach": [entry._asdict() for entry in needed]}, indent=1) + "\n")
    print(asked.output.read_text())


if __name__ == "__main__":
    main()
