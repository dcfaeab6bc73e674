"""A tokenizer that does not belong to the weights, or is damaged: refused, never one row for different words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedkit.cli.main import main
from embedkit.encoders import load
from embedkit.encoders.vocabulary import TokenWithoutRow
from embedkit.errors import ModelError

from ..conftest import make_family

Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


def edited(folder: Path, edit: Edit) -> Path:
    rules = json.loads((folder / "tokenizer.json").read_text())
    edit(rules)
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    return folder


def add(*tokens: str, first: int = 43) -> Edit:
    kind = {"special": False, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    entries = [{"id": first + i, "content": token, **kind} for i, token in enumerate(tokens)]
    return lambda rules: rules["added_tokens"].extend(entries)


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_added_tokens_without_rows_are_refused(folder: Path, backend: str) -> None:
    edited(folder, add("embedkit", "covid19"))
    with pytest.raises(TokenWithoutRow, match=r"gives 'covid19' the id 44 and the model has 43 embeddings"):
        load(folder, backend=backend)


def test_of_another_family_too(plain_model: Path, tmp_path: Path) -> None:
    folder = edited(make_family("DistilBert", plain_model, tmp_path / "model"), add("covid19"))
    with pytest.raises(TokenWithoutRow, match=r"gives 'covid19' the id 43 and the model has 43 embeddings"):
        load(folder)


def test_and_of_static_embeddings(tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=torch.ones(43, 4))], device="cpu")
    model.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    assert load(tmp_path / "model").encode("cat").shape == (1, 4)
    path = next((tmp_path / "model").rglob("tokenizer.json"))
    edited(path.parent, add("covid19"))
    with pytest.raises(TokenWithoutRow, match="covid19"):
        load(tmp_path / "model")


def test_an_id_far_beyond_the_rows_is_found_among_those_below(folder: Path) -> None:
    """As many tokens as rows, and one of them elsewhere: of 2 to the power of 32 a row would be read from wild memory."""
    edited(folder, lambda rules: rules["model"]["vocab"].update(cat=2**32 - 1))
    with pytest.raises(TokenWithoutRow, match="'cat' the id 4294967295"):
        load(folder)


def test_doctor_makes_it_a_finding(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edited(folder, add("covid19"))
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", str(folder), "--json"])
    assert stopped.value.code == 4
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert finding["name"] == "tokens-without-embedding"
    assert finding["evidence"] == "The tokenizer gives 'covid19' the id 43 and the model has 43 embeddings."


def test_a_folder_without_a_tokenizer_is_refused(folder: Path) -> None:
    """transformers makes one of its five special tokens then, to which all words are unknown."""
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match="knows no word"):
        load(folder)


DOUBLED = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
DAMAGES: dict[str, tuple[Edit, str]] = {
    "no words": (lambda rules: rules["model"].update(vocab={}), "knows no word"),
    "no unknown token": (lambda rules: rules["model"].update(unk_token="[NO]"), "tokenizer fails on a text: .*UNK"),
    "garbage for a charsmap": (
        lambda rules: rules.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAAAAAAAAAAAAAA"}),
        "tokenizer fails on a text: index out of bounds",
    ),
    "no charsmap": (
        lambda rules: rules.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "/w=="}),
        "cannot be opened: Precompiled",
    ),
    "a special token nobody knows": (
        lambda rules: rules.update(
            post_processor={
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "[NOPE]", "type_id": 0}}],
                "pair": [],
                "special_tokens": {},
            }
        ),
        "tokenizer fails on a text",
    ),
    "a pattern that never ends": (
        lambda rules: rules.update(
            pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a|a?)+$"}, "behavior": "Isolated", "invert": False}
        ),
        "tokenizer fails on a text: .*[Rr]etry|tokenizer fails on a text",
    ),
    "doubled forty times": (
        lambda rules: rules.update(normalizer={"type": "Sequence", "normalizers": [DOUBLED] * 40}),
        "up to 1,099,511,627,776 times its length; at most 64 times",
    ),
    "filled between all characters": (
        lambda rules: rules.update(normalizer={"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 64}),
        "up to 65 times its length",
    ),
    "nested without end": (lambda rules: rules.update(normalizer=nested(200)), "cannot be opened"),
    "of another kind": (lambda rules: rules.update(model=3), "cannot be opened"),
}


def nested(levels: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"type": "Lowercase"}
    for _ in range(levels):
        inner = {"type": "Sequence", "normalizers": [inner]}
    return inner


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_tokenizer_is_one_sentence(folder: Path, name: str) -> None:
    """Panics of tokenizers are no Exception; whichever call meets one first."""
    edit, said = DAMAGES[name]
    edited(folder, edit)
    with pytest.raises(ModelError, match=said) as caught:
        load(folder, backend="openvino").encode(["cat dog zebra!", "a" * 40 + "!"])
    assert "\n" not in str(caught.value)
