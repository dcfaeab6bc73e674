"""The job: any number of rows in, verified vectors out, whatever happens on the way.

Windows of rows go through the encoder; the vectors of each are written to their place in NAME.npy.partial and fsynced,
then its record goes into NAME.ledger. A job that was stopped or killed reads the corpus from row 0 again, compares the
rows of finished windows by their hashes with the ledger, and goes on behind them: its files end byte for byte as if it had
never been stopped, but for the block "times" of the manifest. See `ledger.py` for what a crash can leave, `outputs.py` for
how the files appear. Cost: two fsyncs a window, 8 bytes and an id a row in the ledger; memory does not grow with the rows.
"""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

from tqdm import tqdm

import embedkit.engine.run as run
from embedkit.encoder import Encoded, Encoder, OnLong, WindowEncoder
from embedkit.engine.ledger import AFRESH, Head, Ledger, Record, head_of
from embedkit.engine.outputs import FORMAT, VERSION, Names, publish, seal
from embedkit.engine.records import (
    Publication,
    Totals,
    check_rows,
    check_window,
    differences,
    digest,
    window_record,
)
from embedkit.engine.row_form import RowForm, check_calibration
from embedkit.engine.run import (
    Held,
    Window,
    encode_windows,
    log_rows,
    naming_documents,
    progress_bar,
    release_memory,
    windows_of,
)
from embedkit.engine.workers import Workers
from embedkit.errors import DataError, IntegrityError, ModelError, Stopped, UsageError, is_full_disk
from embedkit.storage import (
    HEADER,
    PositionalFile,
    locked_file,
    positional_file,
    read_json,
    refuse_held,
    remove,
    sync_folder,
    writable,
)
from embedkit.typed import checked
from embedkit.types import Content, Document, Kind
from embedkit.vectors import Precision, Ranges, is_drift
from embedkit.version import __version__

LEDGER_VERSION = 1
AGAIN = "go on with --resume (resume=True), or start again with --overwrite (overwrite=True)"
Shard = tuple[int, int]  # (I, N): windows I-1, I-1+N, I-1+2N, ...
logger = logging.getLogger(__name__)


def embed_to_file(
    documents: Iterable[Document],
    path: Path,
    encoder: Encoder | Callable[[], Encoder] | Sequence[Callable[[], Encoder]],
    *,
    kind: Kind = "document",
    on_long: OnLong = "truncate",
    precision: Precision = "float32",
    ranges: Ranges | None = None,
    shard: Shard | None = None,
    workers: int = 1,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Embeds the documents into `path` (NAME.npy or NAME.parquet) and the files beside it; returns the manifest.

    encoder: or a function that opens it; each of several workers calls that in a process of its own, so it must be one that
    can be pickled; or several functions, as for several devices, each for `workers` processes. shard: (I, N) embeds the I-th
    of N parts, windows dealt in turn. resume: go on where an earlier run ended; what is finished already is left as it is.
    on_long: what becomes of texts beyond the model's limit. precision: of what is stored; int8 codes by `ranges`, or by those
    of the first window, which come out as NAME.ranges.npy.

    Raises UsageError where the output is there already or was begun with other settings, DataError where a row among those
    done has changed or a vector does not fit the precision, IntegrityError where ledger or vectors are damaged, ModelError
    that names the document where the model fails, Stopped on a full disk or while another writes the same output. After an
    error the finished windows are kept for `resume`; before the first is finished, nothing is.
    """
    names = Names(path)
    check_free(path, overwrite=overwrite, resume=resume)
    if resume and is_finished(names):
        return read_json(names.manifest)
    if shard is not None and not 1 <= shard[0] <= shard[1]:
        raise UsageError(f"The shard {shard[0]}/{shard[1]} was asked for; expected I/N with I from 1 to N.")
    if workers < 1:
        raise UsageError(f"workers={workers} came; expected at least 1.")
    check_calibration(precision, ranges is not None, kind, shard is not None)
    crew = [*encoder] * workers if isinstance(encoder, Sequence) else [encoder] * workers
    writable(path)
    begun = names.ledger.exists()
    with _told_when_full(names), locked_file(names.ledger, path) as file:
        ledger = Ledger.over(file) if overwrite else Ledger(file)
        try:
            _check_free(names, overwrite, resume)  # another may have been faster to the lock
            if resume and not begun and names.manifest.exists():
                _clear_if_nothing_is_done(names, ledger)
                return read_json(names.manifest)
            if not (published := _last_words(ledger)):
                with _opened(crew) as opened:
                    job = _Job(names, opened, kind, on_long, RowForm(precision, opened.dim, ranges), shard, len(crew))
                    published = job.run(documents, ledger, progress_bar(None, progress))
            publish(names, checked(published, Publication, names.ledger, step=AFRESH))
        except BaseException:
            _clear_if_nothing_is_done(names, ledger)
            raise
    return read_json(names.manifest)


def check_free(path: Path, *, overwrite: bool, resume: bool = False) -> None:
    """Raises UsageError for a name that vectors cannot have, or that is taken and may not be gone on with or replaced,
    Stopped while another process writes it."""
    if overwrite and resume:
        raise UsageError("Both resume and overwrite came; give one of them.")
    names = Names(path)
    names.check_names()
    if head_of(names.ledger) is not None:
        refuse_held(names.ledger, path)
    _check_free(names, overwrite, resume)


def _check_free(names: Names, overwrite: bool, resume: bool) -> None:
    if overwrite:
        return
    if head_of(names.ledger) is not None:
        if not resume:
            raise UsageError(f"{names.path} was begun and is not finished; {AGAIN}.")
        return
    if resume and names.manifest.exists():
        return
    taken = [name for name in (names.path, names.ids, *names.all) if name.exists()]
    if taken:
        raise UsageError(f"{taken[0]} is there already; choose another name, or add --overwrite.")


def is_finished(names: Names) -> bool:
    """Whether an output is published whole. A ledger, even one without a head, says that a run was to replace it."""
    return names.manifest.exists() and not names.ledger.exists()


class _Job:
    """One run over the corpus: what it is made with, and how far it is."""

    def __init__(
        self,
        names: Names,
        encoder: Encoder | Workers,
        kind: Kind,
        on_long: OnLong,
        form: RowForm,
        shard: Shard | None,
        workers: int,
    ) -> None:
        self.names, self.encoder, self.kind, self.on_long, self.form = names, encoder, kind, on_long, form
        self.part, self.parts = shard or (1, 1)
        head = {
            "ledger": LEDGER_VERSION,
            "embedkit": __version__,
            "output": names.path.name,
            "window": run.WINDOW,
            "kind": kind,
            "on_long": on_long,
            "precision": form.precision,
            "ranges": None if form.ranges is None else digest(form.ranges.array.tobytes()),  # that were given
            "shard": None if shard is None else f"{self.part}/{self.parts}",
            "workers": workers,
            "dim": encoder.dim,
            "similarity": encoder.similarity,
            "fingerprint": encoder.fingerprint,
            "settings": dict(encoder.settings),
            "compute": dict(encoder.compute),
        }
        self.head: dict[str, Any] = json.loads(json.dumps(head))  # as a ledger gives it back
        self.totals = Totals()
        self.clock = time.monotonic()

    def run(self, documents: Iterable[Document], ledger: Ledger, bar: tqdm[Any]) -> Record:
        """All windows that are not done yet, then everything made ready; returns what is to be published."""
        if self.on_long != "truncate" and not isinstance(self.encoder, WindowEncoder):
            raise UsageError(f"on_long={self.on_long!r} is for models that embedkit loads; leave it out.")
        with positional_file(self.names.rows) as rows, bar:
            self._begin(ledger, rows)
            bare = (
                Document(one.id, one.text, one.title, image=one.image) for one in documents
            )  # metadata is of no use
            windows = (found for found in windows_of(bare) if found.number % self.parts == self.part - 1)
            left = self._pass_over_done(windows, ledger, rows)
            if self.totals.ranges is not None:
                self.form.go_on_with(self.totals.ranges)
            bar.update(self.totals.documents)
            with closing(self._finished(left, rows)) as finished:  # at once: an encoder may have a thread of its own
                for record in finished:
                    ledger.append(record)
                    self.totals.add(record)
                    bar.update(record["documents"])
                    log_rows(self.totals.documents)
                    release_memory()
            if self.totals.truncated:
                logger.warning("%d texts are longer than the model takes; see the manifest.", self.totals.truncated)
            if is_drift(self.totals.outside, self._values):
                logger.warning(
                    "%.2f %% of the values lie outside the int8 ranges and were cut to them: these rows are unlike those that the "
                    "ranges come from, or those were few. Take ranges from rows like these (--ranges), or --precision float16.",
                    100 * self.totals.outside / self._values,
                )
            return seal(self.names, rows, self.form, ledger, self._manifest())

    def _begin(self, ledger: Ledger, rows: PositionalFile) -> None:
        found = next((record for _, record in ledger), None)
        ledger.cut()  # a torn tail
        if found is None:
            rows.truncate(0)  # of a run that ended before its head was durable
            ledger.append(self.head)
            for folder in self.names.folders:
                sync_folder(folder)
        elif differing := differences(checked(found, Head, self.names.ledger, step=AFRESH), self.head):
            raise UsageError(
                f"{self.names.path} was begun with other settings ({differing}); give the same ones with --resume, or start "
                f"again with --overwrite."
            )

    def _pass_over_done(self, windows: Iterator[Window], ledger: Ledger, rows: PositionalFile) -> Iterator[Window]:
        """Compares the finished windows with the corpus; gives the others, a last partial one that has grown among them."""
        for position, record in itertools.islice(ledger, 1, None):
            check_window(record, self.names.ledger)
            window = next(windows, Window(record["window"], record["row"], []))
            if window.number != record["window"]:
                raise IntegrityError(f"{self.names.ledger} skips a window; {AFRESH}.")
            check_rows(record, window.documents)
            if len(window.documents) > record["documents"]:  # rows were appended: the window is redone with them
                ledger.cut(position)
                return itertools.chain([window], windows)
            stored = rows.read(self._place(self.totals.vectors), record["vectors"] * self.form.width)
            if digest(stored) != record["vectors_hash"]:
                raise IntegrityError(
                    f"{rows.path} does not hold the vectors that were written for the rows from {record['row']} on; start "
                    f"again with --overwrite."
                )
            self.totals.add(record)
        return windows

    def _finished(self, windows: Iterator[Window], rows: PositionalFile) -> Generator[Record, None, None]:
        """The record of each window, once its vectors are durable."""
        first = next(windows, None)
        if first is None:
            return
        first_input = self._first_input(first.documents[0]) if self.totals.first_input is None else None
        held: Held = deque()

        def contents() -> Iterator[list[Content]]:
            for window in itertools.chain([first], windows):
                held.append(window)
                yield [document.content for document in window.documents]

        with closing(encode_windows(self.encoder, contents(), self.kind, self.on_long)) as encoded:
            while True:
                with naming_documents(held):
                    found = next(encoded, None)
                    if found is None:
                        return
                    content, facts = self._stored(found)
                window = held.popleft()
                rows.write(self._place(self.totals.vectors), content)
                rows.sync()
                spent, self.clock = time.monotonic() - self.clock, time.monotonic()
                record = window_record(window, found, content, chunked=self.on_long == "chunk")
                yield {
                    **record,
                    **facts,
                    "seconds": round(spent, 3),
                    **({} if first_input is None else {"first_input": first_input}),
                }
                first_input = None

    def _first_input(self, document: Document) -> str:
        content = document.content
        return self.encoder.first_input(content, self.kind) if isinstance(self.encoder, WindowEncoder) else str(content)

    def _stored(self, found: Encoded) -> tuple[bytes, dict[str, Any]]:
        """The bytes of the rows, and what is to be recorded of them."""
        if found.rows.shape != (len(found.inputs), self.encoder.dim):
            raise ModelError(
                f"The model gave rows of shape {found.rows.shape}; expected {(len(found.inputs), self.encoder.dim)}."
            )
        try:
            return self.form.stored(found.rows)
        except DataError as error:
            raise DataError(str(error), position=int(found.inputs[error.position or 0])) from None

    def _place(self, vector: int) -> int:
        return HEADER + vector * self.form.width

    @property
    def _values(self) -> int:
        return self.totals.vectors * self.encoder.dim

    def _manifest(self) -> dict[str, Any]:
        totals, head = self.totals, self.head
        outside = totals.outside / max(1, self._values)
        calibration = {"given": head["ranges"] is not None, "rows": totals.calibrated_on, "outside": outside}
        seconds = totals.seconds + time.monotonic() - self.clock
        return {
            "format": FORMAT,
            "version": VERSION,
            "count": totals.vectors,
            "documents": totals.documents,
            "empty_texts": totals.empty,
            "set_aside": totals.set_aside,
            "truncated": {"count": totals.truncated, "ids": totals.truncated_ids},
            "first_input": totals.first_input,
            "precision": self.form.precision,
            "dtype": self.form.dtype.name,
            **({"ranges": calibration} if self.form.ranges is not None else {}),
            **{name: head[name] for name in ("dim", "kind", "on_long", "similarity", "fingerprint", "settings")},
            **{name: head[name] for name in ("compute", "window", "shard", "embedkit")},
            "times": {
                "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "seconds": round(seconds, 3),
            },
        }


def _last_words(ledger: Ledger) -> Record | None:
    """What is to be published, where everything was ready for it."""
    return next((record for _, record in ledger if "publish" in record), None)


@contextmanager
def _opened(crew: Sequence[Encoder | Callable[[], Encoder]]) -> Iterator[Encoder | Workers]:
    factories = [member for member in crew if not hasattr(member, "encode")]
    if len(crew) == 1:
        yield factories[0]() if factories else cast(Encoder, crew[0])
        return
    if len(factories) < len(crew):
        raise UsageError("Several workers need a function that opens the model; an open one cannot be sent to them.")
    with Workers(factories) as opened:
        yield opened


@contextmanager
def _told_when_full(names: Names) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_full_disk(error):
            raise
        again = "then run it again with --resume" if head_of(names.ledger) else "then run it again"
        raise Stopped(f"The disk is full ({error.filename}); free some space, {again}.") from error


def _clear_if_nothing_is_done(names: Names, ledger: Ledger) -> None:
    """Takes the files of a run away that ended before its first window was finished: there is nothing to go on with."""
    if sum(1 for _ in itertools.islice(ledger, 2)) < 2:
        with suppress(OSError):
            remove(names.rows)
            remove(names.ledger)
