"""Does `index tune --recall` keep its word? Regenerates the table of index/README.md.

    python index/tune_check.py --data FOLDER [--limit N] [--coarse FACTORY] [--vectors NAME=VECTORS.npy] [--only NAME]

FOLDER holds WordNet (`wordnet/synsets.jsonl.gz`, definitions) and Debian's packages (`debian_packages` in BEIR
layout). The rows are embedded once by the default model into NAME.npy beside this file (ignored by git), or taken
from --vectors; --limit takes the first N documents. An index is built as `auto` has it and tuned to 0.95 by the
command: on WordNet with 2,000 definitions taken out, and measured again by searches on 10,000 others; on Debian's
packages with the synopses of `dev`, and measured again on those of `test`. Then DRAWS times with queries drawn anew
from both sets, to count how often the second measurement lies in the interval of the first: an interval of 95 % that
is compared with a second sample holds less than 95 % of them, by the size of that sample; the table says how much is
expected. Last, an index of tiny codes is asked for what it cannot keep. Rows are written to tune_check.jsonl at once;
a collection that stands there is not repeated. Costs about five minutes a collection beside the embedding.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

import embedkit
from embedkit.corpus import Fields
from embedkit.eval.recall import halves
from embedkit.eval.report import replace_table
from embedkit.eval.retrieval import read_retrieval
from embedkit.index import Index
from embedkit.index.snapshot import Way
from embedkit.index.tuning import Front, Truth, exact_neighbours, recalls
from embedkit.jobs import embed_corpus
from embedkit.statistics import bootstrap_interval

HERE = Path(__file__).parent
ROWS = HERE / "tune_check.jsonl"
GOAL, IMPOSSIBLE, K = 0.95, 0.99, 10
TUNED_WITH, MEASURED_WITH = 2_000, 10_000  # definitions of WordNet
DRAWS = 20
TINY = "PQ12x4fs"


class Collection(NamedTuple):
    rows: np.ndarray  # (n, dim) that are indexed
    tuning: np.ndarray  # (q, dim) queries
    others: np.ndarray  # (p, dim) queries


def embedded(name: str, corpus: Path, fields: Fields, given: dict[str, Path], limit: int | None) -> np.ndarray:
    """The rows of a corpus, embedded where they are not here yet."""
    path = given.get(name, HERE / (f"{name}.npy" if limit is None else f"{name}-{limit}.npy"))
    if not path.exists():
        embed_corpus(corpus, path, embedkit.load(), fields=fields, limit=limit, progress=True)
    return np.load(path, allow_pickle=False).astype(np.float32)[:limit]


def wordnet(data: Path, given: dict[str, Path], limit: int | None) -> Collection:
    rows = embedded("wordnet", data / "wordnet/synsets.jsonl.gz", Fields(text=("definition",)), given, limit)
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    end = TUNED_WITH + MEASURED_WITH
    return Collection(rows[end:], rows[:TUNED_WITH], rows[TUNED_WITH:end])


def debian_packages(data: Path, given: dict[str, Path], limit: int | None) -> Collection:
    folder = data / "debian_packages"
    rows, encoder = embedded("debian_packages", folder, Fields(), given, limit), embedkit.load()
    tuning, others = (
        encoder.encode(list(read_retrieval(folder, split).queries.values()), kind="query") for split in ("dev", "test")
    )
    return Collection(rows, tuning, others)


COLLECTIONS = {"wordnet": wordnet, "debian_packages": debian_packages}


def tuned(index: Path, queries: Path, goal: float) -> tuple[int, dict[str, Any]]:
    """Exit code and facts of the command."""
    words = ["index", "tune", str(index), "--recall", str(goal), "--queries", str(queries), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", "from embedkit.cli.main import main; main()", *words],
        capture_output=True,
        text=True,
        env=os.environ,
        check=False,
    )
    return done.returncode, json.loads(done.stdout)


def drawn(index: Index, collection: Collection) -> int:
    """How often the second measurement lies in the interval of the first, queries drawn anew: `tune_recall` without its clock."""
    pool, count = np.concatenate([collection.tuning, collection.others]), len(collection.tuning)
    truth, inside = exact_neighbours(index.snapshot, pool, K), 0

    def kept(places: np.ndarray, ways: tuple[Way, ...] | None) -> np.ndarray:
        return recalls(index.snapshot, pool[places], Truth(truth.scores[places], truth.rows[places]), ways)

    for draw in range(DRAWS):
        order = np.random.default_rng(draw + 1).permutation(len(pool))
        first, second = halves(order[:count], GOAL, seed=draw)
        front = Front.of(index.snapshot, pool[first], Truth(truth.scores[first], truth.rows[first]))
        ways = front.cheapest(GOAL)
        low, high = bootstrap_interval(kept(second, ways))
        inside += bool(low <= kept(order[count:], ways).mean() <= high)
    return inside


def row(name: str, collection: Collection, coarse: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        path, tiny, queries = Path(scratch) / "x.index", Path(scratch) / "tiny.index", Path(scratch) / "q.npy"
        embedkit.build_index(collection.rows, path, coarse=coarse).close()
        embedkit.build_index(collection.rows, tiny, coarse=TINY).close()
        np.save(queries, collection.tuning)
        code, facts = tuned(path, queries, GOAL)
        with embedkit.open_index(path) as index:
            truth = exact_neighbours(index.snapshot, collection.others, K)
            again = recalls(index.snapshot, collection.others, truth).mean()
            inside = drawn(index, collection)
            factory = index.manifest.segments[0].coarse
        impossible, frontier = tuned(tiny, queries, IMPOSSIBLE)
    return {
        "data": name,
        "rows": len(collection.rows),
        "coarse": factory,
        "exit": code,
        "tuned": facts["chosen"],
        "stored": facts["stored"],
        "measured_on": facts["measured_on"],
        "again": float(again),
        "again_on": len(collection.others),
        "inside": inside,
        "draws": DRAWS,
        "impossible_exit": impossible,
        "impossible_best": max(point["recall"] for point in frontier["curves"][0]["points"]),
        "impossible_points": len(frontier["curves"][0]["points"]),
    }


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| collection | rows | codes | lists visited, rows verified | recall@10 (95 % interval) | of queries | again, on others "
        "| of queries | in the interval | drawn anew, in the interval | expected | queries/s, before and tuned | impossible goal |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        chosen, normal = row["tuned"], NormalDist()
        (way,), (low, high) = chosen["ways"], chosen["interval"]
        reach = normal.inv_cdf(0.975) / math.sqrt(1 + row["measured_on"] / row["again_on"])
        cells = [row["data"], f"{row['rows']:,}", f"`{row['coarse']}`", f"{way['probes']}, {way['shortlist']}"]
        cells += [f"{chosen['recall']:.4f} ({low:.4f} to {high:.4f})", f"{row['measured_on']:,}"]
        cells += [f"{row['again']:.4f}", f"{row['again_on']:,}", "yes" if low <= row["again"] <= high else "no"]
        cells += [f"{row['inside']} of {row['draws']}", f"{row['draws'] * (2 * normal.cdf(reach) - 1):.1f}"]
        cells.append(f"{row['stored']['queries_per_second']:,.0f}, {chosen['queries_per_second']:,.0f}")
        cells.append(
            f"`{TINY}` to {IMPOSSIBLE}: exit {row['impossible_exit']}, {row['impossible_points']} points, "
            f"best {row['impossible_best']:.4f}"
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, default=os.environ.get("EMBEDKIT_DATA"))
    arguments.add_argument("--limit", type=int, help="documents of each collection")
    arguments.add_argument("--vectors", action="append", default=[], metavar="NAME=VECTORS.npy")
    arguments.add_argument("--only", choices=COLLECTIONS, action="append")
    arguments.add_argument("--coarse", default="auto", help="of fewer rows than `auto` gives codes to")
    asked = arguments.parse_args()
    if asked.data is None or not all((Path(asked.data) / name).is_dir() for name in COLLECTIONS):
        raise SystemExit("Skipped: give the folder of the collections with --data or EMBEDKIT_DATA.")
    given = {name: Path(path) for name, _, path in (pair.partition("=") for pair in asked.vectors)}
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    for name in asked.only or COLLECTIONS:
        if name not in {row["data"] for row in rows}:
            rows.append(row(name, COLLECTIONS[name](Path(asked.data), given, asked.limit), asked.coarse))
            with ROWS.open("a") as stream:
                stream.write(json.dumps(rows[-1]) + "\n")
            print(json.dumps(rows[-1]), flush=True)
    replace_table(HERE / "README.md", "tune-check", table(rows))


if __name__ == "__main__":
    main()
