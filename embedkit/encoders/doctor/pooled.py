"""Which token's state becomes the row, where pooling takes one: it must be a token of the text, and no padding."""

from __future__ import annotations

from typing import Any

import numpy as np

from embedkit.encoders.doctor.patient import LONG, MIDDLE, Finding, NotChecked, Patient, cosines

WHOLE = ("mean", "max", "mean_sqrt_len_tokens", "weightedmean")
MEANT = {"cls": 0, "lasttoken": -1}  # pooling -> which of the text's own tokens
EQUAL = 1e-3


def cls_on_the_left(patient: Patient) -> Finding | str:
    """Does the first position of a padded row hold the token that CLS pooling means?"""
    mode, side = patient.pooling_mode, getattr(patient.model.tokenizer, "padding_side", None)
    if side is None:
        raise NotChecked("the tokenizer pads on no side")
    if mode != "cls" or side != "left":
        return f"{mode} pooling, and the tokenizer pads on the {side}"
    first = _beside_a_longer_one(patient).states[0]
    alone, beside = patient.reference_rows([MIDDLE], 1), patient.reference_rows([MIDDLE, LONG], 2)[:1]
    at_start = cosines(first[None], _alone(patient).pooled[None])[0]
    return Finding(
        "cls-left-padding",
        f"Pooling is of the first token and the tokenizer pads on the left: beside a longer text the first position is "
        f"{patient.model.tokenizer.pad_token}, whose state has a cosine of {at_start:.4f} with the text's own, and "
        f"sentence-transformers' row one of {cosines(alone, beside)[0]:.4f} with the row alone.",
        'Set "padding_side": "right" in tokenizer_config.json. embedkit pads on the right whatever stands there; other '
        "programs do not.",
    )


def pooled_padding(patient: Patient) -> Finding | str:
    """Is the token that CLS or last-token pooling takes the first or last of the text's own?"""
    mode = patient.pooling_mode
    if mode in WHOLE:
        return f"{mode} pooling takes no single token"
    seen = _beside_a_longer_one(patient)
    if np.any(seen.pooled) and mode not in MEANT and _distance(seen).min() > EQUAL:
        return f"{mode} takes no single token"
    taken = int(np.argmin(_distance(seen)))
    if np.any(seen.pooled) and seen.own[taken]:
        return _own_token(seen, mode, taken)
    if seen.mask is None:
        why = "the tokenizer gives no attention mask (model_input_names in tokenizer_config.json), so padding counts as text"
        fix = (
            'Add "attention_mask" to model_input_names in tokenizer_config.json. embedkit makes a mask of its own; other '
            "programs do not."
        )
    else:
        why = "pooling goes by position and not by the attention mask"
        fix = "Take the last token by the mask, as sentence-transformers' Pooling does, or pad on the other side."
    where = f"position {taken} ({seen.tokens[taken]})" if np.any(seen.pooled) else "a state of zeros"
    return Finding(
        "pooled-padding",
        f"Beside a longer text {mode} pooling takes {where}, which is padding: {why}.",
        fix,
    )


def _own_token(seen: _Seen, mode: str, taken: int) -> Finding | str:
    own = np.flatnonzero(seen.own)
    text = " ".join(seen.tokens[i] for i in own)
    meant = own[MEANT[mode]] if mode in MEANT else taken
    if taken == meant:
        return f"{mode} pooling takes {seen.tokens[taken]!r} of {text!r}, also where the text is padded"
    return Finding(
        "pooled-token",
        f"Of {text!r} {mode} pooling takes {seen.tokens[taken]!r} and not {seen.tokens[meant]!r}.",
        "Look at the attention mask: one that is made of ids that are not the padding's leaves out a closing token that has the "
        "same id.",
    )


def _distance(seen: _Seen) -> Any:
    """(T,) of each token's state to the pooled row, as a share of its length."""
    return np.linalg.norm(seen.states - seen.pooled, axis=1) / max(float(np.linalg.norm(seen.pooled)), 1e-12)


class _Seen:
    """MIDDLE on its way through the modules of sentence-transformers up to pooling."""

    def __init__(self, patient: Patient, texts: list[str]) -> None:
        import torch

        model = patient.model
        features = model.preprocess(texts)
        ids = features["input_ids"][0].tolist()
        mask = features.get("attention_mask")
        self.mask: Any = None if mask is None else mask[0].numpy().astype(bool)
        self.tokens = [str(token) for token in model.tokenizer.convert_ids_to_tokens(ids)]
        with torch.inference_mode():
            for module in model.children():
                features = module(features)
                if module is patient.pooling:
                    break
        self.states = features["token_embeddings"][0].float().numpy()  # (T, H)
        self.pooled = features["sentence_embedding"][0].float().numpy()  # (H,)
        self.ids = ids
        self.own = np.ones(len(ids), dtype=bool)  # which positions hold the text's own tokens


def _alone(patient: Patient) -> _Seen:
    return _Seen(patient, [MIDDLE])


def _beside_a_longer_one(patient: Patient) -> _Seen:
    """Padded; told from its tokens alone, for the mask may be what is wrong."""
    alone, padded = _alone(patient), _Seen(patient, [MIDDLE, LONG])
    count = len(alone.ids)
    positions = np.arange(len(padded.ids))
    on_the_right = padded.ids[:count] == alone.ids  # where padding stands
    padded.own = positions < count if on_the_right else positions >= len(padded.ids) - count
    if padded.own.all():
        raise NotChecked("no text is longer than another once it is cut")
    return padded
