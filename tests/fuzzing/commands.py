"""Whole commands over the files of `formats`, with options that are sound, odd or wrong."""

from __future__ import annotations

import random
from collections.abc import Sequence

# format whose files it reads -> command lines; {n}, {s}, {w}, {f} stand for a number, a share, a filter, a field
COMMANDS: dict[str, Sequence[str]] = {
    "jsonl": [
        "embed c.jsonl -o o.npy --model m --limit {n}",
        "embed c.jsonl -o o.parquet --model m --text {f} --id {f} --title {f} --precision float16",
        "embed c.jsonl -o o.npy --model m --dim {n} --layers {n} --max-tokens {n} --batch-tokens {n} --on-long chunk",
        "embed c.jsonl -o o.npy --model m --shard {n}/{n} --kind query --threads {n}",
        "index build c.jsonl -o o.index --model m --sparse bm25:k1={s},b={s} --coarse {c}",
        "index build c.jsonl -o o.index --model m --recall {s} --bytes-per-vector {n} --fine int8 --ram {n}MB",
        "data check c.jsonl",
    ],
    "gz": ["embed c.jsonl.gz -o o.npy --model m", "index build c.jsonl.gz -o o.index --model m"],
    "csv": ["embed c.csv -o o.npy --model m", "index build c.csv -o o.index --model m --text {f}"],
    "tsv": ["embed c.tsv -o o.npy --model m --id {f}"],
    "parquet": ["embed c.parquet -o o.npy --model m", "index build c.parquet -o o.index --model m --id {f}"],
    "hive folder": ["index build . -o ../w/o.index --model m"],
    "datasets folder": ["embed saved -o o.npy --model m"],
    "texts": ["embed . -o o.npy --model m"],
    "beir": [
        "eval --data . --model m -o o --metrics {m}",
        "eval --data .:{f} --model m -o o -q",
        "eval --data . --index compact --model m -o o",
        "data check .",
        "search i.index --queries queries.jsonl -k {n}",
    ],
    "run and qrels": [
        "eval --run r.trec --qrels q.tsv -o o --metrics {m}",
        "eval --run r.trec --qrels q.trec -o o --json",
    ],
    "labelled texts": [
        "eval --data sts.jsonl:all --type {f} --model m -o o",
        "eval --data classes.jsonl --model m -o o",
        "eval --data pairs.jsonl:all --model m -o o",
        "data check classes.jsonl",
    ],
    "reports": ["compare A B", "compare A B --json", "compare A B -o o"],
    "training data": [
        "train contrastive model=m data.0.path=anchors.jsonl batch.size=4 steps={n} --plan",
        "train contrastive model=m data.0.path={p} batch.size=2 steps=1 --device cpu -o o",
        "train matryoshka model=m data.0.path=flag.jsonl batch.negatives={n} --plan",
    ],
    "recipes": [
        "train train.yaml --plan",
        "train train.yaml steps={n} seed={n} --plan",
        "index build c.jsonl -o o.index --recipe index.yaml --model m",
    ],
    "vectors": [
        "index build v.npy -o o.index",
        "index build w.parquet -o o.index --metric dot",
        "index build x.npy -o o.index --fine int8",
        "index build bare.npy -o o.index --coarse {c} --recall {s}",
        "embed c.jsonl -o v.npy --overwrite --model m",
    ],
    "ledger": ["embed c.jsonl -o v.npy --resume --model m"],
    "index, exact": [
        "index info flat",
        "index info flat --json",
        "index verify flat",
        "index compact flat --ram {n}MB",
        "search flat --like d3-3 -k {n}",
        "search flat --like d3-3 --where {w} --min-score {s}",
        "search flat dog --mode sparse --explain",
        "search flat {t} --model m",
        "index delete flat d3-3 {t}",
        "index delete flat --where {w}",
        "index delete flat --ids ids.txt",
        "index export flat -o o --format numpy",
        "index export flat -o o --format faiss",
        "index add flat c.jsonl --model m",
    ],
    "index, coarse": [
        "search coarse --like 7 -k {n} --group {f}",
        "index info coarse",
        "index verify coarse",
        "index add coarse bare.npy",
        "index tune coarse --recall {s} --queries rows.npy -k {n}",
        "index compact coarse",
        "index export coarse -o o --format numpy",
    ],
    "ids, weights, queries, costs": [
        "index plan --rows {n} --dim {n} --ram {n}GB --recall {s} --calibration costs.json",
        "index plan --rows {n} --dim 8 --ram 1GB --text-bytes {n} --json",
        "index delete flat --ids ids.txt",
        "search i.index --queries queries.jsonl --mode sparse --sparse-queries weights.jsonl",
    ],
    "model": [
        "embed c.jsonl -o o.npy --model m",
        "embed c.jsonl -o o.npy --model m --backend torch --dtype {d}",
        "doctor m",
        "search i.index dog --model m",
        "train contrastive model=m data.0.path=anchors.jsonl batch.size=4 steps=1 --plan",
    ],
}
SLOTS: dict[str, Sequence[str]] = {
    "n": ["1", "2", "3", "0", "-1", "100", "1000000", "1e9", "99999999999999999999", "abc", "", "1.5", "nan", "0x10"],
    "s": ["0.5", "0.9", "1", "0", "-1", "2", "nan", "inf", "1e-300", "abc", ""],
    "f": ["text", "title", "lang", "year", "row", "nobody", "", "text,title", ",", "a\x1b[31mb", "sts", "best", "none"],
    "w": [
        '{"year":{"gte":2003}}',
        '{"lang":"en"}',
        '{"nobody":1}',
        "{}",
        "[]",
        '{"year":1,"year":2}',
        "{" * 5000,
        '{"not":{}}',
        "nan",
        '{"and":[]}',
    ],
    "c": [
        "auto",
        "none",
        "IVF4,SQ8",
        "PQ4x4fs",
        "IVF100000,Flat",
        "HNSW32",
        "abc",
        "",
        "SQ8",
        "PCAR4,IVF2,PQ2x4fs",
        "IDMap,Flat",
    ],
    "m": ["ndcg@10", "recall@5", "map", "mrr@10", "ndcg@0", "abc", "ndcg@99999999999", "p@1"],
    "d": ["auto", "float32", "bfloat16", "float16", "int8", "abc"],
    "p": ["anchors.jsonl", "flag.jsonl", "tevatron.jsonl", "sts.jsonl", ".", "absent.jsonl", "$HOME/x.jsonl"],
    "t": ["dog", "", "a\x1b[31mb", "x" * 100_000, "\ud800", "é", "--help", "-"],
}


def drawn(name: str, chance: random.Random) -> list[str]:
    """A command line over files of this format."""
    words = []
    for word in chance.choice(COMMANDS[name]).split():
        while "{" in word and "}" in word and (slot := word[word.index("{") + 1 : word.index("}")]) in SLOTS:
            values = SLOTS[slot]
            value = values[0] if chance.random() < 0.4 else chance.choice(values)
            word = word.replace(f"{{{slot}}}", value, 1)
            if slot == "w":
                break
        words.append(word)
    return words


def command_of(words: Sequence[str]) -> str:
    """ "index build" of a command line."""
    return " ".join(words[: 2 if words[0] in ("index", "data") else 1])
