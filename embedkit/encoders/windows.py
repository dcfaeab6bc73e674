"""Windows of texts and images on their way to rows.

A window is tokenized while the one before it is computed. Within it, equal texts are embedded once, pieces are sorted by
length and cut into batches under one token budget, and rows come back in input order. The cut depends on the texts alone, so
the same window gives the same batches, and with the same settings the same bits. A batch for which memory does not suffice is
halved, down to one piece; a row that is no number is computed again in float32. An image that cannot be read is set aside, and
its batch computed without it. Batches are of texts, of images, or of images with a text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from embedkit.encoder import Encoded, OnLong
from embedkit.encoders.ahead import made_ahead
from embedkit.encoders.backend import Backend, Batch, SetAside
from embedkit.encoders.batches import Batching, equal_batches, stepped, token_batches
from embedkit.encoders.images import Reading, check_readable
from embedkit.encoders.pieces import Piece, Tokenization
from embedkit.errors import DataError, ModelError
from embedkit.types import Content, Kind, Vectors
from embedkit.vectors import truncate

OnBatch = Callable[[int, Sequence[int]], None]
PICTURES = 64  # in one batch, whatever the token budget: decoded photographs take tens of megabytes each
PICTURE_BUDGETS = 4  # token budgets that a batch of images has: they are of one length, so that nothing is padded


@dataclass
class _Window:
    """Texts on their way to rows. Pieces are of the distinct texts; `sources` says which of these each input is."""

    number: int
    sources: list[int]
    pieces: list[Piece]
    batches: list[list[int]]  # positions in `pieces`
    rows: Vectors  # (len(pieces), dim)
    left: int  # batches still to come
    failed: dict[int, str] = field(default_factory=dict)  # distinct text -> reason
    halvings: int = 0

    def first_input(self, text: int) -> int:
        """The first input that is this distinct text."""
        return self.sources.index(text)

    def encoded(self, *, chunked: bool) -> Encoded:
        """The rows of all inputs, those of equal texts repeated."""
        of_text: dict[int, list[int]] = {}
        for i, piece in enumerate(self.pieces):
            of_text.setdefault(piece.input, []).append(i)
        wanted = [
            (i, piece) for i, text in enumerate(self.sources) if text not in self.failed for piece in of_text[text]
        ]
        inputs = np.array([i for i, _ in wanted], dtype=np.int64)
        places = np.array([piece for _, piece in wanted], dtype=np.int64)
        spans = [self.pieces[piece].span for _, piece in wanted]
        return Encoded(
            self.rows[places],
            inputs,
            spans=np.array(spans, dtype=np.int64).reshape(-1, 2) if chunked else None,
            failed={i: self.failed[text] for i, text in enumerate(self.sources) if text in self.failed},
            truncated=[i for i, text in enumerate(self.sources) if self.pieces[of_text[text][0]].truncated],
            halvings=self.halvings,
        )


@dataclass(frozen=True)
class Run:
    """One call of an encoder: its model and what was asked for."""

    name: str
    backend: Backend
    in_float32: Callable[[], Backend]
    tokenization: Tokenization | None
    max_tokens: int | None
    batch_tokens: int
    kind: Kind
    prompt: str
    dim: int
    unit: bool
    reading: Reading | None = None  # None: texts alone
    on_long: OnLong = "truncate"
    batch_size: int | None = None
    batching: Batching = "padded"
    hurried: bool = False  # see Backend; a job is not, whose rows must not depend on where it was resumed

    def encoded(self, windows: Iterable[Sequence[Content]], on_batch: OnBatch | None = None) -> Iterator[Encoded]:
        """Each window once its last batch is done, while batches of the next are under way. An error from reading the
        windows is raised after those before it were given back."""
        waiting: deque[_Window] = deque()
        failure: list[Exception] = []

        def batches() -> Iterator[Batch[tuple[_Window, list[int]]]]:
            try:
                for window in prepared:
                    waiting.append(window)
                    for chosen in window.batches:
                        if on_batch:
                            on_batch(window.number, [window.first_input(window.pieces[i].input) for i in chosen])
                        yield self._batch(window, chosen)
            except Exception as error:
                failure.append(error)

        with closing(self._prepared(windows)) as prepared:
            for batch, result in self.backend.run(batches(), hurried=self.hurried):
                window, chosen = batch.tag
                self._keep(window, chosen, result)
                window.left -= 1
                while waiting and not waiting[0].left:
                    yield waiting.popleft().encoded(chunked=self.on_long == "chunk")
        while waiting and not waiting[0].left:  # windows without a token to compute
            yield waiting.popleft().encoded(chunked=self.on_long == "chunk")
        if failure:
            raise failure[0]

    def _prepared(self, windows: Iterable[Sequence[Content]]) -> Generator[_Window, None, None]:
        """Windows cut into batches, one ahead, in a thread; without one where there is a single window."""
        numbered = enumerate(windows)
        if isinstance(windows, list) and len(windows) == 1:
            return (self._window(number, texts) for number, texts in numbered)
        return made_ahead(lambda window: self._window(*window), numbered)

    def _window(self, number: int, contents: Sequence[Content]) -> _Window:
        check_readable(contents, self.reading, self.name)
        distinct: dict[Content, int] = {}
        sources = [distinct.setdefault(content, len(distinct)) for content in contents]
        if self.tokenization is None:
            pieces = [self._whole(i, content) for i, content in enumerate(distinct)]
        else:
            pieces = self.tokenization.pieces(list(map(str, distinct)), self.prompt, self.on_long)
        window = _Window(number, sources, pieces, [], np.zeros((len(pieces), self.dim), dtype=np.float32), 0)
        if self.on_long == "error" and (long := next((piece for piece in pieces if piece.truncated), None)):
            raise DataError(
                f"{self.name} takes {self.max_tokens} tokens and the text {long.text[:40]!r} is longer; cut or chunk long "
                f"texts, or shorten this one.",
                position=window.first_input(long.input),
            )
        filled = [i for i, piece in enumerate(pieces) if piece.length]  # a row without any token stays zero
        for kind in sorted({pieces[i].kind for i in filled}):
            alike = [i for i in filled if pieces[i].kind == kind]
            lengths = [pieces[i].length for i in alike]
            most, budget = self.batch_size, self.batch_tokens
            if kind != "text":
                most, budget = min(most or PICTURES, PICTURES), budget * PICTURE_BUDGETS
            for batch in self._cut(lengths, budget, most):
                window.batches.append([alike[i] for i in batch])
        window.left = len(window.batches)
        return window

    def _cut(self, lengths: Sequence[int], budget: int, most: int | None) -> Iterator[list[int]]:
        if self.batching == "padded":
            return token_batches(list(map(stepped, lengths)), budget, most)
        return equal_batches(lengths, budget, 1 if self.batching == "alone" else most)

    def _whole(self, i: int, content: Content) -> Piece:
        """A piece that the backend tokenizes."""
        if isinstance(content, str):
            return Piece(i, self.prompt + content)
        tokens = 0 if self.reading is None else self.reading.tokens
        return Piece(i, self.prompt + (content.text or ""), picture=content, tokens=tokens)

    def _batch(self, window: _Window, chosen: list[int]) -> Batch[tuple[_Window, list[int]]]:
        return Batch([window.pieces[i] for i in chosen], self.prompt, self.kind, (window, chosen))

    def _keep(self, window: _Window, chosen: list[int], result: Vectors | Exception) -> None:
        """Puts the rows of a batch into their places."""
        if isinstance(result, SetAside):
            self._set_aside(window, chosen, result)
            return
        if isinstance(result, Exception):
            self._halve(window, chosen, result)
            return
        rows = truncate(result, self.dim, unit=self.unit)
        broken = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        for i in broken:
            rows[i] = self._in_float32_alone(window, chosen[i])
        window.rows[chosen] = rows

    def _set_aside(self, window: _Window, chosen: list[int], error: SetAside) -> None:
        for place, reason in error.reasons.items():
            window.failed[window.pieces[chosen[place]].input] = reason
        if rest := [i for place, i in enumerate(chosen) if place not in error.reasons]:
            self._again(window, rest)

    def _again(self, window: _Window, chosen: list[int]) -> None:
        for _, result in self.backend.run([self._batch(window, chosen)]):
            self._keep(window, chosen, result)

    def _halve(self, window: _Window, chosen: list[int], error: Exception) -> None:
        if len(chosen) == 1:
            piece = window.pieces[chosen[0]]
            said = str(error).strip().split("\n")[-1]
            reason = f"memory does not suffice for it alone, {piece.length} tokens ({said or type(error).__name__})"
            window.failed[piece.input] = reason
            return
        window.halvings += 1
        middle = len(chosen) // 2
        for half in (chosen[:middle], chosen[middle:]):
            self._again(window, half)

    def _in_float32_alone(self, window: _Window, i: int) -> Vectors:
        piece = window.pieces[i]
        for _, result in self.in_float32().run([self._batch(window, [i])]):
            row = None if isinstance(result, Exception) else truncate(result, self.dim, unit=self.unit)
            if row is not None and np.isfinite(row).all():
                alone: Vectors = row[0]
                return alone
        raise ModelError(
            f"{self.name} gives NaN or infinity for {piece}, in float32 too; mend the input or the model.",
            position=window.first_input(piece.input),
        )
