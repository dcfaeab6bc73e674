"""Which prompt a kind takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedkit.encoders.prompts import family_prompts, named_prompt, resolve_prompts
from embedkit.errors import UsageError


@pytest.mark.parametrize(
    ("stored", "default", "query", "document"),
    [
        ({}, None, "", ""),
        ({"query": "q: ", "document": "d: ", "passage": "p: "}, None, "q: ", "d: "),
        ({"query": "q: ", "document": "", "passage": "p: "}, None, "q: ", "p: "),
        ({"corpus": "c: "}, None, "", "c: "),
        ({"sts": "s: "}, "sts", "s: ", "s: "),
        ({"query": "q: ", "sts": "s: "}, "sts", "q: ", "s: "),
    ],
)
def test_the_kind_decides_as_in_sentence_transformers(
    stored: dict[str, str], default: str | None, query: str, document: str
) -> None:
    assert resolve_prompts(stored, default, {}) == {"query": query, "document": document}


def test_a_chosen_name_overrides_for_its_kind_alone() -> None:
    stored = {"query": "q: ", "fact": "f: "}
    assert resolve_prompts(stored, None, {"query": "fact"}) == {"query": "f: ", "document": ""}


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(UsageError, match=r"no prompt named 'web'; it stores a, b\."):
        named_prompt({"b": "1", "a": "2", "empty": ""}, "web")
    with pytest.raises(UsageError, match="it stores none"):
        named_prompt({}, "web")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="A prompt for 'querry' came; inputs are of the kinds 'query' and 'document'"):
        resolve_prompts({"a": "b"}, None, {"querry": "a"})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("intfloat/e5-small-v2", "query: "),
        ("intfloat/multilingual-e5-large-instruct", "Instruct: TASK\nQuery: "),
        ("Alibaba-NLP/gte-Qwen2-1.5B-instruct", "Instruct: TASK\nQuery: "),
        ("Qwen/Qwen3-Embedding-0.6B", "Instruct: TASK\nQuery: "),
        ("BAAI/bge-small-en-v1.5", "Represent this sentence for searching relevant passages: "),
        ("BAAI/bge-large-zh-v1.5", "为这个句子生成表示以用于检索相关文章："),
        ("nomic-ai/nomic-embed-text-v1.5", "search_query: "),
        ("mixedbread-ai/mxbai-embed-large-v1", "Represent this sentence for searching relevant passages: "),
        ("Snowflake/snowflake-arctic-embed-m", "Represent this sentence for searching relevant passages: "),
        ("Snowflake/snowflake-arctic-embed-m-v2.0", "query: "),
        ("hkunlp/instructor-large", "Represent the question for retrieving supporting documents: "),
        ("sentence-transformers/all-MiniLM-L6-v2", None),
        ("BAAI/bge-m3", None),
        ("thenlper/gte-base", None),
        ("e5-user/my-model", None),
        ("some/the5-base", None),
    ],
)
def test_families_that_need_a_prompt_are_known_by_name(name: str, query: str | None) -> None:
    needed = family_prompts(name)
    assert (needed and needed["query"]) == query


@pytest.mark.parametrize(
    ("config", "known"),
    [
        ('{"_name_or_path": "intfloat/e5-base"}', True),
        ('{"_name_or_path": 3}', False),
        ("[]", False),
        ("[" * 100_000, False),
        ("", False),
    ],
)
def test_a_folder_is_known_by_what_it_was_made_from(config: str, known: bool, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    assert (family_prompts(str(tmp_path)) is not None) == known
