"""Columns of Arrow as rows: parquet files, folders that `datasets` saved, data sets of the hub, and tables in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

from embedkit.corpus.images import with_undecoded_images
from embedkit.errors import DataError, UsageError
from embedkit.limits import IMAGE, MANIFEST, read_at_most
from embedkit.typed import checked, parsed

PlacedRows = Iterator[tuple[str, Mapping[str, Any]]]  # ("corpus.jsonl, line 3", row)
BATCH = 64  # rows that become Python's own at once, as fast as a thousand
BATCH_BYTES = 64 << 20  # that they may hold; rows of more are taken one by one
# what a value raises that Python cannot hold: years beyond 9999, an unknown time zone, text that is not UTF-8 (Arrow's errors are
# ValueErrors)
UNREADABLE = (OverflowError, ValueError, KeyError, RecursionError)


def parquet_rows(path: Path, leave_out: Collection[str] = ()) -> PlacedRows:
    """The rows of a file, without the columns of `leave_out`, which are not read."""
    with _parquet_file(path) as table:
        names = kept_names(table.schema_arrow.names, leave_out, str(path))
        batches = table.iter_batches(_batch_size(table.metadata, path, leave_out), columns=names if leave_out else None)
        yield from arrow_rows(batches, names, str(path))


def parquet_length(path: Path) -> int:
    """How many rows a file has, by its footer."""
    with _parquet_file(path) as table:
        return int(table.metadata.num_rows)


@contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            yield table
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if getattr(error, "errno", None) is not None:
            raise  # the system's: no permission, a failing disk
        raise DataError(f"{path} is not a whole parquet file ({first_line(error)}); write it again.") from None


def _batch_size(metadata: Any, path: Path, leave_out: Collection[str]) -> int:
    """How many rows are decoded at once, by the row group whose rows are the largest. Raises DataError where these are larger than
    any image may be: one of them alone would fill the memory."""
    largest = 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        rows, held = max(1, group.num_rows), group.total_byte_size
        # only where it matters: pyarrow ends the process where the facts of a column are damaged
        if leave_out and held // rows > min(IMAGE, BATCH_BYTES // BATCH):
            chunks = map(group.column, range(group.num_columns))
            kept = (one for one in chunks if one.path_in_schema.split(".")[0] not in leave_out)
            held = sum(one.total_uncompressed_size for one in kept)
        largest = max(largest, held // rows)
    if largest > IMAGE:
        raise DataError(f"{path} holds rows of {largest:,} bytes; at most {IMAGE:,} are read: split or shorten them.")
    return max(1, min(BATCH, BATCH_BYTES // max(1, largest)))


def kept_names(names: Iterable[Any], leave_out: Collection[str], source: str) -> list[Any]:
    """The columns that are read. Raises DataError where two have one name, for a row can hold one of them only."""
    kept = [name for name in names if name not in leave_out]
    if len(set(map(str, kept))) < len(kept):
        twice = next(name for place, name in enumerate(kept) if str(name) in map(str, kept[:place]))
        raise DataError(f"{source} has two columns named {twice!r}; give each a name of its own, or use --leave-out.")
    return kept


def arrow_rows(batches: Iterable[Any], names: list[str], source: str) -> PlacedRows:
    """The rows of batches or tables, counted from 1. Raises DataError with row and column for a value that Python cannot hold."""
    number = 0
    for batch in batches:
        for row in _converted(batch.select(names), source, number):
            number += 1
            yield f"{source}, row {number}", row


def _converted(batch: Any, source: str, before: int) -> Iterator[dict[str, Any]]:
    if batch.nbytes <= BATCH_BYTES and all(_kept(kind) == kind for kind in batch.schema.types):
        try:
            rows: list[dict[str, Any]] = batch.to_pylist()
        except UNREADABLE:  # those before the one that cannot be read come first
            rows = []
        if rows:
            yield from rows
            return
    for place in range(batch.num_rows):
        yield _row(batch.slice(place, 1), f"{source}, row {before + place + 1}")


def _row(batch: Any, where: str) -> dict[str, Any]:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            if (kind := _kept(column.type)) != column.type:
                column = column.cast(kind)
            row[name] = column[0].as_py()
        except UNREADABLE as error:
            raise DataError(
                f"{where}: the field {name!r} cannot be read: {_reason(column.type, error)}; mend it, or leave it out with "
                f"--leave-out {name}."
            ) from None
    return row


def _kept(kind: Any) -> Any:
    """The type that a column is read as: times of day in nanoseconds, of which Python would drop the last three digits, as
    text, also inside lists and structs."""
    import pyarrow
    from pyarrow import types

    if types.is_time64(kind) and kind.unit == "ns":
        return pyarrow.string()
    if types.is_struct(kind):
        return pyarrow.struct([field.with_type(_kept(field.type)) for field in kind])
    if types.is_map(kind):
        return pyarrow.map_(_kept(kind.key_type), _kept(kind.item_type))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = _kept(kind.value_type)
        return kind if inner == kind.value_type else pyarrow.large_list(inner)
    return kind


def _reason(kind: Any, error: Exception) -> str:
    import pyarrow

    if zone := getattr(kind, "tz", None):
        try:
            pyarrow.scalar(0, kind).as_py()
        except UNREADABLE:
            return f"its time zone {zone!r} is not known"
    if isinstance(error, OverflowError):
        return f"it is a {kind} beyond what Python can hold (of dates, the years 1 to 9999)"
    return f"{first_line(error)} ({kind})"


class _File(TypedDict):
    filename: str


class _State(TypedDict):
    _data_files: list[_File]


def saved_dataset_rows(folder: Path, leave_out: Collection[str] = ()) -> PlacedRows:
    """The rows of a folder that `datasets` saved, whatever format it was given then; images undecoded.

    Raises DataError where it is damaged, which is seen before a value is read by an offset that may lead anywhere."""
    import datasets

    try:
        state = checked(parsed(read_at_most(folder / "state.json", MANIFEST)), _State, folder / "state.json", DataError)
        for name in ["dataset_info.json", *(file["filename"] for file in state["_data_files"])]:
            if Path(name).name != name or not (folder / name).is_file():
                raise DataError(f"{name} is no file in it")
        for file in state["_data_files"]:
            _check_names(folder / file["filename"], leave_out)
        table = datasets.load_from_disk(str(folder)).with_format("arrow")
        names = kept_names(table.column_names, leave_out, str(folder))
        if table._indices is not None:  # rows are gathered by it at once
            table.data.validate(full=True)
    except MemoryError:
        raise
    except Exception as error:  # datasets raises what it meets: KeyError, TypeError, OSError without a number, ...
        if getattr(error, "errno", None) is not None and not isinstance(error, FileNotFoundError):
            raise
        raise DataError(f"{folder} is not a whole datasets folder ({error}); save it again.") from None
    return arrow_rows(_whole(table, folder), names, str(folder))


def _check_names(path: Path, leave_out: Collection[str]) -> None:
    """Raises DataError for a struct with two fields of one name, of which `datasets` keeps the last one."""
    import pyarrow

    def named_twice(kind: Any) -> str | None:
        fields = [kind.field(place) for place in range(kind.num_fields)]
        names = [field.name for field in fields]
        twice = next((name for name in names if names.count(name) > 1), None)
        return twice or next(filter(None, (named_twice(field.type) for field in fields)), None)

    with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as stream:
        for column in stream.schema:
            if column.name not in leave_out and (twice := named_twice(column.type)) is not None:
                raise DataError(f"the field {column.name!r} has two fields named {twice!r}")


def _whole(table: Any, folder: Path) -> Iterator[Any]:
    import pyarrow

    batches = table.iter(batch_size=BATCH)
    while True:
        try:
            if (batch := next(batches, None)) is None:
                return
            batch.validate(full=True)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{folder} is not a whole datasets folder ({first_line(error)}); save it again.") from None
        yield batch


def hub_rows(name: str, leave_out: Collection[str] = ()) -> PlacedRows:
    """`NAME[:SPLIT]` of the Hugging Face hub, streamed; without a split, the only one or `train`."""
    import datasets

    repository, _, split = name.partition(":")
    try:
        splits = datasets.get_dataset_split_names(repository)
        chosen = split or (splits[0] if len(splits) == 1 else "train")
        if chosen not in splits:
            raise UsageError(
                f"hf:{repository} has no split {chosen!r}; it has {', '.join(splits)}: add one as hf:{repository}:SPLIT."
            )
        table = datasets.load_dataset(repository, split=chosen, streaming=True)
    except (OSError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"hf:{repository} cannot be read from the hub ({first_line(error)}); check name and network."
        ) from None
    return dataset_rows(table, leave_out, f"hf:{name}")


def dataset_rows(table: Any, leave_out: Collection[str], source: str) -> PlacedRows:
    """The rows of a data set of `datasets`, as it is asked to give them; images undecoded."""
    table = with_undecoded_images(table)
    if left := [name for name in getattr(table, "column_names", None) or () if name in leave_out]:
        table = table.remove_columns(left)
    return _readable(table, source)


def frame_rows(frame: Any, leave_out: Collection[str], source: str) -> PlacedRows:
    """The rows of a pandas DataFrame."""
    names = kept_names(frame.columns, leave_out, source)
    if leave_out:
        frame = frame[names]
    return _readable((dict(zip(names, row, strict=True)) for row in frame.itertuples(index=False, name=None)), source)


def _readable(rows: Iterable[Any], source: str) -> PlacedRows:
    """Rows that are made when they are asked for. Raises DataError for one that cannot be."""
    stream, number = iter(rows), 0
    while True:
        number += 1
        try:
            row = next(stream)
        except StopIteration:
            return
        except UNREADABLE as error:
            raise DataError(
                f"{source}, row {number} cannot be read ({first_line(error)}); mend it, or leave its column out with --leave-out."
            ) from None
        yield f"{source}, row {number}", row


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
