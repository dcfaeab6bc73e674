"""Windows through several processes on one machine, each with a model of its own.

The parent reads the windows and hands each to the worker with the least to do; a worker holds three at most, so that it
can prepare one while it computes another. Results come back through pipes and are given on in order. A worker says which
inputs it is about to compute, so that its death or silence can be laid to one of them. Cost: one model a process, and the
windows in flight (three a worker) with their vectors.
"""

from __future__ import annotations

import multiprocessing
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from embedkit import errors
from embedkit.encoder import Encoded, Encoder, OnLong, WindowEncoder
from embedkit.engine.run import encode_windows
from embedkit.errors import EmbedkitError, ModelError, UsageError
from embedkit.types import Content, Kind

PATIENCE = 600.0  # seconds without a word from a worker that has work, after which it counts as hung
OPENING = 600.0  # seconds that opening the model may take
HELD = 3  # windows that one worker has at once: one that it computes, one that it prepares, one that is on its way
END = None  # in place of a window
Factory = Callable[[], Encoder]
_CLOSE = object()  # to the thread that sends


class Workers:
    """What one encoder offers, done by several: a WindowEncoder, to be used as a context. No process outlives the block.

    factories: what each worker opens its model with. Raises what opening one raises, and UsageError where they compute
    differently: rows would depend on who made them. A worker that raises, is killed, or says nothing for PATIENCE seconds shows as a
    ModelError with the position of the first input of the batch that it announced last.
    """

    def __init__(self, factories: Sequence[Factory]) -> None:
        self._factories = factories
        self._crew: list[_Worker] = []

    def __enter__(self) -> Workers:
        try:
            self._crew = [_Worker(factory) for factory in self._factories]
            facts = [worker.answer() for worker in self._crew]
            for other in facts[1:]:
                _check_same(facts[0], other)
        except BaseException:
            self.__exit__()
            raise
        self.dim: int = facts[0]["dim"]
        self.similarity: str = facts[0]["similarity"]
        self.fingerprint: str = facts[0]["fingerprint"]
        self.settings: Mapping[str, Any] = facts[0]["settings"]
        self.compute: Mapping[str, str] = facts[0]["compute"]
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._crew:
            worker.end()

    def first_input(self, content: Content, kind: Kind) -> str:
        """As WindowEncoder's; the text itself where the model is none. To be asked before any window."""
        self._crew[0].send(("first input", content, kind))
        return str(self._crew[0].answer())

    def encode_windows(
        self,
        windows: Iterable[Sequence[Any]],
        *,
        kind: Kind = "document",
        on_long: OnLong = "truncate",
        on_batch: Callable[[int, Sequence[int]], None] | None = None,
    ) -> Iterator[Encoded]:
        """As WindowEncoder's; on_batch is left to the workers."""
        for worker in self._crew:
            worker.send(("encode", kind, on_long))
        stream, sent, given, ended = enumerate(windows), 0, 0, False
        results: dict[int, Encoded | EmbedkitError] = {}
        while True:
            while not ended and sent - given < HELD * len(self._crew):
                if (window := next(stream, None)) is not None:
                    min(self._crew, key=lambda worker: len(worker.windows)).take(*window)
                    sent += 1
                    continue
                ended = True
                for worker in self._crew:  # an encoder may wait for the window behind before it gives one
                    worker.send(END)
            if given == sent:
                return
            while given not in results:
                self._listen(results)
            found = results.pop(given)
            if isinstance(found, EmbedkitError):
                raise found
            yield found
            given += 1

    def _listen(self, results: dict[int, Encoded | EmbedkitError]) -> None:
        """Takes what has come from the workers; waits for something to come, or for the patience with one to end."""
        busy = [worker for worker in self._crew if worker.windows]
        ends = min(worker.heard for worker in busy) + PATIENCE
        wait([worker.pipe for worker in busy], max(0.0, ends - time.monotonic()))
        for worker in busy:
            number = worker.windows[0]
            try:
                while worker.pipe.poll():
                    if (found := worker.hear()) is not None:
                        results[number] = found
                        worker.windows.popleft()
                        return
                if worker.heard + PATIENCE < time.monotonic():
                    raise TimeoutError
            except (EOFError, OSError) as error:
                results[number] = worker.lost(error)
                worker.windows.clear()  # those behind it never get their turn


def _check_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    for fact in ("fingerprint", "compute"):
        if one[fact] != other[fact]:
            raise UsageError(
                f"The workers' models differ in their {fact} ({one[fact]} and {other[fact]}); give devices of one kind."
            )


class _Worker:
    """The parent's side of one process."""

    def __init__(self, factory: Factory) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.windows: deque[int] = deque()  # numbers of those that it holds, oldest first
        self._announced: dict[int, int] = {}  # window -> first position of the last batch of it that was announced
        self._taken: list[int] = []  # number of each window it was ever given
        self._process = context.Process(target=_work, args=(theirs, factory), daemon=True)
        try:
            self._process.start()
        except OSError:
            raise
        except Exception as error:  # pickle's own, AttributeError, TypeError, and what the object itself raises
            raise UsageError(
                f"What opens the model cannot be sent to another process ({error}); give a function of a module."
            ) from None
        theirs.close()  # so that the end of the process is the end of the pipe
        self.heard = time.monotonic()
        # what is sent goes through a thread: a worker that hangs does not read, and the pipe is soon full
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=_post, args=(self.pipe, self._outbox), daemon=True).start()

    def send(self, message: Any) -> None:
        self._outbox.put(message)

    def take(self, number: int, window: Sequence[Any]) -> None:
        if not self.windows:
            self.heard = time.monotonic()
        self.windows.append(number)
        self._taken.append(number)
        self.send(window)

    def hear(self) -> Encoded | EmbedkitError | None:
        """What became of its oldest window; None after a batch was announced."""
        word, content = self.pipe.recv()
        self.heard = time.monotonic()
        if word == "batch":
            order, position = content
            self._announced[self._taken[order]] = position
            return None
        if word == "failed":
            return self._error(*content)
        self._announced.pop(self.windows[0], None)
        return cast(Encoded, content)

    def answer(self) -> Any:
        """The answer to a question, of a worker that has nothing else to do. Raises what opening the model raises."""
        try:
            if not self.pipe.poll(OPENING):
                raise TimeoutError
            word, content = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise self.lost(error) from None
        if word == "failed":
            raise self._error(*content)
        return content

    def lost(self, error: Exception) -> ModelError:
        """That it is dead or hung, and where; it is dead afterwards."""
        if isinstance(error, TimeoutError):
            state = f"said nothing for {PATIENCE if self.windows else OPENING:g} seconds"
        else:
            self._process.join(1)
            state = f"died (exit code {self._process.exitcode})"
        self.end()
        if not self.windows:
            return ModelError(f"A worker {state} before its first batch; try with one worker to see why.")
        return ModelError(
            f"A worker {state} in the batch that begins here; set the document aside or try fewer workers, then run it "
            f"again with --resume.",
            position=self._suspect,
        )

    @property
    def _suspect(self) -> int:
        """The position in its oldest window that is nearest to what it did last."""
        return self._announced.get(self.windows[0], 0)

    def _error(self, name: str, message: str, position: int | None) -> EmbedkitError:
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, EmbedkitError):
            return kind(message, position=position)
        at = self._suspect if self.windows else None
        return ModelError(f"The model failed with {name}: {message}", position=at)

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self._outbox.put(_CLOSE)


def _post(pipe: Connection, outbox: queue.SimpleQueue[Any]) -> None:
    while (message := outbox.get()) is not _CLOSE:
        try:
            pipe.send(message)
        except OSError:
            return  # the worker is dead; the reading side says so


def _work(pipe: Connection, factory: Factory) -> None:
    """The worker's side: opens the model, answers questions, and encodes what comes until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    speaking = threading.Lock()  # an encoder may announce a batch from another thread

    def say(word: str, content: Any) -> None:
        with speaking:
            pipe.send((word, content))

    try:
        encoder = factory()
        names = ("dim", "similarity", "fingerprint", "settings", "compute")
        say("facts", {name: getattr(encoder, name) for name in names})
        question, *arguments = pipe.recv()
        if question == "first input":
            known = isinstance(encoder, WindowEncoder)
            say("answer", encoder.first_input(*arguments) if known else str(arguments[0]))  # type: ignore[attr-defined]
            _, *arguments = pipe.recv()
        kind, on_long = arguments
        windows = iter(pipe.recv, END)
        encoded = encode_windows(
            encoder, windows, kind, on_long, lambda number, batch: say("batch", (number, int(batch[0])))
        )
        for found in encoded:
            say("done", found)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone
    except Exception as error:
        say("failed", (type(error).__name__, str(error), getattr(error, "position", None)))
