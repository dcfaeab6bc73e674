"""Terms of texts, against hand-made lists, Snowball's own stems and the slower of two patterns."""

from __future__ import annotations

import unicodedata

import pytest
import regex
import Stemmer

from embedkit.index import tokens
from embedkit.index.manifest import Bm25
from embedkit.index.tokens import Analyzer, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Whale, 1851!", ["the", "whale", "1851"]),
        ("don't can’t O'Brien's", ["don't", "can't", "o'brien's"]),
        ("snake_case x86-64 3.14", ["snake_case", "x86", "64", "3", "14"]),
        ("café CAFE\u0301 ﬁne ①", ["café", "café", "fine", "1"]),
        ("Straße STRASSE ΣΊΣΥΦΟΣ", ["strasse", "strasse", "σίσυφοσ"]),
        ("हिन्दी की किताब", ["हिन्दी", "की", "किताब"]),
        ("кот и собака", ["кот", "и", "собака"]),
        ("手机", ["手机"]),
        ("手", ["手"]),
        ("我喜欢iPhone手机壳。", ["我喜", "喜欢", "iphone", "手机", "机壳"]),
        ("コーヒーを", ["コー", "ーヒ", "ヒー", "ーを"]),
        ("한국어 책", ["한국", "국어", "책"]),
        ("สวัสดี", ["สว", "วั", "ัส", "สด", "ดี"]),
        ("Wert\u00adpapier\u00adindex", ["wertpapierindex"]),
        ("data\u2060base inter\ufeffface \ufeffstart left\u200eright", ["database", "interface", "start", "leftright"]),
        (
            "Auf\u200clage c\u034fo te\u0301\ufe0fst \u0441\u200d\u043b\u043e\u0432\u043e",
            ["auflage", "co", "t\u00e9st", "слово"],
        ),
        ("\u0130stanbul \u0130zmir I\u0307\u00e7", ["istanbul", "izmir", "i\u00e7"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),  # spelling, in Persian
        ("one\u200btwo", ["one", "two"]),
        ("...!? —", []),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_the_faster_pattern_finds_what_the_slower_one_finds() -> None:
    """On every character that it is used for, beside letters."""
    for code in range(0x2400):
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", f"a{chr(code)}b").casefold())
        if tokens.PLAIN.fullmatch(folded):
            assert tokens.IN_PLAIN.findall(folded) == tokens.ANYWHERE.findall(folded), hex(code)


def test_what_is_invisible_is_what_unicode_says() -> None:
    ignorable = regex.compile(r"\p{Default_Ignorable_Code_Point}")
    expected = {code for code in range(0x110000) if ignorable.match(chr(code))} - {0x200B, 0x200C, 0x200D}
    assert {code for first, last in tokens.INVISIBLE for code in range(first, last + 1)} == expected


def test_terms_are_stems_without_stop_words() -> None:
    analyzer, stemmer = Analyzer(Bm25()), Stemmer.Stemmer("english")
    text = "It is the running of the ships that sailed for their harbours"
    assert analyzer.terms(text) == [stemmer.stemWord(word) for word in ["running", "ships", "sailed", "harbours"]]
    assert analyzer.terms("It's the captain's being") == ["captain", "be"]
    assert Analyzer(Bm25(stem="none", stop="none")).terms("It's running") == ["it's", "running"]
    assert Analyzer(Bm25(stem="german", stop="none")).terms("Häuser") == [Stemmer.Stemmer("german").stemWord("häuser")]


def test_numbers_and_terms_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "KEPT", 3)  # what is forgotten is found again
    analyzer = Analyzer(Bm25())
    texts = ["whales and ships", "", "the ship, the WHALE'S ship", "x" * 1000]
    names, numbers, places = analyzer.numbered(texts)
    found = [[names[n] for n, place in zip(numbers, places, strict=True) if place == at] for at in range(len(texts))]
    assert (
        found
        == [analyzer.terms(text) for text in texts]
        == [["whale", "ship"], [], ["ship", "whale", "ship"], ["x" * 255]]
    )
