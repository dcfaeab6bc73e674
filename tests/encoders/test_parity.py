"""Six seeded causes on a server are found by name. The server's rows are sentence-transformers', not our own variants."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedkit.encoders.doctor.endpoint import address, endpoint_rows
from embedkit.encoders.doctor.parity import TEXTS, parity
from embedkit.errors import UsageError

from . import patients

pytestmark = pytest.mark.filterwarnings("ignore")
Rows = Callable[[Sequence[str]], Any]
PROMPTS = {"query": "query : ", "document": "dog swim "}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Two threads wait for each other longer than these models compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Server:
    """An embeddings server on this machine, whose answers are what the test says."""

    def __init__(self) -> None:
        self.rows: Rows = lambda texts: np.ones((len(texts), 4))
        self.answer: Callable[[dict[str, Any]], tuple[int, Any]] = self.embeddings
        self.asked: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append((self.path, question, dict(self.headers)))
                code, body = server.answer(question)
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def embeddings(self, question: dict[str, Any]) -> tuple[int, Any]:
        """In another order than asked: the index says whose row it is."""
        rows = np.asarray(self.rows(question["input"]), dtype=np.float32)
        data = [{"index": i, "embedding": row.tolist(), "object": "embedding"} for i, row in enumerate(rows)]
        return 200, {"object": "list", "data": data[::-1]}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    made.http.shutdown()
    made.http.server_close()
    thread.join()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return patients.encoder(tmp_path_factory.mktemp("parity"), prompts=PROMPTS)


def served(folder: Path, prompt: str = PROMPTS["document"], **changes: Any) -> Rows:
    """Rows of a SentenceTransformer that was set up in another way."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    model = SentenceTransformer(str(folder), device="cpu")
    pooling = Pooling(32, changes.get("pooling", "mean"))
    tail = [Normalize()] if changes.get("normalize", True) else []
    changed = SentenceTransformer(modules=[model[0], pooling, *tail], device="cpu")
    changed.max_seq_length = changes.get("limit", model.max_seq_length)
    lower = str.lower if changes.get("lower") else str
    return lambda texts: changed.encode([lower(text) for text in texts], prompt=prompt, show_progress_bar=False)


CAUSES: dict[str, tuple[dict[str, Any], str]] = {
    "without its prompt": ({"prompt": ""}, "no-prompt"),
    "the query prompt on documents": ({"prompt": PROMPTS["query"]}, "prompt-query"),
    "rows not normalised": ({"normalize": False}, "not-normalised"),
    "CLS in place of the mean": ({"pooling": "cls"}, "pooling-cls"),
    "the last token in place of the mean": ({"pooling": "lasttoken"}, "pooling-lasttoken"),
    "cut at 24 tokens": ({"limit": 24}, "cut-at-24"),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_a_seeded_cause_is_named(cause: str, model: Path, server: Server) -> None:
    changes, name = CAUSES[cause]
    server.rows = served(model, **changes)
    compared = parity(model, server.url)
    assert [finding.name for finding in compared.findings] == [name]
    (finding,) = compared.findings
    assert finding.evidence.endswith(".") and finding.fix.endswith(".")
    assert (compared.cosine < 0.999) == (name != "not-normalised")


def test_the_same_model_agrees(model: Path, server: Server) -> None:
    server.rows = served(model)
    compared = parity(model, server.url)
    assert compared.findings == []
    assert compared.tried == {}
    assert (compared.cosine > 0.99999, compared.agreement) == (True, 1.0)
    paths = {path for path, _, _ in server.asked}
    assert paths == {"/v1/embeddings"}
    assert [text for _, question, _ in server.asked for text in question["input"]] == list(TEXTS)
    assert {question["model"] for _, question, _ in server.asked} == {str(model)}
    assert not any("authorization" in map(str.lower, headers) for _, _, headers in server.asked)


def test_two_causes_at_once_are_both_named(model: Path, server: Server) -> None:
    server.rows = served(model, prompt="", normalize=False)
    assert [finding.name for finding in parity(model, server.url).findings] == ["not-normalised", "no-prompt"]


def test_another_model_is_not_explained(model: Path, tmp_path: Path) -> None:
    other = patients.encoder(tmp_path, "MPNet")
    compared = parity(model, str(other), backend="torch")
    assert [finding.name for finding in compared.findings] == ["unexplained"]
    assert "no variant of the model gives" in compared.findings[0].evidence
    assert max(compared.tried.values()) < 0.999


def test_fewer_dimensions_are_told(model: Path, server: Server) -> None:
    rows = served(model)

    def shorter(texts: Sequence[str]) -> Any:
        cut = rows(texts)[:, :16]
        return cut / np.linalg.norm(cut, axis=1, keepdims=True)

    server.rows = shorter
    compared = parity(model, server.url)
    assert [finding.name for finding in compared.findings] == ["dimensions"]
    assert compared.cosine > 0.999


@pytest.mark.parametrize("against", ["sentence-transformers", "torch", "openvino"])
def test_backends_of_one_model_agree(against: str, model: Path) -> None:
    pytest.importorskip(against.replace("-", "_"))
    compared = parity(model, against)
    assert (compared.findings, compared.agreement) == ([], 1.0)


def test_rank_one_agreement_is_what_a_slow_loop_counts(model: Path, server: Server) -> None:
    generator = np.random.default_rng(0)
    theirs = {text: generator.standard_normal(32) for text in TEXTS}
    server.rows = lambda texts: [theirs[text] / np.linalg.norm(theirs[text]) for text in texts]
    from embedkit.encoders import load

    encoder = load(model, dtype="float32")
    ours = dict(zip(TEXTS, encoder.encode(TEXTS), strict=True))

    def nearest(rows: dict[str, Any], text: str) -> str:
        others = [other for other in TEXTS if other != text]
        return max(others, key=lambda other: float(rows[other] @ rows[text] / np.linalg.norm(rows[other])))

    expected = np.mean([nearest(ours, text) == nearest(theirs, text) for text in TEXTS])
    assert parity(encoder, server.url).agreement == pytest.approx(expected)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://a:1", "http://a:1/v1/embeddings"),
        ("http://a:1/", "http://a:1/v1/embeddings"),
        ("http://a/v1", "http://a/v1/embeddings"),
        ("https://a/api/v1/embeddings", "https://a/api/v1/embeddings"),
        ("https://a/openai", "https://a/openai/v1/embeddings"),
    ],
)
def test_the_address_may_be_short(url: str, expected: str) -> None:
    assert address(url) == expected


def test_rows_may_come_as_base64(server: Server) -> None:
    rows = np.arange(8, dtype="<f4").reshape(2, 4)
    server.answer = lambda _: (
        200,
        {"data": [{"index": i, "embedding": base64.b64encode(row.tobytes()).decode()} for i, row in enumerate(rows)]},
    )
    np.testing.assert_array_equal(endpoint_rows(server.url, "m", ["a", "b"]), rows)


ONE = {"index": 0, "embedding": [1.0, 2.0]}


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ((404, b"no such route"), "answered 404 Not Found .no such route.; expected embeddings"),
        ((500, {"error": "oh"}), "answered 500"),
        ((200, b"<html>"), "did not answer as expected"),
        ((200, {"data": [ONE]}), "gave 1 rows for 2 texts"),
        ((200, {"data": [{"embedding": [1.0]}]}), "answered without data"),
        ((200, {"data": [ONE, {"index": 1, "embedding": "no base64!"}]}), "answered without data"),
        ((200, {"data": [ONE, {"index": 1, "embedding": ["a", "b"]}]}), "answered without data"),
        ((200, {"data": [ONE, {"index": 1, "embedding": 3.0}]}), "answered without data"),
        ((200, {"data": [ONE, {"index": 1, "embedding": [1.0]}]}), "rows of several widths"),
        ((200, []), "answered without data"),
        ((200, b"[" * 200_000), "did not answer as expected .nested more than 50 levels"),
        ((200, b"[" * 60 + b"]" * 60), "did not answer as expected .nested more than 50 levels"),
        ((200, {"data": [ONE, {"index": 1, "embedding": ["1.0"]}]}), "an embedding is not a list of numbers"),
        ((200, {"data": [ONE, {"index": 1, "embedding": [None]}]}), "an embedding is not a list of numbers"),
        ((200, {"data": [ONE, {"index": 1, "embedding": [10**400]}]}), "answered without data"),
        ((200, {"data": [ONE, {"index": "1", "embedding": [1.0]}]}), "data.1.index is '1', not a whole number"),
        ((200, {"data": {"0": ONE}}), "not a list"),
        ((200, {"data": [ONE, ONE]}), "gave rows with other indices than 0 to 1"),
    ],
    ids=str,
)
def test_a_server_that_answers_otherwise_is_one_sentence(
    answer: tuple[int, Any], sentence: str, server: Server
) -> None:
    server.answer = lambda _: answer
    with pytest.raises(UsageError, match=sentence) as caught:
        endpoint_rows(server.url, "m", ["a", "b"])
    assert str(caught.value).endswith(".")


def test_an_answer_of_any_length_is_not_read(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedkit.encoders.doctor.endpoint.ANSWER", 1000)
    server.answer = lambda _: (200, b" " * 2000)
    with pytest.raises(UsageError, match="more than 1,000 bytes"):
        endpoint_rows(server.url, "m", ["a"])


def test_an_answer_that_never_ends_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedkit.encoders.doctor.endpoint.PATIENCE", 0)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: contextlib.nullcontext(Endless()))
    with pytest.raises(UsageError, match="no end within 0 s"):
        endpoint_rows(server.url, "m", ["a"])


class Endless:
    """An answer that comes byte by byte."""

    def read1(self, _: int) -> bytes:
        return b" "


@pytest.mark.parametrize("url", ["http://[", "http://127.0.0.1:port", "http://a b/", "http://\u2100.test"])
def test_an_address_that_is_none_is_one_sentence(url: str) -> None:
    with pytest.raises(UsageError, match=r"expected (a server|http)"):
        endpoint_rows(url, "m", ["a"])


def test_nobody_there_is_one_sentence(server: Server) -> None:
    server.http.server_close()
    with pytest.raises(UsageError, match="did not answer as expected"):
        endpoint_rows(server.url, "m", ["a"])


def test_rows_that_are_no_numbers_are_refused(model: Path, server: Server) -> None:
    server.rows = lambda texts: np.full((len(texts), 32), np.nan)
    with pytest.raises(UsageError, match="gave rows with NaN or infinity"):
        parity(model, server.url)
