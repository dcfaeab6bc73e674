"""Every kind of file that embedkit reads: how a sound one is made, which of its files are changed, and what reads it.

A reader does what a user would do next with the file, in this process. Sound ones are small, and read in milliseconds.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedkit.types import Document

DOCUMENTS = [
    {
        "_id": f"d{n}",
        "title": "cat" if n % 2 else "",
        "text": f"dog {n} fish",
        "lang": "en",
        "year": 2000 + n,
        "tags": ["a", "b"],
    }
    for n in range(6)
]
PAIRS = [{"anchor": f"cat {n}", "positive": f"dog {n}", "negative_1": f"fish {n}"} for n in range(6)]
DIM = 8


@dataclass(frozen=True)
class Format:
    """One kind of file."""

    make: Callable[[Path], None]  # a sound one, in this empty folder
    read: Callable[[Path, random.Random], Any]
    files: Sequence[str] = ("*",)  # patterns of those that are changed
    cost: float = 1.0  # how seldom it is drawn beside the others


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def vectors(count: int = 6, dim: int = DIM) -> np.ndarray:
    rows = np.random.default_rng(0).standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Fake:
    """An Encoder whose rows follow from the text's length."""

    dim, similarity, fingerprint = DIM, "cosine", "f" * 64
    settings: dict[str, Any] = {}  # noqa: RUF012
    compute = {"backend": "fake"}  # noqa: RUF012

    def encode(self, inputs: Sequence[str], *, kind: str = "document") -> np.ndarray:
        return np.stack([vectors()[len(text) % 6] for text in inputs])


# corpora


def read_documents(name: str) -> Callable[[Path, random.Random], Any]:
    def read(folder: Path, chance: random.Random) -> None:
        from embedkit.corpus import Fields, read_corpus

        fields = chance.choice(
            [Fields(), Fields(), Fields(id="row"), Fields(text=("title", "text")), Fields(text=("lang",), title="text")]
        )
        for document in itertools.islice(read_corpus(str(folder / name if name else folder), fields), 1000):
            json.dumps(dict(document.metadata))

    return read


def make_parquet(folder: Path) -> None:
    import pandas as pd

    pd.DataFrame(DOCUMENTS).to_parquet(folder / "c.parquet")


def make_hive(folder: Path) -> None:
    import pandas as pd

    pd.DataFrame(DOCUMENTS).to_parquet(
        folder, partition_cols=["lang"], basename_template="part-{i}.parquet"
    )  # names that a replay finds again


def make_dataset(folder: Path) -> None:
    import datasets

    datasets.Dataset.from_list(DOCUMENTS).save_to_disk(str(folder / "saved"))


def make_gz(folder: Path) -> None:
    import gzip

    with gzip.open(folder / "c.jsonl.gz", "wb") as stream:
        stream.write(b"".join(json.dumps(row).encode() + b"\n" for row in DOCUMENTS))


def make_csv(folder: Path) -> None:
    import csv

    for name, delimiter in (("c.csv", ","), ("c.tsv", "\t")):
        with (folder / name).open("w", newline="") as stream:
            table = csv.writer(stream, delimiter=delimiter)
            table.writerow(DOCUMENTS[0])
            table.writerows([list(row.values()) for row in DOCUMENTS])


def make_texts(folder: Path) -> None:
    for number, name in enumerate(("a.txt", "b.md", "c.rst")):
        (folder / name).write_text(f"a text {number}\n")


def make_images(folder: Path) -> None:
    from PIL import Image

    for suffix in ("png", "jpg", "gif", "webp", "bmp", "tif"):
        Image.new("RGB", (6, 4), (200, 100, 50)).save(folder / f"a.{suffix}")
    write_lines(folder / "c.jsonl", [{"id": path.name, "image": path.name} for path in sorted(folder.iterdir())])


def read_images(folder: Path, chance: random.Random) -> None:
    from embedkit.corpus import Fields, read_corpus
    from embedkit.encoders.images import rgb

    for document in read_corpus(str(folder / "c.jsonl"), Fields(image="image")):
        if document.image is not None:
            rgb(document.image)


# judged data


def make_beir(folder: Path) -> None:
    write_lines(folder / "corpus.jsonl", DOCUMENTS)
    write_lines(folder / "queries.jsonl", [{"_id": f"q{n}", "text": f"cat {n}"} for n in range(3)])
    (folder / "qrels").mkdir()
    for split in ("train", "test"):
        lines = "".join(f"q{n}\td{n}\t{n % 2 + 1}\n" for n in range(3))
        (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}")
    (folder / "task.yaml").write_text("name: tiny\ntype: retrieval\nsplit: test\nmetric: ndcg@10\nlicence: none\n")


def read_beir(folder: Path, chance: random.Random) -> None:
    from embedkit.eval.data_check.check import check_data
    from embedkit.eval.retrieval import read_retrieval
    from embedkit.train.data import read_task
    from embedkit.train.settings import Data

    chance.choice(
        [lambda: read_retrieval(folder, "test"), lambda: check_data(folder), lambda: read_task(Data(path=str(folder)))]
    )()


def make_run(folder: Path) -> None:
    (folder / "r.trec").write_text("".join(f"q{n} Q0 d{m} {m} {5 - m} t\n" for n in range(3) for m in range(3)))
    (folder / "q.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"q{n}\td{n}\t1\n" for n in range(3)))
    (folder / "q.trec").write_text("".join(f"q{n} 0 d{n} 1\n" for n in range(3)))


def read_run(folder: Path, chance: random.Random) -> None:
    from embedkit.eval.runs import evaluate_run, read_judged

    qrels = folder / chance.choice(["q.tsv", "q.trec"])
    evaluate_run(folder / "r.trec", read_judged(qrels), qrels)


def make_labelled(folder: Path) -> None:
    write_lines(
        folder / "sts.jsonl", [{"sentence1": f"cat {n}", "sentence2": f"dog {n}", "score": n / 6} for n in range(6)]
    )
    write_lines(
        folder / "classes.jsonl",
        [{"text": f"cat {n}", "label": "ab"[n % 2], "split": ("train", "test")[n // 3]} for n in range(6)],
    )
    write_lines(
        folder / "pairs.jsonl", [{"sentence1": "cat", "sentence2": f"dog {n}", "label": n % 2} for n in range(6)]
    )
    write_lines(
        folder / "reranking.jsonl", [{"query": f"cat {n}", "positive": ["dog"], "negative": ["fish"]} for n in range(6)]
    )


def read_labelled(folder: Path, chance: random.Random) -> None:
    from embedkit.eval.data_check.check import check_data
    from embedkit.eval.local_tasks import read_local

    path = chance.choice(sorted(folder.glob("*.jsonl")) or [folder])
    chance.choice([lambda: read_local(path), lambda: check_data(path)])()


def make_reports(folder: Path) -> None:
    from embedkit.eval.report import write_reports
    from embedkit.eval.runs import evaluate_run, read_judged

    make_run(folder)
    report = evaluate_run(folder / "r.trec", read_judged(folder / "q.tsv"), folder / "q.tsv")
    for name in ("A", "B"):
        write_reports(folder / name, {"task": report}, {})


def read_reports_compared(folder: Path, _: random.Random) -> None:
    from embedkit.eval import report
    from embedkit.eval.compare import compare, markdown
    from embedkit.eval.compare_page import compare_page
    from embedkit.eval.pages import report_page

    one, other = report.read_reports(folder / "A"), report.read_reports(folder / "B")
    comparisons = compare(one, other)
    markdown(comparisons)
    compare_page(comparisons, "A", "B")
    report.markdown(one)
    report_page(one)


# training


def make_training(folder: Path) -> None:
    make_labelled(folder)
    write_lines(folder / "anchors.jsonl", PAIRS)
    write_lines(
        folder / "flag.jsonl",
        [
            {"query": f"cat {n}", "pos": ["dog"], "neg": ["fish"], "pos_scores": [1.0], "neg_scores": [0.5]}
            for n in range(3)
        ],
    )
    write_lines(
        folder / "tevatron.jsonl",
        [
            {
                "query": f"c{n}",
                "positive_passages": [{"text": "d", "title": "t"}],
                "negative_passages": [{"text": "f", "title": ""}],
            }
            for n in range(3)
        ],
    )


def read_training(folder: Path, chance: random.Random) -> None:
    from embedkit.train.data import read_task
    from embedkit.train.settings import Data

    texts = chance.choice([(), (), ("anchor", "positive"), ("text",)])
    read_task(Data(path=str(chance.choice(sorted(folder.glob("*.jsonl")) or [folder])), texts=texts))


RECIPE = {
    "model": "m",
    "seed": 0,
    "precision": "auto",
    "data": [{"path": "anchors.jsonl", "weight": 1.0, "query_prompt": "q: "}],
    "loss": [{"name": "info_nce", "temperature": 0.05, "denominator": "all"}],
    "batch": {"size": 4, "negatives": 1},
    "optimizer": {"lr": 2e-5, "warmup": 0.1},
    "steps": 2,
    "evaluation": {"task": "sts.jsonl", "metric": "spearman", "every": 1, "patience": 2},
}


def make_recipe(folder: Path) -> None:
    import yaml

    (folder / "train.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    (folder / "index.yaml").write_text(
        "coarse: auto\nbytes_per_vector: 32\nrecall: 0.95\nfine: float16\nsparse: bm25\n"
    )
    (folder / "task.yaml").write_text("name: tiny\ntype: retrieval\nignore_identical_ids: true\nhash: {a: b}\n")


def read_recipes(folder: Path, chance: random.Random) -> None:
    from embedkit.eval.task_file import read_task_file
    from embedkit.jobs.index_recipe import IndexRecipe
    from embedkit.train.settings import read_training_recipe

    values = [
        "1",
        "-1",
        "1e9",
        "[1]",
        "abc",
        "!!int abc",
        "2024-13-45",
        "9" * 5000,
        "*a",
        "&a [*a]",
        "{a: 1, a: 2}",
        "[" * 3000,
        "null",
        "\x1b",
    ]
    keys = [
        "steps",
        "seed",
        "batch.size",
        "loss.0.name",
        "loss.9.name",
        "optimizer",
        "a.b.c",
        "",
        "data.0",
        "batch.size.x",
    ]
    overrides = [f"{chance.choice(keys)}={chance.choice(values)}" for _ in range(chance.choice([0, 0, 1, 2]))]
    chance.choice(
        [
            lambda: read_training_recipe(str(folder / "train.yaml"), overrides),
            lambda: read_training_recipe(str(folder / "train.yaml")).hash,
            lambda: IndexRecipe.read(str(folder / "index.yaml")).record("x"),
            lambda: read_task_file(folder),
        ]
    )()


def _weights() -> tuple[dict[str, Any], Any]:
    import torch

    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return dict(model.named_parameters()), optimizer


def make_checkpoint(folder: Path) -> None:
    from embedkit.train.checkpoint import Progress, write_checkpoint

    weights, optimizer = _weights()
    write_checkpoint(folder, Progress(step=1), weights, optimizer, {"recipe": "r", "data": "d", "threads": 2})


def read_checkpoint(folder: Path, _: random.Random) -> None:
    from embedkit.train.checkpoint import read_record, read_weights

    found = read_record(folder)
    if found is not None and found[2] is not None:
        weights, optimizer = _weights()
        read_weights(found[2], weights, optimizer)


# vectors


def make_vectors(folder: Path) -> None:
    from embedkit.engine.job import embed_to_file

    documents = [Document(row["_id"], row["text"]) for row in DOCUMENTS]
    for name, precision in (("v.npy", "float32"), ("w.parquet", "float32"), ("x.npy", "int8")):
        embed_to_file(documents, folder / name, Fake(), precision=precision)
    np.save(folder / "bare.npy", vectors())
    (folder / "bare.ids.txt").write_text("".join(f"d{n}\n" for n in range(6)))


def read_vectors(folder: Path, chance: random.Random) -> None:
    from embedkit.jobs.row_source import RowSource

    source = RowSource.of(folder / chance.choice(["v.npy", "w.parquet", "x.npy", "bare.npy"]))
    for _ in itertools.islice(source.groups(), 1000):
        pass
    np.asarray(source.rows[:10])


def make_ledger(folder: Path) -> None:
    from embedkit.engine import ledger
    from embedkit.engine.job import embed_to_file

    class Dies(Fake):
        def encode(self, inputs: Sequence[str], *, kind: str = "document") -> np.ndarray:
            if "stop" in inputs:
                raise KeyboardInterrupt
            return super().encode(inputs, kind=kind)

    documents = [Document(f"d{n}", "stop" if n == 3000 else f"dog {n % 7}") for n in range(3001)]
    with contextlib.suppress(KeyboardInterrupt):
        embed_to_file(documents, folder / "v.npy", Dies())
    assert ledger.head_of(folder / "v.ledger") is not None


def read_ledger(folder: Path, _: random.Random) -> None:
    from embedkit.cli.options import begun_with
    from embedkit.engine.job import embed_to_file

    begun_with(folder / "v.ledger")
    embed_to_file([Document(f"d{n}", f"dog {n % 7}") for n in range(3001)], folder / "v.npy", Fake(), resume=True)


# an index


def make_index(folder: Path) -> None:
    import embedkit

    documents = [{**row, "_id": f"{row['_id']}-{n}"} for n in range(20) for row in DOCUMENTS]
    embedkit.build_index(documents, folder / "flat", model=Fake(), sparse="bm25").close()
    with embedkit.open_index(folder / "flat", model=Fake()) as index:
        index.add([Document("more", "a cat", metadata={"year": 1.5})])
        index.delete(["d1-1", "d2-2"])
    np.save(folder / "rows.npy", vectors(600))
    embedkit.build_index(folder / "rows.npy", folder / "coarse", coarse="IVF4,SQ8", fine="int8").close()
    (folder / "rows.npy").unlink()


def read_index(name: str) -> Callable[[Path, random.Random], Any]:
    def read(folder: Path, chance: random.Random) -> None:
        import embedkit

        where = chance.choice(
            [None, None, {"year": {"gte": 2003}}, {"lang": "en"}, {"tags": {"in": ["a"]}}, {"not": {"lang": "en"}}]
        )
        mode = "dense" if name == "coarse" else chance.choice(["dense", "sparse", "hybrid"])
        sparse = None if mode == "dense" else [{"dog": 1.0, "cat": 0.5}] * 2
        with embedkit.open_index(folder / name, model=Fake() if chance.random() < 0.5 else None) as index:
            index.info()
            index.search(
                vectors()[:2],
                chance.choice([1, 3, 1000]),
                where=where,
                mode=mode,
                sparse_queries=sparse,
                explain=chance.random() < 0.3,
            )
            if chance.random() < 0.3:
                index.search(like="d3-3" if name == "flat" else "7", k=3)
            if chance.random() < 0.2:
                index.delete(["d4-4", "9"])
            if chance.random() < 0.2:
                index.compact()
            if chance.random() < 0.3:
                index.verify()

    return read


def make_filter(folder: Path) -> None:
    make_index(folder)
    (folder / "w.json").write_text(
        json.dumps(
            {
                "and": [
                    {"year": {"gte": 2001, "lt": 2004}},
                    {"not": {"lang": "de"}},
                    {"or": [{"tags": "a"}, {"year": {"in": [2001, 5]}}]},
                ]
            }
        )
    )


def read_filter(folder: Path, _: random.Random) -> None:
    import embedkit
    from embedkit.cli.index import parsed_where

    text = (folder / "w.json").read_bytes() if (folder / "w.json").is_file() else b""
    where = parsed_where(text.decode("utf-8", "surrogateescape"))
    with embedkit.open_index(folder / "flat") as index:
        index.search(vectors()[:1], 5, where=where)


def make_small(folder: Path) -> None:
    """Files of a few lines: ids, sparse weights, queries, costs."""
    from embedkit.index.costs import SHIPPED

    (folder / "ids.txt").write_text("d1\nd2\n")
    write_lines(folder / "weights.jsonl", [{"id": f"d{n}", "weights": {"dog": 1.0, "fish": 0.5}} for n in range(3)])
    write_lines(folder / "queries.jsonl", [{"_id": f"q{n}", "text": f"cat {n}"} for n in range(3)])
    shutil.copy(SHIPPED, folder / "costs.json")


def read_small(folder: Path, chance: random.Random) -> None:
    from embedkit.cli.index import _lines
    from embedkit.corpus.beir import read_queries
    from embedkit.index.costs import read_calibration
    from embedkit.index.sparse_input import read_weights

    chance.choice(
        [
            lambda: _lines(folder / "ids.txt"),
            lambda: list(read_weights(folder / "weights.jsonl")),
            lambda: read_queries(folder / "queries.jsonl"),
            lambda: read_calibration(folder / "costs.json"),
        ]
    )()


def make_caches(folder: Path) -> None:
    from embedkit.eval.embedding_cache import RowStore
    from embedkit.eval.report import read_reports
    from embedkit.eval.result_cache import Outcome, ResultCache

    make_reports(folder)
    ResultCache(folder / "results").put({"task": 1}, Outcome(read_reports(folder / "A"), {"a/b": {"x": 1.0}}))
    RowStore(folder / "rows", {"space": 1}, DIM).put(["cat", "dog"], vectors()[:2])


def read_caches(folder: Path, _: random.Random) -> None:
    from embedkit.eval.embedding_cache import RowStore
    from embedkit.eval.result_cache import ResultCache

    cache = ResultCache(folder / "results")
    if (outcome := cache.get({"task": 1})) is not None:
        cache.put({"task": 1}, outcome)
    store = RowStore(folder / "rows", {"space": 1}, DIM)
    store.get(["cat", "fish"])
    store.put(["fish"], vectors()[:1])


# models


def make_model(folder: Path) -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    from tests.conftest import make_plain

    plain = folder / "plain"
    plain.mkdir()
    transformer = Transformer(str(make_plain(plain)), max_seq_length=32)
    modules: list[torch.nn.Module] = [transformer, Pooling(32, "mean"), Dense(32, 16), Normalize()]
    model = SentenceTransformer(modules=modules, prompts={"query": "query: ", "document": ""}, device="cpu")
    model.save_pretrained(str(folder / "m"), create_model_card=False)
    shutil.rmtree(plain)


def read_model(folder: Path, chance: random.Random) -> None:
    from embedkit.encoders import load

    encoder = load(folder / "m", backend=chance.choice(["auto", "auto", "torch"]), dtype="float32", threads=1)
    encoder.encode(["cat dog", "fish"], kind=chance.choice(["query", "document"]))


def make_hub(folder: Path) -> None:
    made = folder / "made"
    made.mkdir()
    make_model(made)
    snapshot = folder / "hub" / "models--a--b" / "snapshots" / ("0" * 40)
    shutil.copytree(made / "m", snapshot)
    shutil.rmtree(made)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)


def read_hub(folder: Path, _: random.Random) -> None:
    from huggingface_hub import constants

    from embedkit.encoders.hub_cache import cached_folder

    constants.HF_HUB_CACHE = str(folder / "hub")
    cached_folder("a/b", None)


FORMATS: dict[str, Format] = {
    "jsonl": Format(lambda folder: write_lines(folder / "c.jsonl", DOCUMENTS) and None, read_documents("c.jsonl")),
    "gz": Format(make_gz, read_documents("c.jsonl.gz")),
    "csv": Format(make_csv, read_documents("c.csv"), ("c.csv",)),
    "tsv": Format(make_csv, read_documents("c.tsv"), ("c.tsv",)),
    "parquet": Format(make_parquet, read_documents("c.parquet")),
    "hive folder": Format(make_hive, read_documents(""), ("lang=en/*",)),
    "datasets folder": Format(make_dataset, read_documents("saved"), ("saved/*",), 2),
    "texts": Format(make_texts, read_documents("")),
    "images": Format(make_images, read_images),
    "beir": Format(make_beir, read_beir, ("*.jsonl", "qrels/*", "task.yaml")),
    "run and qrels": Format(make_run, read_run),
    "labelled texts": Format(make_labelled, read_labelled, cost=2),
    "reports": Format(make_reports, read_reports_compared, ("A/report.json",), 2),
    "training data": Format(make_training, read_training),
    "recipes": Format(make_recipe, read_recipes, cost=4),
    "checkpoint": Format(make_checkpoint, read_checkpoint),
    "vectors": Format(make_vectors, read_vectors),
    "ledger": Format(make_ledger, read_ledger, ("v.ledger", "v.ledger", "*"), 5),
    "index, exact": Format(make_index, read_index("flat"), ("flat/*", "flat/manifest*", "flat/*.sqlite"), 2),
    "index, coarse": Format(make_index, read_index("coarse"), ("coarse/*", "coarse/manifest*", "coarse/*.faiss"), 2),
    "filter": Format(make_filter, read_filter, ("w.json",)),
    "ids, weights, queries, costs": Format(make_small, read_small),
    "caches": Format(make_caches, read_caches, ("results/*", "rows/*")),
    "model": Format(make_model, read_model, ("m/*.json", "m/*.json", "m/*/*", "m/*"), 20),
    "hub cache": Format(make_hub, read_hub, ("hub/*/*/*/*.json",), 1),
}
