"""What the tokenizer makes of texts: the closing token, which many decoders' rows are read from, and what it does not know."""

from __future__ import annotations

import numpy as np

from embedkit.encoders.doctor.patient import SHORT, WORDS, Finding, NotChecked, Patient
from embedkit.encoders.vocabulary import FINDING, FIX, TokenWithoutRow, embeddings, last_token

SCRIPTS = {
    "English": "the house stands on the hill",
    "accented Latin": "garçon über señor żółw øre",
    "Russian": "дом стоит на холме",
    "Greek": "το σπίτι στέκεται στο λόφο",
    "Arabic": "البيت يقف على التل",
    "Hindi": "घर पहाड़ी पर खड़ा है",
    "Thai": "บ้าน ตั้ง อยู่ บน เนิน เขา",
    "Chinese": "房 子 站 在 山 上",
    "Japanese": "いえ は おか の うえ",
    "Korean": "집은 언덕 위에 있다",
    "emoji": "🏠 🐈 🎉 🚀",
    "digits and signs": "12 % of 3,400 (a + b) = c",
}
STARTS = (0, 1, 2, 4)  # a text from several places on, so that no letter stands at the cut by chance each time
REAL = 1000  # tokens; a smaller vocabulary is a toy that knows few words on purpose


def closing_token(patient: Patient) -> Finding | str:
    """Does each text end in exactly one closing token (EOS, [SEP]), also where it was cut?"""
    short = [patient.tokens(word) for word in WORDS]
    last = {tokens[-1] for tokens in short if tokens}
    if len(last) != 1:
        return _no_closing_token(patient, short[0])
    closing = last.pop()
    if all(len(tokens) > 1 and tokens[-2] == closing for tokens in short):
        return Finding(
            "eos-repeated",
            f"A text ends in {closing!r} twice: {SHORT!r} is read as {' '.join(short[0])!r}.",
            "Remove one of the two places that add it: the post-processor of tokenizer.json, add_eos_token, or a chat template.",
        )
    limit = patient.max_tokens()
    if limit is None:
        return f"every text ends in {closing!r}; the model has no limit to cut at"
    long = patient.long_text(limit)
    ends = [patient.tokens(long[start:])[-1] for start in STARTS]
    if other := next((end for end in ends if end != closing), None):
        return Finding(
            "eos-cut",
            f"A short text ends in {closing!r}, one that was cut at {limit} tokens in {other!r}.",
            "Let the post-processor of tokenizer.json add the closing token: it is then added after the text is cut to "
            "leave room for it.",
        )
    return f"every text ends in one {closing!r}, also cut at {limit} tokens"


def _no_closing_token(patient: Patient, tokens: list[str]) -> Finding | str:
    if patient.reference is None or patient.pooling_mode != "lasttoken":
        return "no closing token, and pooling does not take the last one"
    named = getattr(patient.model.tokenizer, "eos_token", None)
    return Finding(
        "eos-missing",
        f"Pooling takes the last token and texts end in their own last word: {SHORT!r} is read as {' '.join(tokens)!r}.",
        f"Let the post-processor of tokenizer.json add {named or 'an EOS token'} (add_eos_token in tokenizer_config.json), if "
        f"the model was trained with it; another pooling otherwise.",
    )


def without_row(error: TokenWithoutRow) -> Finding:
    """What `load` refuses."""
    return Finding(FINDING, error.evidence, FIX)


def unknown_tokens(patient: Patient) -> Finding | str:
    """Has every token of the tokenizer an embedding, and does it know the words of the prompts and of any script?"""
    tokenizer = patient.model.tokenizer
    if tokenizer is None or not hasattr(tokenizer, "unk_token_id"):
        raise NotChecked("the model has no tokenizer")
    token, number = last_token(tokenizer)
    if number >= (rows := embeddings(patient.transformer) or len(tokenizer)):
        return without_row(TokenWithoutRow(patient.name, token, number, rows))
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return "the tokenizer reads any bytes"

    def share(text: str) -> float:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return float(np.mean(np.array(ids) == unknown)) if ids else 0.0

    for name, text in patient.prompts()[0].items():
        if len(tokenizer) >= REAL and text.strip() and share(text):
            return Finding(
                "unknown-tokens",
                f"The tokenizer does not know {share(text):.0%} of the tokens of the prompt {name!r} ({text!r}).",
                "Check that tokenizer and prompts belong to this model.",
            )
    strange = [script for script, text in SCRIPTS.items() if share(text) > 0.5]
    if len(tokenizer) < REAL:
        return f"a vocabulary of {len(tokenizer)} tokens: too small to judge by words"
    if len(strange) == len(SCRIPTS):
        return Finding(
            "unknown-tokens",
            f"The tokenizer does not know most tokens of any script that was tried ({', '.join(strange)}).",
            "Check that tokenizer.json belongs to this model, and its normalizer: lower-casing, accents.",
        )
    return f"more than half unknown: {', '.join(strange)}" if strange else f"reads all of {', '.join(SCRIPTS)}"
