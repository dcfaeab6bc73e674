"""The exit codes are a promise to scripts; the kinds are a promise to Python callers."""

from __future__ import annotations

import pytest

from embedkit import errors


@pytest.mark.parametrize(
    ("name", "code", "also"),
    [
        ("EmbedkitError", 1, Exception),
        ("UsageError", 2, ValueError),
        ("MissingDependency", 2, ImportError),
        ("DataError", 3, ValueError),
        ("ModelError", 4, RuntimeError),
        ("IntegrityError", 5, RuntimeError),
        ("ModelMismatch", 5, errors.IntegrityError),
        ("Infeasible", 6, RuntimeError),
        ("Stopped", 75, RuntimeError),
    ],
)
def test_each_error_has_its_exit_code_and_is_of_the_kind_that_python_callers_expect(
    name: str, code: int, also: type[Exception]
) -> None:
    error = getattr(errors, name)("one sentence")
    assert error.exit_code == code
    assert isinstance(error, also)
    assert isinstance(error, errors.EmbedkitError)
    assert str(error) == "one sentence"


def test_a_fault_of_the_data_is_no_fault_of_the_call() -> None:
    """Both are ValueErrors, and a caller who catches one must not catch the other."""
    assert not issubclass(errors.DataError, errors.UsageError)
    assert not issubclass(errors.UsageError, errors.DataError)
