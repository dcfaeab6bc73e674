"""How fast a whole evaluation is, beside mteb with SentenceTransformer: from loaded model to score, on SciFact.

    python eval/scifact_speed.py [--data FOLDER] [--documents N] [--rounds R] [--only NAME ...]

FOLDER (or EMBEDKIT_DATA) holds `scifact` (BEIR layout). All systems score the same queries over the same documents, in turn, in one
process; --documents takes the first so many (and the queries that are judged among them) for a quick look. What is in the clock:
reading the files, embedding, search, metrics; for embedkit its intervals too. Before it: loading the model, one text embedded,
and for mteb the data made ready in memory, as its own cache would have it. Nothing is kept between runs.

  mteb                      mteb.evaluate(SentenceTransformer(...)): float32, mteb's exact search and metrics
  embedkit                  dtype "auto"
  embedkit float32          the same arithmetic as mteb's
  embedkit --profile fast   int8 products: another space than the model's own, so other scores; calibration is in the clock of loading

A round is written to scifact_speed.jsonl at once. Run it alone on the machine: about 8 minutes a round on two cores.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import embedkit
from embedkit.corpus import read_corpus
from embedkit.encoders.default_model import default_model_folder
from embedkit.eval.report import replace_table
from embedkit.eval.retrieval import read_retrieval

HERE = Path(__file__).parent
ROWS = HERE / "scifact_speed.jsonl"
System = Callable[[], float]  # one evaluation: its nDCG@10


def cut(source: Path, folder: Path, count: int) -> Path:
    """A BEIR folder of the first so many documents and what is judged among them."""
    (folder / "qrels").mkdir(parents=True)
    documents = list(itertools.islice(read_corpus(source), count))
    known = {document.id for document in documents}
    task = read_retrieval(source, "test")
    judged = {
        query: kept for query, grades in task.qrels.items() if (kept := {d: g for d, g in grades.items() if d in known})
    }
    rows = [{"_id": one.id, "title": one.title, "text": one.text} for one in documents]
    queries = [{"_id": query, "text": task.queries[query]} for query in judged]
    for name, lines in (("corpus", rows), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pairs = "".join(f"{query}\t{one}\t{grade}\n" for query, grades in judged.items() for one, grade in grades.items())
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + pairs)
    return folder


def mteb_system(folder: Path, threads: int) -> System:
    import datasets
    import mteb
    import torch
    from sentence_transformers import SentenceTransformer

    datasets.disable_progress_bars()
    torch.set_num_threads(threads)
    model = SentenceTransformer(str(default_model_folder()), device="cpu")
    model.encode(["a text"])
    task = read_retrieval(folder, "test")
    corpus = [{"id": one.id, "title": one.title, "text": one.text} for one in read_corpus(folder)]
    whole = {
        "corpus": datasets.Dataset.from_list(corpus),
        "queries": datasets.Dataset.from_list([{"id": query, "text": text} for query, text in task.queries.items()]),
        "relevant_docs": task.qrels,
        "top_ranked": None,
    }

    def run() -> float:
        made = mteb.get_task("SciFact")
        made.dataset, made.data_loaded = {"default": {"test": dict(whole)}}, True
        result = mteb.evaluate(model, made, cache=None, show_progress_bar=False, co2_tracker=False)
        return float(result.task_results[0].get_score())

    return run


def embedkit_system(folder: Path, threads: int, **options: Any) -> System:
    if options.pop("profile", None):
        texts = (document.full_text for document in read_corpus(folder))
        options = {"profile": "fast", "calibrate": texts}
    encoder = embedkit.load(threads=threads, **options)
    encoder.encode(["a text"])
    return lambda: embedkit.evaluate(encoder, folder).scores["ndcg@10"]


SYSTEMS: dict[str, Callable[[Path, int], System]] = {
    "mteb": mteb_system,
    "embedkit": embedkit_system,
    "embedkit float32": lambda folder, threads: embedkit_system(folder, threads, dtype="float32"),
    "embedkit --profile fast": lambda folder, threads: embedkit_system(folder, threads, profile="fast"),
}


def measure(folder: Path, count: int | None, rounds: int, names: list[str], threads: int) -> None:
    systems = {name: SYSTEMS[name](folder, threads) for name in names}
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            start = time.perf_counter()
            score = systems[name]()
            seconds = time.perf_counter() - start
            row = {
                "system": name,
                "documents": count,
                "threads": threads,
                "seconds": round(seconds, 2),
                "ndcg@10": score,
            }
            with ROWS.open("a") as stream:
                stream.write(json.dumps(row | {"embedkit": embedkit.__version__}) + "\n")
            print(json.dumps(row), flush=True)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Medians over the rounds, of all documents."""
    lines = ["| system | nDCG@10 | seconds, median (rounds) | times mteb's rate |", "|---|---|---|---|"]
    whole = [row for row in rows if row["documents"] is None]
    seconds = {name: [row["seconds"] for row in whole if row["system"] == name] for name in SYSTEMS}
    base = statistics.median(seconds["mteb"]) if seconds["mteb"] else float("nan")
    for name, some in seconds.items():
        if some:
            score = next(row["ndcg@10"] for row in whole if row["system"] == name)
            middle = statistics.median(some)
            lines.append(f"| {name} | {score:.4f} | {middle:.1f} ({len(some)}) | {base / middle:.2f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("EMBEDKIT_DATA"))
    parser.add_argument("--documents", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS), metavar="NAME")
    asked = parser.parse_args()
    if asked.data is None or not Path(asked.data).is_dir():
        raise SystemExit("Skipped: give the folder of the collections with --data or EMBEDKIT_DATA.")
    source, scratch = Path(asked.data) / "scifact", Path(tempfile.mkdtemp())
    try:
        folder = source if asked.documents is None else cut(source, scratch / "scifact", asked.documents)
        measure(folder, asked.documents, asked.rounds, asked.only, asked.threads)
    finally:
        shutil.rmtree(scratch)
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    if any(row["documents"] is None for row in rows):
        replace_table(HERE / "README.md", "scifact_speed", table(rows))


if __name__ == "__main__":
    main()
