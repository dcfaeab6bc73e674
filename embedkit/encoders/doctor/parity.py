"""Are the rows of another server, library or backend those of this model, and if not, what does it do otherwise?

The same texts go through both. Where rows differ, the model is computed in the ways that servers get wrong, and the one that
gives the other side's rows is the diagnosis. Cost: some ten passes of eleven texts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from embedkit.encoders.doctor.endpoint import endpoint_rows, is_url
from embedkit.encoders.doctor.first_look import no_first_look
from embedkit.encoders.doctor.patient import Finding, cosines
from embedkit.encoders.doctor.variants import Bench, variants
from embedkit.encoders.loading import load, open_reference
from embedkit.encoders.text_encoder import TextEncoder
from embedkit.errors import UsageError
from embedkit.types import Vectors
from embedkit.vectors import unit_rows

SAME = 0.999  # cosine; half precision on one side stays above it
UNIT = 1e-2  # how far the length of a row may be from 1
_STORY = (
    "A ferry leaves the harbour at six and carries bread, letters, two dogs and a teacher to the island, where the school "
    "has nine pupils, a garden of cabbages, and a bell that was cast from an old anchor. "
)
TEXTS = (
    "cat",
    "Plants store energy as starch.",
    "How do birds find their way home?",
    "ERROR 404: the page was not found",
    "Zürich liegt an der Limmat, nicht am Rhein.",
    "The bank raised its rates by 0.25 % on 12 March, as most had expected.",
    *(
        " ".join((_STORY * 16).split()[start : start + count])
        for start, count in ((2, 24), (5, 48), (9, 96), (3, 192), (7, 384))
    ),
)


@dataclass(frozen=True)
class Parity:
    """How two sides agree on TEXTS.

    cosine: the least of any text. agreement: the share of texts whose nearest other text is the same on both sides.
    findings: what the other side does otherwise; none where rows are the same. tried: variant -> its least cosine.
    """

    model: str
    against: str
    cosine: float
    agreement: float
    findings: list[Finding]
    tried: dict[str, float] = field(default_factory=dict)


def parity(model: Any, against: str, **options: Any) -> Parity:
    """Compares the rows of documents.

    model, options: as of `embedkit.load`; dtype is float32 where it is left out. against: the URL of a server with OpenAI's
    embeddings schema, "sentence-transformers", "openvino" or "torch" (this model again), or another model's folder or hub id.
    Raises UsageError where the other side cannot be asked, ModelError where a model cannot be opened.
    """
    with no_first_look():
        encoder = model if isinstance(model, TextEncoder) else load(model, **{"dtype": "float32", **options})
        theirs = _other_side(encoder, against, options)(list(TEXTS))
    ours = encoder.encode(TEXTS)
    if not np.isfinite(theirs).all():
        raise UsageError(f"{against} gave rows with NaN or infinity; examine it before comparing.")
    findings = _of_width(ours.shape[1], theirs.shape[1]) + _of_length(encoder, theirs)
    cosine = float(cosines(ours, theirs).min())
    tried: dict[str, float] = {}
    if cosine < SAME:
        cause, tried = _diagnosis(encoder, against, theirs, cosine, trusted=bool(options.get("trust_remote_code")))
        findings.append(cause)
    return Parity(encoder.name, against, cosine, _agreement(ours, theirs), findings, tried)


def _other_side(encoder: TextEncoder, against: str, options: dict[str, Any]) -> Callable[[list[str]], Vectors]:
    if is_url(against):
        return lambda texts: endpoint_rows(against, encoder.name, texts)
    if against == "sentence-transformers":
        reference = open_reference(encoder, trusted=bool(options.get("trust_remote_code")))
        return lambda texts: np.asarray(
            reference.encode(texts, prompt=encoder.prompts["document"], show_progress_bar=False, task="document"),
            dtype=np.float32,
        )
    if against in ("openvino", "torch"):
        again = {"dtype": "float32", **options, "backend": against}
        return load(**{**encoder.settings, **again, "model": encoder.settings.get("model", encoder.name)}).encode
    return load(against, dtype="float32").encode


def _of_width(ours: int, theirs: int) -> list[Finding]:
    if ours == theirs:
        return []
    return [
        Finding(
            "dimensions",
            f"The other side gives {theirs} dimensions, this model {ours}.",
            "Check that both are the same model, and that neither cuts its rows (dim, dimensions).",
        )
    ]


def _of_length(encoder: TextEncoder, theirs: Vectors) -> list[Finding]:
    lengths = np.linalg.norm(theirs.astype(np.float64), axis=1)
    if not encoder.unit or np.all(np.abs(lengths - 1) <= UNIT):
        return []
    return [
        Finding(
            "not-normalised",
            f"The other side's rows have lengths of {lengths.min():.3f} to {lengths.max():.3f}, this model's are unit.",
            "Divide its rows by their lengths (or set its option to normalise), or compare by cosine and never by dot product.",
        )
    ]


def _agreement(ours: Vectors, theirs: Vectors) -> float:
    return float(np.mean(_nearest(ours) == _nearest(theirs)))


def _nearest(rows: Vectors) -> Any:
    """(n,) the other row that is closest by cosine."""
    unit = unit_rows(rows)
    scores = unit @ unit.T
    np.fill_diagonal(scores, -np.inf)
    return scores.argmax(axis=1)


def _diagnosis(
    encoder: TextEncoder, against: str, theirs: Vectors, cosine: float, *, trusted: bool
) -> tuple[Finding, dict[str, float]]:
    """The variant that gives the other side's rows, and the least cosine of each that was tried."""
    bench = Bench(open_reference(encoder, trusted=trusted), TEXTS, encoder.prompts["document"])
    tried: dict[str, float] = {}
    closest, nearest = None, -2.0
    for variant in variants(bench, encoder.stored_prompts, theirs, SAME):
        tried[variant.name] = least = float(cosines(variant.rows, theirs).min())
        if least > nearest:
            closest, nearest = variant, least
    if closest is not None and nearest >= SAME:
        said = f"The other side {closest.said}: so computed the least cosine is {nearest:.4f}, as it is {cosine:.4f}."
        return Finding(closest.name, said, closest.fix), tried
    return Finding(
        "unexplained",
        f"The least cosine is {cosine:.4f}, and no variant of the model gives {against}'s rows; the closest"
        f"{'' if closest is None else f', {closest.name},'} comes to {nearest:.4f}.",
        "Check that both sides have the same weights (name, revision) and precision: int8 alone costs 0.01 to 0.05.",
    ), tried
