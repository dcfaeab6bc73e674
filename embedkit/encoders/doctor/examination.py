"""All checks on one model: what was found, what was seen to be well, and what could not be checked."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from embedkit.encoders.doctor.checks import CHECKS
from embedkit.encoders.doctor.first_look import no_first_look
from embedkit.encoders.doctor.patient import Finding, NotChecked, Patient
from embedkit.encoders.doctor.tokens import without_row
from embedkit.encoders.foreign import quiet
from embedkit.encoders.loading import load, open_reference
from embedkit.encoders.text_encoder import TextEncoder
from embedkit.encoders.vocabulary import TokenWithoutRow


@dataclass(frozen=True)
class Examination:
    """What the doctor says of a model.

    findings: what is wrong, in the order of the checks, and each check that failed. seen: check -> what was measured where
    nothing is wrong.
    not_checked: check -> why it says nothing.
    """

    model: str
    findings: list[Finding] = field(default_factory=list)
    seen: dict[str, str] = field(default_factory=dict)
    not_checked: dict[str, str] = field(default_factory=dict)


def doctor(model: Any = None, **options: Any) -> Examination:
    """Tries what may be wrong with a model although it opens: the direction of attention, padding and batches, prompts,
    the pooled token, the closing token, the norm, overflow at full length, agreement with sentence-transformers, the
    vocabulary.

    model: a folder, a hub id, None for the default model, what `embedkit.load` returned, or a SentenceTransformer in
    memory, which is copied. options: of `embedkit.load`, where it is a name. Nothing is fetched but the model itself.
    Cost: the model is opened twice, the second time in float32 by sentence-transformers on the CPU.
    Raises what `embedkit.load` raises.
    """
    try:
        return examine(patient_of(model, **options))
    except TokenWithoutRow as error:
        return Examination(str(model), findings=[without_row(error)])


def patient_of(model: Any = None, **options: Any) -> Patient:
    """See `doctor`."""
    if hasattr(model, "preprocess") and hasattr(model, "children"):  # a SentenceTransformer
        return Patient("the model in memory", None, lambda: copy.deepcopy(model).cpu().float().eval())
    trusted = bool(options.get("trust_remote_code"))
    with no_first_look():
        encoder = model if isinstance(model, TextEncoder) else load(model, **options)
    return Patient(encoder.name, encoder, lambda: open_reference(encoder, trusted=trusted))


def examine(patient: Patient) -> Examination:
    """Runs every check, but those whose finding would follow from one already made."""
    examination = Examination(patient.name)
    for check in CHECKS:
        cause = next((finding.name for finding in examination.findings if finding.name in check.follows), None)
        if cause is not None:
            examination.not_checked[check.name] = f"it would only show {cause} again"
            continue
        try:
            with quiet():
                result = check.run(patient)
        except NotChecked as reason:
            examination.not_checked[check.name] = str(reason)
            continue
        except Exception as error:  # what a library raises on a model that it does not know says little of the model
            result = Finding(
                check.name,
                f"The check failed ({type(error).__name__}: {str(error).strip()[:200]}).",
                "Try it with dtype float32.",
            )
        if isinstance(result, Finding):
            examination.findings.append(result)
        else:
            examination.seen[check.name] = result
    return examination
