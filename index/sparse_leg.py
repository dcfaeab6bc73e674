"""BM25 of the index against bm25s, in quality and speed, and after changes: regenerates two tables of index/README.md.

    python index/sparse_leg.py --data FOLDER

FOLDER holds SciFact, Cranfield and MedQuAD in BEIR layout, and WordNet's synsets. bm25s (pip install bm25s) has the same settings:
k1 0.9, b 0.4, the same stop words and stemmer; its tokenizer is its own. Speed is of 10 hits a query from texts to ids,
tokenization inside both clocks, one thread each, in turns; the medians of ROUNDS rounds count. On 10^5 definitions of WordNet 500
others are the queries. The dense rows beside are random, for nothing here looks at them. Rows are written to sparse_leg.jsonl at
once; what stands there is not repeated. Costs about two minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import embedkit
from embedkit.corpus import Fields, read_corpus
from embedkit.eval.metrics import DEPTH, retrieval_scores
from embedkit.eval.report import replace_table
from embedkit.eval.retrieval import read_retrieval
from embedkit.eval.serving import as_run
from embedkit.jobs import add_to_index
from embedkit.statistics import bootstrap_interval
from embedkit.types import Document, Hits

HERE = Path(__file__).parent
ROWS = HERE / "sparse_leg.jsonl"
COLLECTIONS = ("scifact", "cranfield", "medquad")
WORDNET, ASKED = 100_000, 500  # documents and queries
ROUNDS, K, PARTS = 7, 10, 10
Search = Callable[[int], Any]  # k -> the hits of all queries


class Peer:
    """bm25s over the same texts."""

    def __init__(self, documents: Sequence[Document]) -> None:
        try:
            import bm25s
            import Stemmer
        except ImportError:
            raise SystemExit("Skipped: bm25s is not here; install it with: pip install bm25s.") from None
        self._tokenize, self._stemmer = bm25s.tokenize, Stemmer.Stemmer("english")
        self._ids = [document.id for document in documents]
        self._index = bm25s.BM25(k1=0.9, b=0.4, method="lucene")
        self._index.index(self._tokens([document.full_text for document in documents]), show_progress=False)

    def _tokens(self, texts: list[str]) -> Any:
        return self._tokenize(texts, stopwords="en", stemmer=self._stemmer, show_progress=False)

    def search(self, queries: list[str], k: int) -> Any:
        """(q, k) numbers and scores."""
        return self._index.retrieve(self._tokens(queries), k=k, show_progress=False, n_threads=0)

    def run(self, names: Sequence[str], queries: list[str]) -> dict[str, dict[str, float]]:
        numbers, scores = self.search(queries, min(DEPTH, len(self._ids)))
        return {
            name: {self._ids[n]: float(s) for n, s in zip(row, own, strict=True) if s > 0}
            for name, row, own in zip(names, numbers, scores, strict=True)
        }


def built(documents: Sequence[Document], path: Path) -> embedkit.Index:
    ids = [document.id for document in documents]
    return embedkit.build_index(rows(len(ids)), path, ids=ids, documents=documents, sparse="bm25", coarse="none")


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32)


def quality(data: Path, name: str, scratch: Path) -> dict[str, Any]:
    task, documents = read_retrieval(data / name, "test"), list(read_corpus(data / name))
    names, queries = list(task.queries), list(task.queries.values())
    index, peer = built(documents, scratch / name), Peer(documents)
    hits = index.search(queries, DEPTH, mode="sparse", documents=False)
    ours = retrieval_scores(task.qrels, as_run(names, hits))["ndcg@10"]
    theirs = retrieval_scores(task.qrels, peer.run(names, queries))["ndcg@10"]
    found: dict[str, Any] = {
        "documents": len(documents),
        "queries": len(ours),
        "ndcg@10": float(np.mean(list(ours.values()))),
        "interval": bootstrap_interval(list(ours.values())),
        "bm25s": float(np.mean(list(theirs.values()))),
    }
    if name == COLLECTIONS[0]:
        found["after_changes"] = after_changes(documents, queries, hits, scratch)
    return found


def after_changes(documents: Sequence[Document], queries: list[str], fresh: Hits, scratch: Path) -> float:
    """The largest difference of scores with a fresh build, after adding in ten parts and deleting and adding again a third."""
    path, parts = scratch / "parts", [list(documents[part::PARTS]) for part in range(PARTS)]
    built(parts[0], path).close()
    third = list(documents[::3])
    for part in (*parts[1:], None, third):
        if part is None:
            with embedkit.open_index(path) as index:
                index.delete([document.id for document in third])
            continue
        add_to_index(path, rows(len(part)), ids=[d.id for d in part], documents=part)
    with embedkit.open_index(path, check=True) as index:
        hits = index.search(queries, DEPTH, mode="sparse", documents=False)
    if hits.ids != fresh.ids:
        raise SystemExit("WRONG: other documents are found after the changes.")
    return float(np.abs(np.where(np.isinf(hits.scores), 0, hits.scores - fresh.scores)).max())


def speed(documents: Sequence[Document], queries: list[str], scratch: Path) -> dict[str, Any]:
    started = time.perf_counter()
    index = built(documents, scratch / "speed")
    building = time.perf_counter() - started
    started = time.perf_counter()
    peer = Peer(documents)
    theirs = time.perf_counter() - started
    sides: dict[str, Search] = {
        "embedkit": lambda k: index.search(queries, k, mode="sparse", documents=False),
        "bm25s": lambda k: peer.search(queries, k),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for turn, (side, search) in itertools.product(range(ROUNDS + 1), sides.items()):
        started = time.perf_counter()
        search(K)
        if turn:  # the first is to warm up
            seconds[side].append(time.perf_counter() - started)
    return {
        "documents": len(documents),
        "queries": len(queries),
        **{side: len(queries) / median(taken) for side, taken in seconds.items()},
        "build_s": building,
        "bm25s_build_s": theirs,
        "bytes_on_disk": index.bytes_on_disk(),
    }


def wordnet(data: Path) -> tuple[list[Document], list[str]]:
    synsets = list(read_corpus(data / "wordnet" / "synsets.jsonl.gz", Fields(text=("definition",))))
    order = np.random.default_rng(0).permutation(len(synsets))
    documents = [synsets[place] for place in order[:WORDNET]]
    return documents, [synsets[place].full_text for place in order[WORDNET : WORDNET + ASKED]]


def measured(data: Path, kind: str, name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        if kind == "quality":
            return quality(data, name, Path(scratch))
        if name == "wordnet":
            return speed(*wordnet(data), Path(scratch))
        documents = list(read_corpus(data / name))
        return speed(documents, list(read_retrieval(data / name, "test").queries.values()), Path(scratch))


def quality_table(found: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| collection | documents | queries | nDCG@10 | 95 % interval | bm25s | largest change of a score after ten additions, a third "
        "deleted and added again |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found:
        low, high = row["interval"]
        changed = f"{row['after_changes']:.1e}" if "after_changes" in row else ""
        lines.append(
            f"| {row['name']} | {row['documents']:,} | {row['queries']} | {row['ndcg@10']:.4f} | {low:.4f} to {high:.4f} "
            f"| {row['bm25s']:.4f} | {changed} |"
        )
    return lines


def speed_table(found: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| collection | documents | queries/s | bm25s | ratio | build s | bm25s build s |",
        "|---|---|---|---|---|---|---|",
    ]
    return lines + [
        f"| {row['name']} | {row['documents']:,} | {row['embedkit']:,.0f} | {row['bm25s']:,.0f} "
        f"| {row['embedkit'] / row['bm25s']:.2f} | {row['build_s']:.1f} | {row['bm25s_build_s']:.1f} |"
        for row in found
    ]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, default=os.environ.get("EMBEDKIT_DATA"))
    data = arguments.parse_args().data
    if data is None or not all((Path(data) / name).is_dir() for name in (*COLLECTIONS, "wordnet")):
        raise SystemExit("Skipped: give the folder of the collections with --data or EMBEDKIT_DATA.")
    done = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    wanted = [*(("quality", name) for name in COLLECTIONS), ("speed", "scifact"), ("speed", "wordnet")]
    for kind, name in wanted:
        if (kind, name) not in {(row["kind"], row["name"]) for row in done}:
            done.append({"kind": kind, "name": name, **measured(Path(data), kind, name)})
            with ROWS.open("a") as stream:
                stream.write(json.dumps(done[-1]) + "\n")
            print(json.dumps(done[-1]), flush=True)
    replace_table(
        HERE / "README.md", "sparse-quality", quality_table([row for row in done if row["kind"] == "quality"])
    )
    replace_table(HERE / "README.md", "sparse-speed", speed_table([row for row in done if row["kind"] == "speed"]))


if __name__ == "__main__":
    main()
