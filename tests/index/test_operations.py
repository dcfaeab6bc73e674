"""Random changes and questions against a dict: what an index does over its life, compared with what it should do.

The model is a dict of documents with their rows, and every answer is computed from it by a slow exact product. Rows are drawn
from few distinct ones, so that ties are exact and frequent. `tests/index_suites.py operations` plays thousands by any seed.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from embedkit.encoder import Encoded
from embedkit.errors import UsageError
from embedkit.index import segment
from embedkit.index.faiss_import import faiss_threads
from embedkit.jobs import build_index, open_index
from embedkit.types import Document

from ..engine.fakes import Windowed
from .lexical import Weigher, bm25, minmax, products

WORDS = ("ab", "a", "cd", "c", "title", *map(str, range(40)))  # all that texts here are made of
DIM, DISTINCT, NAMES = 8, 40, 90
LANGUAGES = ("en", "de", "fr")
Filter = tuple[Mapping[str, Any], Callable[[Mapping[str, Any]], bool]]


def grid_row(text: str) -> np.ndarray:
    """One of DISTINCT rows of small whole numbers, which every dtype holds exactly."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") % DISTINCT
    return np.random.default_rng(number).integers(-4, 5, DIM).astype(np.float32)


class Grid(Windowed):
    """Rows from the text alone; a long text has a row every LONGEST characters."""

    dim = DIM

    def _window(self, number: int, texts: Sequence[str], on_long: str, on_batch: Any) -> Encoded:
        found = super()._window(number, texts, on_long, on_batch)
        spans = found.spans if found.spans is not None else [(0, self.LONGEST)] * len(found.inputs)
        parts = [texts[place][start:end] for place, (start, end) in zip(found.inputs, spans, strict=True)]
        return replace(found, rows=np.array([grid_row(part) for part in parts]).reshape(-1, DIM))


@dataclass(frozen=True)
class Config:
    fine: str = "float16"
    metric: str = "cosine"
    on_long: str = "truncate"
    coarse: str = "none"
    sparse: str | None = None  # "bm25" or "model"


CONFIGS = {
    "float32": Config("float32", "dot"),
    "float16": Config("float16"),
    "int8": Config("int8"),
    "int8, dot": Config("int8", "dot"),
    "float32, passages": Config("float32", on_long="chunk"),
    "float16, passages, dot": Config("float16", "dot", "chunk"),
    "int8, passages": Config("int8", on_long="chunk"),
    "inverted lists": Config(coarse="IVF4,SQ8"),
    "inverted lists, passages": Config("int8", on_long="chunk", coarse="IVF4,SQ8"),
    "4-bit codes, which know no selector": Config("float32", coarse="PQ4x4fs"),
    "a graph": Config(coarse="HNSW8"),
    "a graph, passages": Config("float32", "dot", "chunk", "HNSW8"),
    "terms": Config("float32", sparse="bm25"),
    "terms, passages": Config("float16", "dot", "chunk", sparse="bm25"),
    "terms, inverted lists": Config(coarse="IVF4,SQ8", sparse="bm25"),
    "learned weights, passages": Config("int8", on_long="chunk", sparse="model"),
}


@dataclass
class Known:
    """A document that is there, and its rows as they are compared."""

    document: Document
    rows: np.ndarray  # (m, DIM) float64, decoded


class Expected:
    """The dict, and what follows from it."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.known: dict[str, Known] = {}
        self.ranges: np.ndarray | None = None

    def parts(self, document: Document) -> list[str]:
        text, longest = document.full_text, Grid.LONGEST
        if self.config.on_long == "truncate" or not text:
            return [text[:longest]]
        return [text[start : start + longest] for start in range(0, len(text), longest)]

    def prepared(self, rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows, np.float32)
        return unit(rows) if self.config.metric == "cosine" else rows

    def stored(self, rows: np.ndarray) -> np.ndarray:
        """What comes back of rows."""
        rows = self.prepared(rows)
        if self.config.fine == "int8":
            assert self.ranges is not None
            lowest, step = self.ranges
            codes = np.clip(np.floor((rows - lowest) / step), 0, 255)
            return (lowest + (codes + np.float32(0.5)) * step).astype(np.float64)
        return rows.astype(self.config.fine).astype(np.float64)

    def take(self, documents: Sequence[Document], rows: Sequence[np.ndarray]) -> None:
        if self.config.fine == "int8" and self.ranges is None:
            whole = self.prepared(np.concatenate(rows))
            width = np.maximum(whole.max(axis=0) - whole.min(axis=0), 1e-12)
            self.ranges = np.stack([whole.min(axis=0), width / 255]).astype(np.float32)
        for document, own in zip(documents, rows, strict=True):
            self.known[document.id] = Known(document, self.stored(own))

    def rows_of(self, documents: Sequence[Document]) -> list[np.ndarray]:
        return [np.array([grid_row(part) for part in self.parts(document)]) for document in documents]

    def passing(self, keep: Callable[[Mapping[str, Any]], bool]) -> dict[str, Known]:
        return {name: known for name, known in self.known.items() if keep(known.document.metadata)}


def unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return (rows / np.where(lengths == 0, 1, lengths)).astype(np.float32)


class Game:
    """One index and its model; `log` says what was done, so that a failure can be played again."""

    def __init__(self, path: Path, config: Config, seed: int) -> None:
        self.path, self.config, self.seed, self.draw = path, config, seed, random.Random(seed)
        self.expected, self.log, self.count = Expected(config), list[str](), Counter[str]()
        documents = [self.document(f"d{number}") for number in range(50)]
        options = {"coarse": config.coarse, "fine": config.fine, "metric": config.metric, "on_long": config.on_long}
        self.sparse = {None: None, "bm25": "bm25", "model": Weigher(WORDS)}[config.sparse]
        self.index = build_index(documents, path, model=Grid(), sparse=self.sparse, **options)  # type: ignore[arg-type]
        self.index.threads = 1
        self.expected.take(documents, self.expected.rows_of(documents))
        self.exact = config.coarse == "none"

    def play(self, operations: int) -> Counter[str]:
        kinds = [self.add, self.add_vectors, self.delete, self.delete_where, self.compact, self.reopen, self.get]
        kinds += [self.search, self.search_like]
        weights = [8, 4, 5, 2, 1, 2, 4, 40, 6]
        if self.sparse is not None:
            kinds, weights = [*kinds, self.search_terms, self.search_both], [*weights[:-2], 10, 2, 30, 30]
        try:
            for _ in range(operations):
                operation = self.draw.choices(kinds, weights)[0]
                self.count[operation.__name__] += 1
                operation()
                assert len(self.index) == len(self.expected.known)
        except Exception as error:
            done = "\n".join(f"  {line}" for line in self.log)
            raise AssertionError(f"{self.config}, seed {self.seed}, after:\n{done}\n{error!r}") from error
        self.index.verify()
        self.index.close()
        return self.count

    # --- changes ------------------------------------------------------------------------------------------------------

    def document(self, name: str) -> Document:
        text = "ab cd"[: self.draw.randint(0, 5)] + f" {self.draw.randrange(DISTINCT)}" * self.draw.choice(
            [1, 1, 2, 6, 14]
        )
        metadata: dict[str, Any] = {"n": self.draw.randrange(20), "lang": self.draw.choice(LANGUAGES)}
        if self.draw.random() < 0.5:
            metadata["tags"] = self.draw.sample(["a", "b", "c"], 2)
        return Document(name, text, title=self.draw.choice(["", "", "title"]), metadata=metadata)

    def names(self, count: int) -> list[str]:
        return [f"d{number}" for number in self.draw.sample(range(NAMES), count)]

    def add(self) -> None:
        documents = [self.document(name) for name in self.names(self.draw.choice([1, 1, 2, 3, 8, 25]))]
        self.log.append(f"add {documents}")
        assert self.index.add(documents) == len(documents)
        self.expected.take(documents, self.expected.rows_of(documents))

    def add_vectors(self) -> None:
        names = self.names(self.draw.choice([1, 2, 4]))
        rows = np.array([grid_row(str(self.draw.random())) for _ in names])
        self.log.append(f"add_vectors {names} {rows.tolist()}")
        assert self.index.add(rows, ids=names) == len(names)
        self.expected.take([Document(name, "") for name in names], [row[None] for row in rows])

    def delete(self) -> None:
        names = self.names(self.draw.choice([1, 2, 5])) + ["nobody"] * self.draw.randrange(2)
        self.log.append(f"delete {names}")
        there = [name for name in names if name in self.expected.known]
        assert self.index.delete(names) == len(there)
        for name in there:
            del self.expected.known[name]

    def delete_where(self) -> None:
        where, keep = self.filter() if self.draw.random() < 0.95 else ({}, lambda _: True)
        if self.draw.random() < 0.7:  # few at a time, or nothing would be left
            number = self.draw.randrange(20)
            where, keep = {"and": [where, {"n": number}]}, _both(keep, number)
        self.log.append(f"delete where {where}")
        passing = self.expected.passing(keep)
        assert self.index.delete(where=where) == len(passing)
        for name in passing:
            del self.expected.known[name]

    def compact(self) -> None:
        self.log.append("compact")
        self.index.compact()
        assert len(self.index.manifest.segments) == bool(self.expected.known)
        assert self.index.info()["deleted"] == 0

    def reopen(self) -> None:
        self.log.append("reopen")
        self.index.close()
        model = self.sparse if isinstance(self.sparse, Weigher) else None
        self.index = open_index(self.path, Grid(), check=True, sparse_model=model)
        self.index.threads = 1

    # --- questions ----------------------------------------------------------------------------------------------------

    def get(self) -> None:
        names = self.draw.sample(sorted(self.expected.known), min(3, len(self.expected.known)))
        self.log.append(f"get {names}")
        assert self.index.get(names) == [self.expected.known[name].document for name in names]
        gone = next((f"d{n}" for n in range(NAMES) if f"d{n}" not in self.expected.known), "nobody")
        with pytest.raises(KeyError):
            self.index.get([gone])

    def filter(self) -> Filter:
        n, lang = self.draw.randrange(20), self.draw.choice(LANGUAGES)
        return self.draw.choice(
            [
                ({"lang": lang}, lambda m: m.get("lang") == lang),
                ({"n": {"gte": n}}, lambda m: m.get("n", -1) >= n),
                ({"n": {"lt": n}, "tags": "b"}, lambda m: m.get("n", 99) < n and "b" in m.get("tags", ())),
                ({"not": {"lang": lang}}, lambda m: m.get("lang") != lang),
                ({"n": {"ne": n}}, lambda m: m.get("n") != n),
                ({"or": [{"tags": "a"}, {"n": n}]}, lambda m: "a" in m.get("tags", ()) or m.get("n") == n),
                ({"lang": {"exists": False}}, lambda m: "lang" not in m),
                ({"lang": "none of these"}, lambda m: False),
            ]
        )

    def options(self) -> tuple[dict[str, Any], Callable[[Mapping[str, Any]], bool]]:
        where, keep = self.filter() if self.draw.random() < 0.6 else (None, lambda _: True)
        asked = {
            "k": self.draw.choice([1, 2, 3, 5, 10, 40, 300]),
            "group": self.draw.choice(["best", "best", None, "mean"]),
        }
        if not self.exact and self.draw.random() < 0.3:
            asked |= {"probes": self.draw.choice([1, 2]), "shortlist": self.draw.choice([1, 20, 100])}
        return {**asked, **({} if where is None else {"where": where})}, keep

    def search(self) -> None:
        options, keep = self.options()
        queries = np.array([self.query() for _ in range(self.draw.choice([1, 1, 2, 25]))], np.float32)
        compared = unit(queries) if self.config.metric == "cosine" else queries
        judged = [Judge(self, query, self.expected.passing(keep), options["group"]) for query in compared]
        if self.draw.random() < 0.3 and (least := judged[0].between(self.draw)) is not None:
            options["min_score"], queries, judged = least, queries[:1], judged[:1]
        self.log.append(f"search {queries.tolist()} {options}")
        hits = self.index.search(queries, **options)
        rows = sum(segment.rows for segment in self.index.manifest.segments)
        assert hits.scores.shape == (len(queries), min(options["k"], rows))
        for number, judge in enumerate(judged):
            judge.check(hits, number, options)

    def asked(self) -> str:
        """Words of the texts, and some of none."""
        return " ".join(self.draw.choices([*WORDS, "nowhere", "the"], k=self.draw.choice([1, 1, 2, 3, 8])))

    def by_terms(self, query: str) -> dict[str, float]:
        texts = {name: known.document.full_text for name, known in self.expected.known.items()}
        return (bm25 if self.sparse == "bm25" else products)(texts, query)

    def search_terms(self) -> None:
        where, keep = self.filter() if self.draw.random() < 0.5 else (None, lambda _: True)
        queries, k = [self.asked() for _ in range(self.draw.choice([1, 3]))], self.draw.choice([1, 2, 5, 20, 300])
        self.log.append(f"search terms {queries} {k} {where}")
        hits = self.index.search(queries, k, mode="sparse", where=where, explain=True)
        for number, query in enumerate(queries):
            passing = self.expected.passing(keep)
            scores = {name: score for name, score in self.by_terms(query).items() if name in passing}
            self.check_scores(hits, number, k, scores, 1e-4)
            for said, score in zip(hits.explanations[number], hits.scores[number], strict=False):
                assert abs(sum(said["sparse"]["terms"].values()) - score) < 1e-4

    def search_both(self) -> None:
        """There are fewer documents than candidates, so that all which pass are fused."""
        where, keep = self.filter() if self.draw.random() < 0.5 else (None, lambda _: True)
        query, text, k = self.query().astype(np.float32), self.asked(), self.draw.choice([1, 3, 10, 300])
        weight, group = self.draw.choice([0.0, 0.3, 0.5, 1.0]), self.draw.choice(["best", "mean"])
        self.log.append(f"search both {query.tolist()} {text} {k} {where} {weight} {group}")
        compared = unit(query[None])[0] if self.config.metric == "cosine" else query
        judge = Judge(self, compared, self.expected.passing(keep), group)
        hits = self.index.search(
            query, k, mode="hybrid", sparse_queries=text, where=where, group=group, weight=weight, explain=True
        )
        names, by_terms = list(judge.scores), self.by_terms(text)
        dense = [judge.scores[name] for name in names]
        sparse = [by_terms.get(name, 0.0) for name in names]
        for name, said in zip(hits.ids[0], hits.explanations[0], strict=True):
            assert abs(said["fine"]["score"] - judge.scores[name]) <= judge.tolerance
            assert abs((said["sparse"] or {"score": 0.0})["score"] - by_terms.get(name, 0.0)) < 1e-4
        if names and max(dense) - min(dense) > 0.05:  # else rounding is what is fused
            both = zip(names, minmax(dense), minmax(sparse), strict=True)
            fused = {name: weight * one + (1 - weight) * other for name, one, other in both}
            self.check_scores(hits, 0, k, fused, 2 * judge.tolerance / (max(dense) - min(dense)) + 1e-3)

    def check_scores(self, hits: Any, number: int, k: int, scores: Mapping[str, float], tolerance: float) -> None:
        """The k best of these scores came, in order."""
        names, real = hits.ids[number], hits.scores[number][: len(hits.ids[number])]
        assert len(set(names)) == len(names) == min(k, len(scores))
        assert all(abs(scores[name] - score) <= tolerance for name, score in zip(names, real, strict=True))
        for (one, a), (other, b) in itertools.pairwise(zip(names, real, strict=True)):
            assert a > b or (a == b and one > other), "ties go to the larger id"
        left = [score for name, score in scores.items() if name not in names]
        assert not left or max(left) <= real[-1] + tolerance
        assert hits.documents[number] == [self.expected.known[name].document for name in names]

    def query(self) -> np.ndarray:
        if self.draw.random() < 0.5:
            return grid_row(str(self.draw.random()))
        return np.array([self.draw.gauss(0, 2) for _ in range(DIM)])

    def search_like(self) -> None:
        if not self.expected.known:
            with pytest.raises(UsageError):
                self.index.search(like="d0")
            return
        options, keep = self.options()
        own = self.draw.choices(sorted(self.expected.known), k=self.draw.choice([1, 1, 3]))  # some perhaps twice
        self.log.append(f"search like {own} {options}")
        hits = self.index.search(like=own, **options)
        for number, name in enumerate(own):
            mean = self.expected.known[name].rows.mean(axis=0, keepdims=True).astype(np.float32)
            query = unit(mean)[0] if self.config.metric == "cosine" else mean[0]
            others = {other: known for other, known in self.expected.passing(keep).items() if other != name}
            Judge(self, query, others, options["group"]).check(hits, number, options)


def _both(keep: Callable[[Mapping[str, Any]], bool], number: int) -> Callable[[Mapping[str, Any]], bool]:
    return lambda metadata: keep(metadata) and metadata.get("n") == number


class Judge:
    """All scores that a query may find, and whether an answer is right."""

    def __init__(self, game: Game, query: np.ndarray, known: Mapping[str, Known], group: str | None) -> None:
        self.game, self.known, self.group = game, known, group
        self.rows = {name: one.rows @ query.astype(np.float64) for name, one in known.items()}
        self.tolerance = 2e-5 * max([1.0, *(float(np.abs(scores).max()) for scores in self.rows.values())])
        self.scores: dict[str, float] = {}  # of what can be an answer: documents, or passages
        for name, scores in self.rows.items():
            if group is None:
                self.scores.update({f"{name}#{place}": float(score) for place, score in enumerate(scores)})
            else:
                self.scores[name] = float(scores.max() if group == "best" else scores.mean())

    def between(self, draw: random.Random) -> float | None:
        """A least score that no answer is close to."""
        ordered = sorted(self.scores.values())
        gaps = [(a + b) / 2 for a, b in itertools.pairwise(ordered) if b - a > 10 * self.tolerance]
        return draw.choice(gaps) if gaps else None

    def check(self, hits: Any, number: int, options: Mapping[str, Any]) -> None:
        k, least = options["k"], options.get("min_score", -np.inf)
        names, scores = [self.named(name) for name in hits.ids[number]], hits.scores[number]
        real = scores[: len(names)]
        assert len(set(names)) == len(names)
        assert np.all(np.isneginf(scores[len(names) :])) and np.all(np.isfinite(real)) and np.all(real >= least)
        assert np.all(real[:-1] >= real[1:])
        for name, score in zip(names, real, strict=True):
            assert name in self.scores, f"{name} is not there, or does not pass"
            assert self.is_score(name, float(score)), (name, float(score), self.scores[name])
        for (one, a), (other, b) in itertools.pairwise(zip(hits.ids[number], real, strict=True)):
            assert a > b or one > other, "ties go to the larger id"
        documents = [self.known[name.partition("#")[0]].document for name in names]
        assert hits.documents is None or hits.documents[number] == documents
        full = sum(score >= least for score in self.scores.values())
        if self.game.exact:
            assert len(names) == min(k, full)
            self.check_best(names, real, least)
        elif least == -np.inf:
            assert len(names) == min(k, full), f"{len(names)} came, {full} pass"

    def named(self, name: str) -> str:
        """A passage by its number; a document with one row may go without."""
        return f"{name}#0" if self.group is None and "#" not in name else name

    def is_score(self, name: str, score: float) -> bool:
        possible = [self.scores[name]]
        if self.group == "best" and not self.game.exact:  # the best of what the shortlist held
            possible = list(self.rows[name])
        return min(abs(score - one) for one in possible) <= self.tolerance

    def check_best(self, names: Sequence[str], real: np.ndarray, least: float) -> None:
        """Nothing that was left out is better than the last one, or ties with any and has the larger id."""
        left = {name: score for name, score in self.scores.items() if name not in names and score >= least}
        for name, score in left.items():
            assert score <= real[-1] + self.tolerance, f"{name} has {score} and was left out"
        lowest = {self.bits(name): name for name in sorted(names, reverse=True)}
        for name in left:
            tied = lowest.get(self.bits(name))
            assert tied is None or self.place(tied) > self.place(name), f"{name} ties with {tied} and was left out"

    def bits(self, name: str) -> bytes:
        """Equal where two scores must be so to the last bit."""
        document, _, place = name.partition("#")
        rows = self.known[document].rows
        if self.group is None:
            return rows[int(place)].tobytes()
        if self.group == "mean":
            return rows.tobytes()
        scores = self.rows[document]
        close = rows[scores >= scores.max() - self.tolerance]
        return close[0].tobytes() if (close == close[0]).all() else name.encode()

    def place(self, name: str) -> str:
        return (
            name.partition("#")[0] if self.group is None and len(self.known[name.partition("#")[0]].rows) == 1 else name
        )


@contextmanager
def selectors_used() -> Iterator[None]:
    """Filters go through the codes, not through an exact search of the few rows that pass."""
    with patch.object(segment, "GATHER_COST", 100.0), faiss_threads(1):
        yield


@pytest.mark.parametrize("name", CONFIGS)
def test_an_index_does_what_a_dict_does(tmp_path: Path, name: str) -> None:
    with selectors_used():
        count = Game(tmp_path / "x", CONFIGS[name], seed=1).play(60)
    asked = ["search"] if CONFIGS[name].sparse is None else ["search_terms", "search_both"]
    assert all(count[kind] > 12 for kind in asked) and count["add"] > 1


@pytest.mark.parametrize("coarse", ["IVF8,SQ8", "PQ4x4fs", "HNSW8"])
def test_as_many_come_as_were_asked_for_however_few_lists_are_visited(tmp_path: Path, coarse: str) -> None:
    rows = np.random.default_rng(0).standard_normal((60, DIM)).astype(np.float32)
    with selectors_used(), build_index(rows, tmp_path / "x", coarse=coarse) as index:
        for k in (5, 50, 60, 70):
            for probes in (None, 1, 2):
                hits = index.search(rows[:3], k, probes=probes, shortlist=1)
                assert [len(set(ids)) for ids in hits.ids] == [min(k, 60)] * 3
        index.delete([str(number) for number in range(10)])
        assert [len(set(ids)) for ids in index.search(rows[:3], 70, probes=1).ids] == [50] * 3


def test_a_failure_says_the_seed_and_what_was_done(tmp_path: Path) -> None:
    game = Game(tmp_path / "x", CONFIGS["float16"], seed=3)
    game.expected.known.pop("d7")
    with pytest.raises(AssertionError, match=r"seed 3, after:"):
        game.play(5)
    game.index.close()
    shutil.rmtree(tmp_path / "x")
