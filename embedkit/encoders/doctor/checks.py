"""The checks, one function each: a Patient -> the Finding, or one sentence on what was seen.

They go by what the model does, and read its settings only for what it claims to do. Nothing here imports torch by itself:
`load` runs those that need no second copy of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from embedkit.encoders.attention import direction
from embedkit.encoders.doctor.agreement import backends, overflow
from embedkit.encoders.doctor.patient import DIFFERENT, SHORT, WORDS, Finding, Patient
from embedkit.encoders.doctor.pooled import cls_on_the_left, pooled_padding
from embedkit.encoders.doctor.tokens import closing_token, unknown_tokens
from embedkit.encoders.prompts import NAMES
from embedkit.encoders.text_encoder import TextEncoder
from embedkit.types import Kind

UNIT = 1e-3  # how far a row's length may be from 1


class Check(NamedTuple):
    """A check, and the findings from which its own would follow, so that it is left out beside one of them."""

    name: str
    run: Callable[[Patient], Finding | str]
    follows: tuple[str, ...] = ()


def attention_direction(patient: Patient) -> Finding | str:
    """Does attention run the way the config declares?"""
    found = patient.attention
    moves = f"changing the later tokens moves the first token's state by {found.alone:.1%}"
    if found.declared in (None, found.runs):
        says = "as declared" if found.declared else "and no setting says otherwise"
        return f"{found.runs}, {says}: {moves}"
    fix = (
        'Write "is_causal": false into config.json (for a vision model into its text_config) and load with '
        "transformers 5.2 or later; a keyword of from_pretrained is dropped in silence."
        if found.declared == "bidirectional"
        else "Remove the flag from config.json, or load the class that reads it."
    )
    return Finding(
        "attention-direction", f"The config declares {found.declared} attention and it runs {found.runs}: {moves}.", fix
    )


def attention_padding(patient: Patient) -> Finding | str:
    """Is the direction the same in a batch with padding?"""
    found = patient.attention
    alone, padded = direction(found.alone), direction(found.padded)
    if alone == padded:
        return f"{alone} in a batch without padding and in one with it"
    return Finding(
        "attention-padding",
        f"Attention is {alone} in a batch without padding and {padded} beside a longer text: the first token's state moves "
        f"by {found.alone:.1%} and {found.padded:.1%}, so a row depends on its neighbours.",
        'Set the direction in the config ("is_causal": false, transformers 5.2 or later) and not on the layers: fused '
        "attention reads a layer's flag only where there is no padding.",
    )


def padding(patient: Patient) -> Finding | str:
    """Has a text the same row alone and beside a longer one?"""
    least = 1.0
    for voice in patient.voices:
        cosine, same = voice.in_company(DIFFERENT)
        if not same:
            return Finding(
                "padding-dependence",
                f"Beside a longer text the row that {voice.name} gives a text has a cosine of {cosine:.4f} with its row alone.",
                "Pad on the right where positions are absolute (padding_side in tokenizer_config.json), and see that the "
                "attention mask reaches attention, positions and pooling.",
            )
        least = min(least, cosine)
    return f"a text alone and beside a longer one: least cosine {least:.6f}"


def batch(patient: Patient) -> Finding | str:
    """Has a text the same row alone and among others of its length, without padding?"""
    least = 1.0
    for voice in patient.voices:
        cosine, same = voice.in_company(WORDS)
        if not same:
            return Finding(
                "batch-dependence",
                f"In a batch of {len(WORDS)} the row that {voice.name} gives a text has a cosine of {cosine:.4f} with its row alone.",
                "Look for a module that mixes the rows of a batch (a batch norm left in training mode, a cache), and call "
                "eval() on it.",
            )
        least = min(least, cosine)
    return f"a text alone and in a batch of {len(WORDS)}: least cosine {least:.6f}"


def prompt(patient: Patient) -> Finding | str:
    """Is each kind's prompt applied, and none stored that no kind takes?"""
    stored, taken = patient.prompts()
    named = {name: text for name, text in stored.items() if text}
    if not named:
        return "the model stores no prompt"
    for kind, text in taken.items():
        if text and patient.encoder is not None and _leaves_rows_alone(patient.encoder, kind):
            return Finding(
                "prompt-never-applied",
                f"With its prompt {text!r} a {kind} has the same row as without it.",
                "See that the tokenizer keeps the prompt's words and that the model attends to them.",
            )
    idle = [name for name, text in named.items() if text not in taken.values()]
    lacking = [kind for kind in taken if not taken[kind]]
    meant = [name for name in idle if not any(taken.values()) or any(_is_for(name, kind) for kind in lacking)]
    if meant:
        return Finding(
            "prompt-never-applied",
            f"The prompt {meant[0]!r} ({named[meant[0]]!r}) is stored and neither kind of input takes it: queries take the "
            f"one named 'query', documents 'document', 'passage' or 'corpus'.",
            f"Give it one of those names in config_sentence_transformers.json, or load with "
            f"prompt_names={{{_kind_of(meant[0])!r}: {meant[0]!r}}} (--prompt-name {meant[0]}).",
        )
    return "; ".join(f"a {kind} takes {text!r}" if text else f"a {kind} takes none" for kind, text in taken.items())


def _leaves_rows_alone(encoder: TextEncoder, kind: Kind) -> bool:
    with_it, without = encoder.encode([SHORT], kind=kind), encoder.encode([SHORT], prompt="")
    return bool(np.array_equal(with_it, without))


def _is_for(name: str, kind: Kind) -> bool:
    words = (*NAMES[kind], "question") if kind == "query" else NAMES[kind]
    return any(word in name.lower() for word in words)


def _kind_of(name: str) -> Kind:
    return "document" if _is_for(name, "document") else "query"


def norm(patient: Patient) -> Finding | str:
    """Are rows unit where the model says so?"""
    seen = []
    for voice in patient.voices:
        rows = voice.rows(DIFFERENT, 1)
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
        span = f"{lengths.min():.3f} to {lengths.max():.3f}"
        unit = (np.abs(lengths - 1) <= UNIT) | (lengths == 0)  # a text of which nothing is known has no direction
        if _declared_unit(patient, voice.name) and not np.all(unit):
            return Finding(
                "norm",
                f"The model declares unit rows ({_declared_unit(patient, voice.name)}) and those of {voice.name} have lengths of "
                f"{span}.",
                "Let Normalize be the last module of modules.json, or remove it and compare by cosine.",
            )
        seen.append(f"{voice.name} {span}")
    return f"lengths of rows: {', '.join(seen)}"


def _declared_unit(patient: Patient, voice: str) -> str:
    """What says that rows are unit; empty where nothing does."""
    if voice == "embedkit":
        return "similarity cosine, or a norm" if patient.encoder is not None and patient.encoder.unit else ""
    names = [type(module).__name__ for module in patient.model.children()]
    return " → ".join(names) if any("Normalize" in name for name in names) else ""


CHECKS = (
    Check("overflow", overflow),
    Check("attention direction", attention_direction, follows=("not-finite",)),
    Check("attention and padding", attention_padding, follows=("not-finite",)),
    Check("padding side", cls_on_the_left, follows=("not-finite",)),
    Check("pooled token", pooled_padding, follows=("not-finite",)),
    Check("padding", padding, follows=("not-finite", "attention-padding", "cls-left-padding", "pooled-padding")),
    Check("batch", batch, follows=("not-finite", "pooled-padding")),
    Check("prompt", prompt, follows=("not-finite",)),
    Check("closing token", closing_token),
    Check("norm", norm, follows=("not-finite",)),
    Check("backends", backends, follows=("not-finite", "attention-padding")),
    Check("vocabulary", unknown_tokens),
)
CHEAP = tuple(  # need no second copy of the model
    check for check in CHECKS if check.name not in ("padding side", "pooled token", "backends", "vocabulary")
)
