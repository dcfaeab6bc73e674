"""What libraries raise over a model becomes one sentence; what is not the model's fault passes."""

from __future__ import annotations

import errno

import pytest

from embedkit.encoders.foreign import as_model_error
from embedkit.errors import DataError, ModelError


class Panic(BaseException):
    """As pyo3's, no Exception."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Panic("index out of bounds\nnote: run with"), "m cannot: index out of bounds. Do this."),
        (RuntimeError("Exception from src/core.cpp:1:\n\nshapes differ.\n"), "m cannot: shapes differ. Do this."),
        (ZeroDivisionError(), "m cannot: ZeroDivisionError. Do this."),
        (OSError(errno.EACCES, "Permission denied", "x"), "m cannot: [Errno 13] Permission denied: 'x'. Do this."),
        (AssertionError("\x1b[31mred"), "m cannot: \\u001b[31mred. Do this."),
    ],
    ids=str,
)
def test_an_error_of_a_library_is_one_sentence(error: BaseException, said: str) -> None:
    with pytest.raises(ModelError) as caught, as_model_error("m cannot", "Do this."):
        raise error
    assert str(caught.value) == said and caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        DataError("ours"),
        KeyboardInterrupt(),
        SystemExit(3),
        MemoryError(),
        RuntimeError("std::bad_alloc"),
        OSError(errno.ENOSPC, "No space left"),
        OSError(errno.EMFILE, "Too many open files"),
    ],
    ids=repr,
)
def test_what_says_nothing_of_the_model_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, as_model_error("m cannot", "Do this."):
        raise error
    assert caught.value is error
