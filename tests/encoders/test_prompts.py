"""Which prompt a kind takes."""

from __future__ import annotations

import pytest

from embedkit.encoders.prompts import named_prompt, resolve_prompts
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
