"""Windows of texts through a backend that is a few lines: what comes back, in which order, and what happens when memory
runs out or a row is no number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from embedkit.encoders.backend import Batch
from embedkit.encoders.pieces import Tokenization
from embedkit.encoders.windows import Run
from embedkit.errors import DataError, ModelError, is_out_of_memory
from tests.encoders.test_pieces import WORDS, word_tokenizer


class Lengths:
    """Rows (first id of the text, tokens). Batches over `memory` padded tokens do not fit, and id `broken` gives NaN."""

    compute = {"dtype": "float16"}  # noqa: RUF012

    def __init__(self, memory: int = 10**9, broken: int = -1, exact: Lengths | None = None) -> None:
        self.memory, self.broken, self.exact = memory, broken, exact
        self.sizes: list[int] = []

    def run(self, batches: Iterable[Batch[Any]], *, hurried: bool = False) -> Iterator[tuple[Batch[Any], Any]]:
        for batch in batches:
            size = len(batch.pieces) * max(piece.length for piece in batch.pieces)
            self.sizes.append(size)
            if size > self.memory:
                yield batch, MemoryError("no room")
                continue
            rows = np.array([[piece.ids[1], piece.length] for piece in batch.pieces], dtype=np.float32)
            rows[rows[:, 0] == self.broken] = np.nan
            yield batch, rows

    def in_float32(self) -> Any:
        return self.exact


def run_of(backend: Lengths, max_tokens: int | None = None, budget: int = 20, **settings: Any) -> Run:
    return Run(
        name="lengths",
        backend=backend,
        in_float32=backend.in_float32,
        tokenization=Tokenization(word_tokenizer(), max_tokens, pool_prompt=True),
        max_tokens=max_tokens,
        batch_tokens=budget,
        kind="document",
        prompt="",
        dim=2,
        unit=False,
        **settings,
    )


def texts(*counts: int) -> list[str]:
    """A text of so many words each, its first word its own number."""
    return [" ".join([WORDS[i], *WORDS[: count - 1]]) for i, count in enumerate(counts)]


def rows_of(counts: Sequence[int], start: int = 0) -> np.ndarray:
    return np.array([[5 + start + i, count + 2] for i, count in enumerate(counts)], dtype=np.float32)


def test_rows_come_back_in_input_order() -> None:
    counts = [3, 9, 1, 9, 2, 20]
    (encoded,) = run_of(Lengths()).encoded([texts(*counts)])
    np.testing.assert_array_equal(encoded.rows, rows_of(counts))
    np.testing.assert_array_equal(encoded.inputs, range(6))
    assert (encoded.failed, encoded.truncated, encoded.halvings, encoded.spans) == ({}, [], 0, None)


def test_windows_are_given_back_one_by_one_and_the_next_is_read_ahead() -> None:
    read: list[int] = []

    def windows() -> Iterator[list[str]]:
        for number in range(4):
            read.append(number)
            yield texts(2, 3)

    for number, encoded in enumerate(run_of(Lengths()).encoded(windows())):
        np.testing.assert_array_equal(encoded.rows, rows_of([2, 3]))
        assert number <= max(read) <= number + 2


def test_an_error_of_the_source_comes_after_the_windows_before_it() -> None:
    def windows() -> Iterator[list[str]]:
        yield texts(2)
        yield texts(3)
        raise ValueError("bad row")

    found = []
    with pytest.raises(ValueError, match="bad row"):
        for encoded in run_of(Lengths()).encoded(windows()):
            found.append(encoded.rows[0, 1])
    assert found == [4, 5]


def test_empty_windows_are_windows() -> None:
    found = [len(encoded.rows) for encoded in run_of(Lengths()).encoded(iter([[], texts(1), []]))]
    assert found == [0, 1, 0]


def test_each_batch_is_announced_with_its_inputs() -> None:
    said: list[tuple[int, list[int]]] = []
    windows = [texts(9, 1, 1), ["w1", "w1", "w2"]]
    list(run_of(Lengths(), budget=11).encoded(iter(windows), lambda *batch: said.append(batch)))  # type: ignore[arg-type]
    assert said == [(0, [0]), (0, [1, 2]), (1, [0, 2])]


@pytest.mark.parametrize("memory", [100, 22, 11, 8])
def test_batches_are_halved_until_they_fit(memory: int) -> None:
    counts = [6, 6, 6, 6, 6, 1]
    backend = Lengths(memory)
    (encoded,) = run_of(backend, budget=50).encoded([texts(*counts)])
    np.testing.assert_array_equal(encoded.rows, rows_of(counts))
    assert (encoded.halvings > 0) == (memory < 48)
    assert not encoded.failed


def test_what_does_not_fit_alone_is_set_aside_with_its_reason() -> None:
    """The long text stands twice: both are set aside, and the rows of the others keep their order."""
    long, short = texts(20, 2)
    (encoded,) = run_of(Lengths(10)).encoded([["w3", long, short, long]])
    np.testing.assert_array_equal(encoded.inputs, [0, 2])
    np.testing.assert_array_equal(encoded.rows, [[8, 3], [6, 4]])
    assert encoded.failed == dict.fromkeys((1, 3), "memory does not suffice for it alone, 22 tokens (no room)")


def test_a_row_that_is_no_number_is_computed_again_in_float32() -> None:
    exact = Lengths()
    (encoded,) = run_of(Lengths(broken=6, exact=exact)).encoded([texts(2, 3, 4)])
    np.testing.assert_array_equal(encoded.rows, rows_of([2, 3, 4]))
    assert exact.sizes == [5]
    with pytest.raises(ModelError, match="gives NaN or infinity for the text 'w1 w0 w1', in float32 too") as caught:
        list(run_of(Lengths(broken=6, exact=Lengths(broken=6))).encoded([texts(2, 3, 4)]))
    assert caught.value.position == 1


def test_long_texts_are_cut_and_named_chunked_or_refused() -> None:
    window = ["w1", " ".join(WORDS[:9]), "w2", " ".join(WORDS[:9])]
    (cut,) = run_of(Lengths(), max_tokens=6).encoded([window])
    assert cut.truncated == [1, 3]
    (chunked,) = run_of(Lengths(), max_tokens=6, on_long="chunk").encoded([window])
    np.testing.assert_array_equal(chunked.inputs, [0, 1, 1, 1, 2, 3, 3, 3])
    assert chunked.spans is not None
    assert [window[1][start:end] for start, end in chunked.spans[1:4]] == ["w0 w1 w2 w3", "w3 w4 w5 w6", "w6 w7 w8"]
    with pytest.raises(DataError, match="lengths takes 6 tokens and the text 'w0 w1 w2") as caught:
        list(run_of(Lengths(), max_tokens=6, on_long="error").encoded([window]))
    assert caught.value.position == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("Exception from src/core: std::bad_alloc"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
            True,
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("Check 'ptr' failed at cpu_memory.cpp:257:\nFailed to allocate 430848000 bytes of memory"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_is_known_by_its_words(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
