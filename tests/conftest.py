"""Models and data that the tests share: a fake encoder whose rows can be computed by eye, small real models with random
weights, and, where they are present, the default model and the real collections."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    # a process a core: threads of their own would wait for each other. Before numpy, faiss and torch count the cores
    CORES = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {CORES[int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")) % len(CORES)]})

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # pytest.importorskip("openvino") posts without it
UNPICKLED: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Notes every class that is unpickled, but for messages between a job and its own workers."""
    if event == "pickle.find_class":
        frame: Any = sys._getframe()
        while frame and not frame.f_code.co_filename.endswith(
            ("multiprocessing/connection.py", "multiprocessing/spawn.py")
        ):
            frame = frame.f_back
        if frame is None:
            UNPICKLED.append(".".join(map(str, arguments)))


sys.addaudithook(_watch)


@pytest.fixture(autouse=True)
def nothing_is_unpickled() -> Iterator[None]:
    before = len(UNPICKLED)
    yield
    assert UNPICKLED[before:] == []


@pytest.fixture(autouse=True)
def no_first_look_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The record of the models that this machine has met is not for those of the tests."""
    monkeypatch.setattr("embedkit.encoders.doctor.first_look.record_path", lambda: None)


@pytest.fixture(autouse=True)
def no_handler_stays() -> Iterator[None]:
    """The command line hangs its handlers on the logger of a process that ends with it; here it does not."""
    yield
    logging.getLogger("embedkit").handlers.clear()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="every variant of the long suites, and their longest tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --long, a fixed third of the variants of a test that is marked `long`; none of one that has no variants."""
    if config.getoption("--long"):
        return
    left_out = [item for item in items if item.get_closest_marker("long") and not _in_the_sample(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


def _in_the_sample(item: pytest.Item) -> bool:
    return hasattr(item, "callspec") and zlib.crc32(item.nodeid.encode()) % 3 == 0


WORDS = ["cat", "dog", "fish", "bird", "red", "blue", "one", "two", "run", "swim", "query", ":"]
TINY_VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"abcdefghijklmnopqrstuvwxyz"]


class WordCounts:
    """An Encoder whose row holds how often each of WORDS stands in the text, so that every similarity is known by eye."""

    dim = len(WORDS)
    similarity = "cosine"
    settings: dict[str, Any] = {}  # noqa: RUF012
    compute = {"backend": "counting"}  # noqa: RUF012

    def __init__(self, fingerprint: str = "f" * 64) -> None:
        self.fingerprint = fingerprint

    def encode(self, inputs: Sequence[str], *, kind: str = "document") -> np.ndarray:
        counts = [[text.lower().split().count(word) for word in WORDS] for text in inputs]
        rows = np.array(counts, dtype=np.float32).reshape(len(counts), len(WORDS))
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows / np.where(lengths == 0, 1, lengths)


@pytest.fixture
def word_counts() -> WordCounts:
    return WordCounts()


def bent_rows(count: int, dim: int = 32, seed: int = 0) -> np.ndarray:
    """Unit rows of a low intrinsic dimension, bent by a non-linearity: neither noise nor trivial to find neighbours among."""
    generator = np.random.default_rng(seed)
    plain = generator.standard_normal((count, 6)) @ np.random.default_rng(17).standard_normal((6, dim))
    bent = np.sin(plain).astype(np.float32)
    return bent / np.linalg.norm(bent, axis=1, keepdims=True)


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_model(seed=0, pooling="mean", normalize=True, prompts=None, similarity=None) -> folder of a two-layer BERT with random
    weights and a vocabulary of WORDS and letters, as sentence-transformers saves it."""

    def make(
        seed: int = 0,
        pooling: str = "mean",
        normalize: bool = True,
        prompts: dict[str, str] | None = None,
        similarity: str | None = None,
    ) -> Path:
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

        plain = make_plain(tmp_path_factory.mktemp("plain"), seed)
        transformer = Transformer(str(plain), max_seq_length=32)
        modules: list[torch.nn.Module] = [transformer, Pooling(transformer.get_embedding_dimension(), pooling)]
        if normalize:
            modules.append(Normalize())
        model = SentenceTransformer(modules=modules, prompts=prompts, device="cpu", similarity_fn_name=similarity)
        folder = tmp_path_factory.mktemp("model") / "tiny"
        model.save_pretrained(str(folder), create_model_card=False)
        return folder

    return make


def make_plain(folder: Path, seed: int = 0) -> Path:
    """A plain Hugging Face BERT: config, safetensors weights, tokenizer, and no modules.json."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    (folder / "vocab.txt").write_text("\n".join(TINY_VOCABULARY))
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=64)
    config = BertConfig(
        vocab_size=len(TINY_VOCABULARY),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    torch.manual_seed(seed)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_family(family: str, plain: Path, folder: Path, layers: int = 2) -> Path:
    """A plain model of another family with random weights, and the tokenizer of `plain`."""
    import torch
    import transformers

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 66,
    }
    if family == "DistilBert":
        sizes = {"dim": 32, "n_layers": layers, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 66}
    if family == "T5":
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": layers, "num_heads": 4}
    if family in ("Qwen3", "Gemma3nText"):  # Qwen3 and Gemma have heads of their own width
        sizes |= {"num_key_value_heads": 2, "head_dim": 8}
    if family == "Gemma3nText":
        sizes |= {"vocab_size_per_layer_input": 43, "hidden_size_per_layer_input": 8, "laurel_rank": 4}
        sizes |= {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0] * layers}
    kind = {"Llama": "LlamaForCausalLM", "T5": "T5ForConditionalGeneration"}.get(family, f"{family}Model")
    specials = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    shutil.copytree(plain, folder)
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(vocab_size=43, **sizes, **specials)
    getattr(transformers, kind)(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_plain(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="session")
def tiny_model(make_model: Callable[..., Path]) -> Path:
    return make_model()


@pytest.fixture(scope="session")
def clip_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.image_models import make_clip

    return make_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def vlm_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.image_models import make_vlm

    return make_vlm(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="session")
def default_encoder() -> Any:
    """The default model in float32, where its weights are on this machine."""
    from embedkit.encoders import load
    from embedkit.encoders.default_model import default_model_folder

    if default_model_folder() is None:
        pytest.skip("the default model's weights are not here (extra 'offline')")
    return load(dtype="float32")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real collections."""
    folder = Path(os.environ.get("EMBEDKIT_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no collections at {folder}; set EMBEDKIT_DATA to their folder")
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Any attempt to reach another host fails the test."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
