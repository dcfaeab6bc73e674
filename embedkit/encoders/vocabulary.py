"""Whether a tokenizer and the weights belong together: every token has a row, and there are words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from embedkit.errors import ModelError
from embedkit.limits import GROWTH

FINDING = "tokens-without-embedding"
FIX = "Resize the embeddings to the tokenizer (resize_token_embeddings) and train them, or take the added tokens out."


class TokenWithoutRow(ModelError):
    """The tokenizer has tokens that the weights have no rows for. evidence: the last one, its id, and how many rows there are."""

    def __init__(self, name: str, token: str, number: int, rows: int) -> None:
        self.evidence = f"The tokenizer gives {token!r} the id {number} and the model has {rows} embeddings."
        super().__init__(f"{name} cannot be used ({FINDING}). {self.evidence} {FIX}")


def check_vocabulary(tokenizer: Any, rows: int, name: str) -> None:
    """tokenizer: a tokenizers.Tokenizer; rows: of the table of embeddings. Raises ModelError where they do not fit, and where the
    tokenizer knows special tokens alone: all words would be unknown, and texts of as many words have one row."""
    count = tokenizer.get_vocab_size()
    if count <= sum(token.special for token in tokenizer.get_added_tokens_decoder().values()):
        raise ModelError(
            f"The tokenizer of {name} knows no word ({count} tokens, all special); put its tokenizer.json or vocabulary file back."
        )
    if (times := _growth(normalizer_rules(tokenizer))) > GROWTH:
        raise ModelError(
            f"The tokenizer of {name} replaces parts of a text by longer ones, up to {times:,.0f} times its length; at most {GROWTH} "
            f"times is taken: fetch the model again."
        )
    if count <= rows and all(map(tokenizer.id_to_token, range(count))):
        return  # the ids are 0 to count - 1; the whole vocabulary as a dict takes longer
    token, number = last_token(tokenizer)
    if number >= rows:
        raise TokenWithoutRow(name, token, number, rows)


def normalizer_rules(tokenizer: Any) -> dict[str, Any]:
    """The settings of a tokenizer's normalizer."""
    part = tokenizer.normalizer
    return json.loads(part.__getstate__()) if part is not None else {}


def _growth(rules: Mapping[str, Any]) -> float:
    """How many times longer a normalizer may make a text: forty that double it would fill all memory."""
    if rules.get("type") == "Replace":
        content, pattern = len(rules["content"]), rules["pattern"]
        # an expression may match between any two characters
        return max(1, content / len(pattern["String"])) if pattern.get("String") else 1 + content
    return math.prod(map(_growth, rules.get("normalizers", ())))


def last_token(tokenizer: Any) -> tuple[str, int]:
    """The token of the largest id, and the id."""
    last: tuple[str, int] = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    return last


def check_vocabularies(model: Any, name: str) -> None:
    """The same for every module of a SentenceTransformer that has a tokenizer of this kind and a table."""
    for module in model.modules():
        tokenizer = getattr(module, "tokenizer", None)
        tokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer)
        rows = embeddings(module)
        if rows is not None and hasattr(tokenizer, "get_added_tokens_decoder"):
            check_vocabulary(tokenizer, rows, name)


def embeddings(module: Any) -> int | None:
    """How many tokens have one in a module of a SentenceTransformer, or in a transformer of Hugging Face; None where it does not say."""
    transformer = getattr(module, "auto_model", module)
    try:
        table = transformer.get_input_embeddings()
    except NotImplementedError:  # of a CLIP, which embeds texts and images
        return getattr(
            transformer.config.get_text_config(), "vocab_size", None
        )  # CANINE has none: it hashes characters
    except AttributeError:
        table = getattr(module, "embedding", None)  # of static embeddings
    return getattr(table, "num_embeddings", None)
