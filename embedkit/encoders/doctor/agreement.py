"""Rows as numbers: finite at full length in each dtype, and the same whichever backend computes them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from embedkit.encoders.doctor.patient import (
    DIFFERENT,
    LONG,
    MIDDLE,
    SHORT,
    Finding,
    NotChecked,
    Patient,
    cosines,
    embedkit_rows,
)
from embedkit.encoders.routes import is_routed
from embedkit.types import Kind

DTYPES = ("float32", "bfloat16", "float16")
LARGEST = 65504.0  # the largest number of float16
FULL = 2048  # tokens; a longer limit is tried so far, for attention costs the square of it
TEXTS = (SHORT, MIDDLE, "a", "Plants store energy as starch.", LONG)


def overflow(patient: Patient) -> Finding | str:
    """Are rows numbers at full length, in every dtype that `load` offers?"""
    limit = patient.max_tokens() or FULL
    tried = min(limit, FULL)
    texts = [patient.long_text(tried)]
    if patient.reference is None:
        return _finite_as_loaded(patient)
    model = patient.model
    if not hasattr(model[0], "auto_model"):
        raise NotChecked("the model has no transformer")
    own = model.max_seq_length
    model.max_seq_length = tried
    try:
        where, largest = _largest_state(model, texts)
        broken = [dtype for dtype in DTYPES if not np.isfinite(_row(model, dtype, texts)).all()]
    finally:
        model.max_seq_length = own
    length = f"{tried:,} tokens" if tried == limit else f"{tried:,} of {limit:,} tokens"
    if broken:
        return Finding(
            "overflow" if broken == ["float16"] else "not-finite",
            f"At {length} rows are NaN or infinite in {' and '.join(broken)}: the largest state is {largest:,.0f} in {where} "
            f"(float16 ends at {LARGEST:,.0f}).",
            "Load with dtype='bfloat16', which has the range of float32, or 'float32'."
            if broken == ["float16"]
            else "The weights themselves are wrong: fetch or export them again.",
        )
    return f"rows are numbers at {length} in {', '.join(DTYPES)}; the largest state is {largest:,.1f} in {where}"


def _finite_as_loaded(patient: Patient) -> Finding | str:
    for voice in patient.voices:
        if not np.isfinite(voice.rows(DIFFERENT, 1)).all():
            return Finding(
                "not-finite", f"Rows of {voice.name} are NaN or infinite.", "Fetch or export the weights again."
            )
    return "rows of short texts are numbers"


def _row(model: Any, dtype: str, texts: list[str]) -> Any:
    import torch

    from embedkit.encoders.torch_backend import DTYPES as TORCH_DTYPES
    from embedkit.encoders.torch_backend import cast

    if dtype == "float32":
        return model.encode(texts, prompt="", show_progress_bar=False, task="document")
    lower = copy.deepcopy(model)
    cast(lower, TORCH_DTYPES[dtype])
    with torch.inference_mode():
        features = lower.preprocess(texts, task="document")
        return lower(features, task="document")["sentence_embedding"].float().numpy()


def _largest_state(model: Any, texts: list[str]) -> tuple[str, float]:
    """The module whose output holds the largest absolute number, and that number."""
    import torch

    found: dict[str, float] = {}

    def watch(name: str) -> Callable[..., None]:
        def keep(module: Any, inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.is_floating_point() and output.numel():
                found[name] = max(found.get(name, 0.0), float(output.abs().max()))

        return keep

    hooks = [module.register_forward_hook(watch(name)) for name, module in model[0].auto_model.named_modules() if name]
    model.encode(texts, prompt="", show_progress_bar=False, task="document")
    for hook in hooks:
        hook.remove()
    where = max(found, key=lambda name: found[name], default="")
    return where, found.get(where, 0.0)


def backends(patient: Patient) -> Finding | str:
    """Are embedkit's rows those of sentence-transformers, with the prompt of each kind?"""
    if patient.encoder is None:
        raise NotChecked("a model in memory has one backend")
    encoder = patient.encoder
    voice = patient.voices[0]
    backend = f"{encoder.compute['backend']}, {encoder.compute['dtype']}"
    routed = is_routed(patient.model)
    # sentence-transformers leaves out as many tokens as the prompt has alone
    counted = not routed and not getattr(patient.pooling, "include_prompt", True)
    both = encoder.prompts["query"] or routed
    kinds: list[Kind] = ["query", "document"] if both else ["document"]
    least = 1.0
    for kind in kinds:
        prompt = encoder.prompts[kind]
        if prompt and counted:
            raise NotChecked(
                "prompts are left out of pooling, which sentence-transformers does by counting their tokens alone"
            )
        rows = embedkit_rows(encoder, TEXTS, len(TEXTS), kind)
        found = cosines(rows, patient.reference_rows(TEXTS, 1, prompt, kind)[:, : encoder.dim])
        worst = int(np.argmin(np.nan_to_num(found, nan=-1.0)))
        if not found[worst] >= voice.same:
            return Finding(
                "backends-disagree",
                f"embedkit's row of the {kind} {TEXTS[worst][:40]!r} ({backend}, prompt {prompt!r}) has a cosine of "
                f"{found[worst]:.4f} with sentence-transformers' in float32.",
                "Load with backend='torch' and dtype='float32', and see whether it stays; please report the model.",
            )
        least = min(least, float(found[worst]))
    return f"{backend} and sentence-transformers in float32: least cosine {least:.6f}"
