"""What vectors of fewer bits keep of a search: regenerates the tables "precision" and "drift" of eval/README.md.

    python eval/precision.py [--data FOLDER]

FOLDER (or EMBEDKIT_DATA) holds `scifact` in BEIR layout. Corpus and test queries are embedded once by the default model into
`scifact.npy` and `queries.npy` beside this file (ignored by git). Each way of storing and comparing them is a row: nDCG@10 and
its difference from float32 with 95 % intervals (bootstrap over queries), the share of float32's exact ten that it finds, bytes
a document. Rows "sentence-transformers" call `quantize_embeddings` and `semantic_search_faiss` of the installed version.

Rows "drift" are 1,500 texts each of other collections in FOLDER, coded by the ranges of SciFact and by their own: the share of
values outside, and the share of each text's ten exact neighbours among the others that are found. A collection that is not there is
left out.

A row is written to precision.jsonl at once, and one that stands there is not measured again; remove the file to measure anew.
About three minutes on two cores, nearly all of it the embedding (ten beside other work).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import embedkit
from embedkit.engine import open_vectors
from embedkit.eval.metrics import retrieval_scores
from embedkit.eval.report import replace_table
from embedkit.eval.retrieval import Retrieval, read_retrieval
from embedkit.jobs import embed_corpus
from embedkit.statistics import bootstrap_interval
from embedkit.vectors import STEPS, Ranges, hamming, sign_bits, sign_scores

HERE = Path(__file__).parent
ROWS = HERE / "precision.jsonl"
K = 10
CALIBRATED_ON = 2048  # rows, as `embedkit embed` does
SHORTLIST = 100  # by bits, for what verifies
DRIFTING = ("medline", "cosqa", "debian_packages", "agnews", "banking77", "wordnet")
DRAWN = 1500  # texts of each


class Data(NamedTuple):
    ids: list[str]  # descending, so that a stable sort puts ties in trec_eval's order
    rows: np.ndarray  # (n, 384) float32, in the order of the ids
    sample: np.ndarray  # (CALIBRATED_ON, 384), the first rows of the corpus
    queries: np.ndarray


class Found(NamedTuple):
    best: np.ndarray  # (q, K) rows, best first
    bytes: int  # a document
    outside: float | None = None  # share of the documents' values outside the ranges


def data_of(folder: Path, task: Retrieval) -> Data:
    corpus, queries = HERE / "scifact.npy", HERE / "queries.npy"
    if not corpus.with_suffix(".manifest.json").exists() or not queries.exists():
        encoder = embedkit.load()
        embed_corpus(folder, corpus, encoder, progress=True, overwrite=True)
        np.save(queries, encoder.encode(list(task.queries.values()), kind="query"))
    file = open_vectors(corpus)
    order = np.argsort(file.ids)[::-1]
    rows = np.array(file.rows)
    return Data([file.ids[row] for row in order], rows[order], rows[:CALIBRATED_ON], np.load(queries))


def best(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores, axis=1, kind="stable")[:, :K]


def rescored(data: Data, first: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The best by `scores` (q, n) among the SHORTLIST that is first by `first`."""
    kept = np.argsort(-first, axis=1, kind="stable")[:, :SHORTLIST]
    masked = np.full_like(scores, -np.inf)
    np.put_along_axis(masked, kept, np.take_along_axis(scores, kept, axis=1), axis=1)
    return best(masked)


# --- ways -------------------------------------------------------------------------------------------------------------------


def floats(data: Data, dtype: str) -> Found:
    rows = data.rows.astype(dtype)
    return Found(best(data.queries @ rows.astype(np.float32).T), rows[0].nbytes)


def folded(data: Data, sample: int = CALIBRATED_ON, *, code_queries: bool = False, quantile: float = 0.0) -> Found:
    ranges = Ranges.of(data.sample[:sample])
    if quantile:
        lowest, highest = np.quantile(data.sample[:sample], [quantile, 1 - quantile], axis=0).astype(np.float32)
        ranges = Ranges(lowest, (highest - lowest) / STEPS)
    queries = ranges.decode(ranges.encode(data.queries)) if code_queries else data.queries
    codes = ranges.encode(data.rows)
    return Found(best(ranges.scores(queries, codes)), codes.shape[1], ranges.outside(data.rows) / data.rows.size)


def float_times_codes(data: Data) -> Found:
    from sentence_transformers.util.quantization import quantize_embeddings

    codes = quantize_embeddings(data.rows, "uint8")
    return Found(best(data.queries @ codes.astype(np.float32).T), codes.shape[1])


def peer(data: Data, precision: Any, **options: Any) -> Found:
    from sentence_transformers.util.quantization import quantize_embeddings, semantic_search_faiss

    codes = quantize_embeddings(data.rows, precision)
    hits, _ = semantic_search_faiss(
        data.queries,
        corpus_embeddings=codes,
        corpus_precision=precision,
        calibration_embeddings=data.rows,
        top_k=K,
        **options,
    )
    return Found(np.array([[hit["corpus_id"] for hit in some] for some in hits]), codes.shape[1])


def bits(data: Data, way: str) -> Found:
    codes = sign_bits(data.rows)
    near = -hamming(sign_bits(data.queries), codes).astype(np.float32)
    if way == "hamming":
        return Found(best(near), codes.shape[1])
    if way == "float query":
        return Found(best(sign_scores(data.queries, codes)), codes.shape[1])
    ranges = Ranges.of(data.sample)
    scores = ranges.scores(data.queries, ranges.encode(data.rows))
    first = near if way == "hamming, int8" else sign_scores(data.queries, codes)
    return Found(rescored(data, first, scores), codes.shape[1] + data.rows.shape[1])


WAYS: dict[str, Callable[[Data], Found]] = {
    "float32": partial(floats, dtype="float32"),
    "float16": partial(floats, dtype="float16"),
    "int8, step folded into the query": folded,
    "int8, queries coded by the same ranges": partial(folded, code_queries=True),
    "int8, ranges of 500 rows": partial(folded, sample=500),
    "int8, ranges of 100 rows": partial(folded, sample=100),
    "int8, ranges from 0.1 % to 99.9 %": partial(folded, quantile=0.001),
    "int8, ranges from 1 % to 99 %": partial(folded, quantile=0.01),
    "raw codes, float query x uint8": float_times_codes,
    "raw codes, uint8 x uint8 (sentence-transformers, rescore=False)": partial(peer, precision="uint8", rescore=False),
    "20 by raw codes, then decoded (sentence-transformers, default)": partial(peer, precision="uint8"),
    "bits, Hamming": partial(bits, way="hamming"),
    "bits, float query": partial(bits, way="float query"),
    "20 by Hamming, then float query x bits (sentence-transformers, default)": partial(peer, precision="ubinary"),
    f"{SHORTLIST} by Hamming, then int8": partial(bits, way="hamming, int8"),
    f"{SHORTLIST} by float query x bits, then int8": partial(bits, way="float query, int8"),
}


def ndcg(task: Retrieval, data: Data, found: np.ndarray) -> dict[str, float]:
    """By query."""
    run = {
        query: {data.ids[row]: float(K - place) for place, row in enumerate(rows)}
        for query, rows in zip(task.queries, found, strict=True)
    }
    return retrieval_scores(task.qrels, run)["ndcg@10"]


def row(name: str, task: Retrieval, data: Data, exact: np.ndarray) -> dict[str, Any]:
    import sentence_transformers

    found = WAYS[name](data)
    per_query, reference = ndcg(task, data, found.best), ndcg(task, data, exact)
    differences = [per_query[query] - reference[query] for query in reference]
    recall = [len(set(some) & set(all_of_them)) / K for some, all_of_them in zip(found.best, exact, strict=True)]
    return {
        "way": name,
        "ndcg": float(np.mean(list(per_query.values()))),
        "interval": bootstrap_interval(list(per_query.values())),
        "difference": float(np.mean(differences)),
        "difference_interval": bootstrap_interval(differences),
        "recall": float(np.mean(recall)),
        "bytes": found.bytes,
        "outside": found.outside,
        "embedkit": embedkit.__version__,
        "sentence_transformers": sentence_transformers.__version__,
    }


def drift(data: Data, folder: Path) -> dict[str, Any]:
    vectors = embedkit.load(max_tokens=64).encode(drawn_texts(folder))
    theirs, own = Ranges.of(data.sample), Ranges.of(vectors)
    truth = vectors @ vectors.T
    return {
        "way": f"drift: {folder.name}",
        "texts": len(vectors),
        "outside": theirs.outside(vectors) / vectors.size,
        "kept": [kept(truth, ranges.scores(vectors, ranges.encode(vectors))) for ranges in (theirs, own)],
        "embedkit": embedkit.__version__,
    }


def drawn_texts(folder: Path) -> list[str]:
    path = next(path for name in ("corpus", "data") if (path := folder / f"{name}.jsonl.gz").exists())
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    return [texts[number] for number in np.random.default_rng(0).permutation(len(texts))[:DRAWN]]


def kept(truth: np.ndarray, scores: np.ndarray) -> float:
    """Share of each row's K neighbours by `truth`, itself left out, that `scores` finds."""
    for table in (truth, scores):
        np.fill_diagonal(table, -np.inf)
    pairs = zip(best(truth), best(scores), strict=True)
    return float(np.mean([len(set(exact) & set(found)) / K for exact, found in pairs]))


def drift_table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| texts of | outside SciFact's ranges | neighbours kept by these | by ranges of their own |",
        "|---|---|---|---|",
    ]
    for row in rows:
        others, own = row["kept"]
        lines.append(f"| {row['way'].partition(': ')[2]} | {row['outside']:.2%} | {others:.3f} | {own:.3f} |")
    return lines


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| way | nDCG@10 | 95 % interval | from float32 | 95 % interval | of float32's ten | bytes/document | outside the ranges |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        (low, high), (least, most) = row["interval"], row["difference_interval"]
        outside = "" if row["outside"] is None else f"{row['outside']:.2%}"
        lines.append(
            f"| {row['way']} | {row['ndcg']:.4f} | {low:.4f} to {high:.4f} | {row['difference']:+.4f} | {least:+.4f} to {most:+.4f} "
            f"| {row['recall']:.3f} | {row['bytes']:,} | {outside} |"
        )
    return lines


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, default=os.environ.get("EMBEDKIT_DATA"))
    folder = arguments.parse_args().data
    if folder is None or not (Path(folder) / "scifact").is_dir():
        raise SystemExit("Skipped: give the folder of the collections with --data or EMBEDKIT_DATA.")
    task = read_retrieval(Path(folder) / "scifact", "test")
    data = data_of(Path(folder) / "scifact", task)
    exact = WAYS["float32"](data).best
    measured = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    rows = {row["way"]: row for row in measured}
    runs: dict[str, Callable[[], dict[str, Any]]] = {name: partial(row, name, task, data, exact) for name in WAYS}
    there = [other for name in DRIFTING if (other := Path(folder) / name).is_dir()]
    runs |= {f"drift: {other.name}": partial(drift, data, other) for other in there}
    for name, run in runs.items():
        if name not in rows:
            rows[name] = run()
            with ROWS.open("a") as stream:
                stream.write(json.dumps(rows[name]) + "\n")
            print(json.dumps(rows[name]), flush=True)
    replace_table(HERE / "README.md", "precision", table([rows[name] for name in WAYS]))
    replace_table(HERE / "README.md", "drift", drift_table([row for name, row in rows.items() if name not in WAYS]))


if __name__ == "__main__":
    main()
