"""The cheap part of the doctor, which `load` runs on a model that this machine has not met, and the record of those it has.

The record is one small file in the folder where the hub's client keeps its things, and only where that folder is there
already: a machine on which nothing was ever fetched keeps its home as it is, and looks again at every load. It holds what was
found, which later loads say again. The default model is known and never looked at. Cost of a look: a few short texts; of a
remembered one: a file read.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TypedDict

from embedkit.encoders.attention import Attention
from embedkit.encoders.doctor.checks import CHEAP
from embedkit.encoders.doctor.patient import Finding, NotChecked, Patient
from embedkit.encoders.text_encoder import TextEncoder
from embedkit.errors import EmbedkitError
from embedkit.storage import read_json, write_json
from embedkit.version import __version__


class _Seen(TypedDict):
    models: dict[str, list[tuple[str, str, str]]]


KEPT = 500  # models in the record; the oldest are forgotten first
_asked_for = ContextVar("a full examination was asked for", default=False)
logger = logging.getLogger(__name__)


def first_look(encoder: TextEncoder, attention: Attention | None) -> None:
    """Says in a log line what is wrong with a model, as far as few short texts show it. Never fails a load."""
    if _asked_for.get():
        return
    key = _key(encoder)
    known = _recorded()
    if key not in known:
        known[key] = _looked(Patient(encoder.name, encoder, None, attention))
        _record(known)
    for name, evidence, fix in known[key]:
        logger.warning("%s: %s %s (%s; `embedkit doctor` says more.)", encoder.name, evidence, fix, name)


@contextmanager
def no_first_look() -> Iterator[None]:
    """Loads without it, for the doctor looks at the model by itself."""
    token = _asked_for.set(True)
    try:
        yield
    finally:
        _asked_for.reset(token)


def _looked(patient: Patient) -> list[Finding]:
    found: list[Finding] = []
    for check in CHEAP:
        try:
            result = check.run(patient)
        except NotChecked:
            continue
        except Exception as error:  # a model that can be loaded is loaded
            logger.debug("%s: the check of %s failed: %s", patient.name, check.name, error)
            continue
        if isinstance(result, Finding) and not {finding.name for finding in found} & set(check.follows):
            found.append(result)
    return found


def _key(encoder: TextEncoder) -> str:
    """A space and how it is computed: other libraries, another dtype or another embedkit are a new meeting."""
    compute = {name: value for name, value in encoder.compute.items() if name not in ("threads", "batch_tokens")}
    facts = [encoder.fingerprint, compute, __version__]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def record_path() -> Path | None:
    """Where the record is or would be; None where the hub's client has no folder on this machine."""
    from huggingface_hub.constants import HF_HOME

    folder = Path(HF_HOME)
    return folder / "embedkit" / "seen.json" if folder.is_dir() else None


def _recorded() -> dict[str, list[Finding]]:
    """Key -> findings, oldest first; empty where there is no record that can be read."""
    path = record_path()
    try:
        models = read_json(path, _Seen)["models"] if path else {}
        return {key: [Finding(*finding) for finding in findings] for key, findings in models.items()}
    except (OSError, EmbedkitError):
        return {}


def _record(known: dict[str, list[Finding]]) -> None:
    """Two that write at once may forget one of two models, which is then looked at again."""
    path = record_path()
    if path is None:
        return
    try:
        write_json(path, {"models": dict(list(known.items())[-KEPT:])})
    except (OSError, EmbedkitError) as error:  # not writable, full, or another is writing
        logger.debug("The first look could not be recorded: %s", error)
