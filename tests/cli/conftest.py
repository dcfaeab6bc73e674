"""The command line run in this process, and a small corpus with what the tiny model should make of it."""

from __future__ import annotations

import functools
import json
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROWS = [
    {"_id": "d0", "title": "cat", "text": "red run", "year": 2001},
    {"_id": "d1", "title": "dog", "text": "blue swim", "year": 2002},
    {"_id": "d2", "title": "fish", "text": "swim swim one", "year": 2003},
    {"_id": "d3", "title": "bird", "text": "two red", "year": 2004},
    {"_id": "d4", "title": "", "text": "cat dog fish bird", "year": 2005},
    {"_id": "d5", "title": "one", "text": "run run run", "year": 2006},
    {"_id": "d6", "title": "two", "text": "blue blue bird", "year": 2007},
]
TEXTS = [f"{row['title']} {row['text']}".strip() for row in ROWS]
IDS = [row["_id"] for row in ROWS]
QUESTION = "red cat"


@dataclass(frozen=True)
class Finished:
    """What a command left behind: its exit code and both streams."""

    code: int
    out: str
    err: str

    @property
    def facts(self) -> Any:
        """Standard output as one JSON value."""
        return json.loads(self.out)

    @property
    def remarks(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.strip()]

    def sentence(self, code: int) -> str:
        """The one sentence of a failure, after what every failure promises has been checked."""
        assert self.code == code, self
        assert self.out == ""
        assert "Traceback" not in self.err
        errors = [line for line in self.remarks if line.startswith("Error: ")]
        assert errors == self.remarks[-1:], self.err
        assert errors[0].endswith("."), "a sentence ends with a full stop"
        return errors[0]


Run = Callable[..., Finished]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """The command line sets up the package's logger and a signal handler; the other tests get theirs back."""
    logger = logging.getLogger("embedkit")
    kept = logger.handlers[:], logger.level, logger.propagate, signal.getsignal(signal.SIGTERM)
    yield
    for handler in logger.handlers:
        if handler not in kept[0]:
            handler.close()
    logger.handlers[:], logger.propagate = kept[0], kept[2]
    logger.setLevel(kept[1])
    signal.signal(signal.SIGTERM, kept[3])


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], no_network: None) -> Run:
    """run("embed", path, "-o", path) -> Finished, in this process and without network."""
    from embedkit.cli.main import main

    def call(*arguments: object) -> Finished:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        assert isinstance(stop.value.code, int)
        return Finished(stop.value.code, *capsys.readouterr())

    return call


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def listing(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def flip(path: Path, position: int, bit: int = 1) -> None:
    """Changes one bit of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= bit
    path.write_bytes(content)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", ROWS)


@pytest.fixture(scope="session")
def reference(tiny_model: Path) -> Callable[[Sequence[str]], np.ndarray]:
    """Rows of the tiny model as sentence-transformers itself makes them."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tiny_model), device="cpu")
    return lambda texts: np.asarray(model.encode(list(texts), show_progress_bar=False))


@pytest.fixture(scope="session")
def ranking(reference: Callable[[Sequence[str]], np.ndarray]) -> Callable[[str], list[tuple[str, float]]]:
    """ranking(question) -> (id, cosine) of all ROWS, best first, by a plain product of sentence-transformers' rows."""

    def rank(question: str) -> list[tuple[str, float]]:
        scores = reference(TEXTS) @ reference([question])[0]
        order = np.argsort(-scores)
        assert np.diff(-scores[order]).min() > 1e-4, "too close to tell apart; choose another question"
        return [(IDS[row], float(scores[row])) for row in order]

    return functools.cache(rank)


@pytest.fixture(scope="session")
def vectors(tmp_path_factory: pytest.TempPathFactory, corpus: Path, tiny_model: Path) -> Path:
    """ROWS as embedkit embed writes them."""
    from embedkit.encoders import load
    from embedkit.jobs import embed_corpus

    path = tmp_path_factory.mktemp("vectors") / "corpus.npy"
    embed_corpus(corpus, path, load(tiny_model, dtype="float32"))
    return path


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory, corpus: Path, tiny_model: Path) -> Path:
    """An exact index of ROWS, not to be changed."""
    from embedkit.encoders import load
    from embedkit.jobs import build_index

    path = tmp_path_factory.mktemp("indexes") / "tiny.index"
    build_index(corpus, path, model=load(tiny_model, dtype="float32"), fine="float32").close()
    return path


@pytest.fixture(scope="session")
def prompted_model(make_model: Callable[..., Path]) -> Path:
    """Other weights than the tiny model's, and two stored prompts."""
    return make_model(seed=1, prompts={"query": "query : ", "colour": "red "})
