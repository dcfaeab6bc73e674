"""Texts as token ids: chunks that are exact in tokens, and prompts told apart by characters."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from embedkit.encoders.pieces import Tokenization
from embedkit.errors import UsageError

WORDS = [f"w{i}" for i in range(50)]


def word_tokenizer(specials: bool = True) -> Tokenizer:
    """One token a word, [CLS] in front and [SEP] behind."""
    vocabulary = {name: i for i, name in enumerate(["[UNK]", "[CLS]", "[SEP]", "say", ":", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if specials:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    """Byte-level BPE, which merges a space into the word behind it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["Query: the cat sat", "the dog", "Query: the the"] * 20, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def test_a_text_that_fits_is_one_piece_with_its_special_tokens() -> None:
    tokenization = Tokenization(word_tokenizer(), 8, pool_prompt=True)
    pieces = tokenization.pieces(["w1 w2", "", "W3"], "")
    assert [list(piece.ids or ()) for piece in pieces] == [[1, 6, 7, 2], [1, 2], [1, 8, 2]]
    assert [(piece.input, piece.length, piece.span, piece.first, piece.truncated) for piece in pieces] == [
        (0, 4, (0, 5), 0, False),
        (1, 2, (0, 0), 0, False),
        (2, 3, (0, 2), 0, False),
    ]


def test_a_longer_text_is_cut_and_says_so() -> None:
    tokenization = Tokenization(word_tokenizer(), 5, pool_prompt=True)
    exact, longer = tokenization.pieces(["w1 w2 w3", "w1 w2 w3 w4"], "")
    assert exact.ids == longer.ids == [1, 6, 7, 8, 2]
    assert (exact.truncated, longer.truncated) == (False, True)


def test_what_the_tokenizer_came_with_is_taken_over() -> None:
    tokenizer = word_tokenizer()
    tokenizer.enable_padding(length=20)
    tokenizer.enable_truncation(3)
    (piece,) = Tokenization(tokenizer, None, pool_prompt=True).pieces(["w1 w2 w3 w4"], "")
    assert piece.ids == [1, 6, 7, 8, 9, 2]


@pytest.mark.parametrize("prompt", ["", "say: "])
@pytest.mark.parametrize("count", [0, 1, 6, 7, 13, 20, 50])
def test_chunks_cover_the_text_exactly(prompt: str, count: int) -> None:
    """Each but the last is full, each holds the tokens that the whole text has at its place, and together they hold all."""
    text = "  ".join(WORDS[:count])
    tokenization = Tokenization(word_tokenizer(), 10, pool_prompt=True)
    head = [1, 3, 4] if prompt else [1]
    room = 10 - len(head) - 1
    pieces = tokenization.pieces([text], prompt, "chunk")
    assert all(piece.length == 10 for piece in pieces[:-1])
    assert all(
        piece.length <= 10 and list(piece.ids or ())[: len(head)] == head and piece.ids[-1] == 2 for piece in pieces
    )
    found = []
    for piece in pieces:
        start, end = piece.span
        own = list(piece.ids or ())[len(head) : -1]
        assert [5 + WORDS.index(word) for word in text[start:end].split()] == own
        found += own
    assert sorted(set(found)) == list(range(5, 5 + count))
    assert len(pieces) == 1 if count <= room else len(found) > count  # neighbours overlap
    assert [piece.input for piece in pieces] == [0] * len(pieces)


def test_chunks_of_several_texts_keep_their_text() -> None:
    tokenization = Tokenization(word_tokenizer(), 5, pool_prompt=True)
    pieces = tokenization.pieces(["w1", "w1 w2 w3 w4 w5", "w9"], "", "chunk")
    assert [piece.input for piece in pieces] == [0, 1, 1, 2]


def test_a_prompt_that_leaves_one_token_or_none() -> None:
    tokenization = Tokenization(word_tokenizer(), 5, pool_prompt=True)
    pieces = tokenization.pieces(["w1 w2 w3"], "say : ", "chunk")
    assert [list(piece.ids or ())[3:-1] for piece in pieces] == [[6], [7], [8]]
    with pytest.raises(UsageError, match="fill the 4 tokens that the model takes; give a shorter prompt"):
        Tokenization(word_tokenizer(), 4, pool_prompt=True).pieces(["w1"], "say : ", "chunk")


def test_the_prompt_is_told_by_characters_where_its_last_space_merges_into_the_text() -> None:
    """Counting the prompt's own tokens gives one too many: the space is a token there, and part of the word here."""
    tokenizer = byte_tokenizer()
    counted = len(tokenizer.encode("Query: ").ids)
    tokenization = Tokenization(tokenizer, None, pool_prompt=False)
    (piece,) = tokenization.pieces(["the cat"], "Query: ")
    pooled = tokenizer.decode(list(piece.ids or ())[piece.first :])
    assert pooled.strip() == "the cat"
    assert tokenizer.decode(list(piece.ids or ())[counted:]).strip() == "cat"


@pytest.mark.parametrize("on_long", ["truncate", "chunk"])
def test_pooling_leaves_out_what_stands_before_the_text(on_long: str) -> None:
    tokenization = Tokenization(word_tokenizer(), 6, pool_prompt=False)
    pieces = tokenization.pieces(["w1", "", "w1 w2 w3 w4"], "say: ", on_long)  # type: ignore[arg-type]
    for piece in pieces:
        kept = list(piece.ids or ())[piece.first :]
        assert not {1, 3, 4} & set(kept)  # [CLS], say, :
        assert kept[-1] == 2
    without = tokenization.pieces(["w1"], "", on_long)[0]  # type: ignore[arg-type]
    assert without.first == 0
