"""Changes of files that can be written down as JSON, drawn at random, and made again from what was written down.

Most know the structure of a file: `set` and `delete` change one place of what it says, whatever its format, and `reseal` makes
checksums fit again, as somebody would who wants to be believed. A few know nothing: `splice` bytes, or put a pipe in a file's place.
"""

from __future__ import annotations

import copy
import csv
import gzip
import io
import json
import os
import random
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import yaml

from embedkit import storage
from embedkit.engine import ledger

Edit = list[Any]  # [what to do, file, ...], of JSON's types alone
STEERING = "\x1b]0;T\x07\x9b31m\u202e\r\x00"
# what a stranger writes in place of a value; a mapping with "$" stands for what would be long written out, see `grown`
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    7,
    2**31,
    2**63,
    -(2**63),
    2**64,
    1e308,
    -0.0,
    0.5,
    "",
    "a",
    "abc",
    " ",
    "0",
    "-1",
    "1e9",
    "NaN",
    [],
    {},
    [1],
    ["a"],
    [None],
    {"a": 1},
    {"": None},
    [[]],
    "../up",
    "/dev/zero",
    "/dev/null",
    ".",
    "~",
    "$HOME",
    "hf:a/b",
    STEERING,
    "é☃😀",
    "\ufeff",
    "a\nb",
    "a\tb",
    "a,b",
    '"',
    "2024-13-45",
    "1999-12-31T23:59:60Z",
    "auto",
    "float32",
    "none",
    {"$": ["nested", 60]},
    {"$": ["nested", 900]},
    {"$": ["mappings", 60]},
    {"$": ["list", 10_000]},
    {"$": ["text", 1_000_000]},
    {"$": ["digits", 400]},
    {"$": ["digits", 5000]},
    {"$": ["nan", 0]},
    {"$": ["infinity", 0]},
    {"$": ["half", 0]},
]
BYTES = [
    b"",
    b"\x00",
    b"\xff",
    b"\n",
    b"\r",
    b"\r\n",
    b'"',
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"{",
    b"[" * 100_000,
    b"\x1b[2J",
]
SQL = [
    "UPDATE {t} SET {c} = {v}",
    "DELETE FROM {t}",
    "DROP TABLE {t}",
    "ALTER TABLE {t} RENAME TO gone",
    "ALTER TABLE {t} ADD COLUMN x",
    "UPDATE {t} SET {c} = {v} WHERE rowid = 1",
    "UPDATE {t} SET {c} = zeroblob(50000000) WHERE rowid = 1",
    "DELETE FROM {t} WHERE rowid = 1",
    "ALTER TABLE {t} RENAME COLUMN {c} TO x",
    "ALTER TABLE {t} RENAME TO gone; CREATE VIEW {t} AS SELECT * FROM gone",
    "ALTER TABLE {t} RENAME TO gone; CREATE VIEW {t} AS WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n FROM r) SELECT * FROM gone, r",
    "CREATE TRIGGER x AFTER INSERT ON {t} BEGIN SELECT 1; END",
    "CREATE TABLE more(a)",
    "PRAGMA user_version = 7",
    "PRAGMA page_size = 512; VACUUM",
]
SQL_VALUES = [
    "NULL",
    "'a'",
    "-1",
    "0",
    "1e308",
    "9223372036854775807",
    "x'ff'",
    "zeroblob(100000)",
    "'[' || hex(zeroblob(50000))",
]
COLUMNS: dict[str, Callable[[int], Any]] = {  # of a table of parquet or Arrow, what no JSON can hold among them
    "days": lambda n: pa.array([2**31 - 1] * n, pa.date32()),
    "instants": lambda n: pa.array([2**62] * n, pa.timestamp("us")),
    "before": lambda n: pa.array([-(2**62)] * n, pa.timestamp("ms")),
    "nanoseconds": lambda n: pa.array([1] * n, pa.timestamp("ns", "UTC")),
    "zone": lambda n: pa.array([1] * n, pa.timestamp("us", "Mars/Olympus")),
    "duration": lambda n: pa.array([2**62] * n, pa.duration("s")),
    "time": lambda n: pa.array([2**60] * n, pa.time64("us")),
    "binary": lambda n: pa.array([b"\xff\x00"] * n),
    "text bytes": lambda n: pa.array([b"text"] * n, pa.binary()),
    "decimal": lambda n: pa.array([1] * n).cast(pa.decimal128(38, 2)),
    "struct": lambda n: pa.array([{"a": {"b": [1]}}] * n),
    "dictionary": lambda n: pa.array(["x"] * n).dictionary_encode(),
    "large": lambda n: pa.array(["x"] * n, pa.large_string()),
    "null": lambda n: pa.nulls(n),
    "half": lambda n: pa.array(np.array([1] * n, np.float16)),
    "nan": lambda n: pa.array([float("nan")] * n),
    "list": lambda n: pa.array([[1.0, 2.0]] * n),
    "ragged": lambda n: pa.array([[1.0] * place for place in range(n)]),
    "uuid": lambda n: pa.array([bytes(range(16))] * n, pa.binary(16)),
    "unsigned": lambda n: pa.array([2**64 - 1] * n, pa.uint64()),
}


def grown(value: Any) -> Any:
    """A value as JSON wrote it down, with what "$" stands for put in its place."""
    if isinstance(value, dict) and set(value) == {"$"}:
        kind, size = value["$"]
        if kind in ("nested", "mappings"):
            inner: Any = 1
            for _ in range(size):
                inner = [inner] if kind == "nested" else {"a": inner}
            return inner
        made = {"list": [1] * size, "text": "a" * size, "nan": float("nan"), "infinity": float("inf"), "half": "\ud800"}
        return int("9" * size) if kind == "digits" else made[kind]
    return value


# what a file says: read it, and write it again


def _lines(content: bytes) -> list[Any]:
    return [json.loads(line) for line in content.splitlines() if line.strip()]


def _as_lines(rows: list[Any]) -> bytes:
    return "".join(_text(row) + "\n" for row in rows).encode("utf-8", "surrogatepass")


def _text(value: Any, ascii_only: bool = False) -> str:
    """JSON as anybody may write it: also NaN, halves of characters, numbers of any length."""
    try:
        return json.dumps(value, ensure_ascii=ascii_only)
    except (ValueError, TypeError):  # a number that str() refuses, a name that is none: written out by hand
        if isinstance(value, int):
            return "9" * 5000
        if isinstance(value, dict):
            return (
                "{" + ",".join(f"{json.dumps(str(key))}:{_text(one, ascii_only)}" for key, one in value.items()) + "}"
            )
        return "[" + ",".join(_text(one, ascii_only) for one in value) + "]"


def _table(content: bytes, delimiter: str) -> list[Any]:
    return list(csv.reader(io.StringIO(content.decode()), delimiter=delimiter))


def _as_table(rows: list[Any], delimiter: str) -> bytes:
    out = io.StringIO()
    for row in rows if isinstance(rows, list) else [rows]:
        csv.writer(out, delimiter=delimiter).writerow(row if isinstance(row, list) else [row])
    return out.getvalue().encode("utf-8", "surrogatepass")


def _tensors(content: bytes) -> Any:
    size = struct.unpack("<Q", content[:8])[0]
    return [json.loads(content[8 : 8 + size]), content[8 + size :].hex()]


def _as_tensors(value: Any) -> bytes:
    header = _text(value[0]).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(header)) + header + bytes.fromhex(value[1])


def _records(content: bytes) -> list[Any]:
    found, place = [], 0
    while place < len(content):
        size = ledger.FRAME.unpack(content[place : place + ledger.FRAME.size])[1]
        place += ledger.FRAME.size + size
        found.append(json.loads(content[place - size : place]))
    return found


def _as_records(records: list[Any]) -> bytes:
    out = b""
    for record in records:
        body = _text(record, ascii_only=True).encode()
        start = ledger.FRAME.pack(ledger.MAGIC, len(body), zlib.crc32(body), 0)[:-4]
        out += start + struct.pack("<I", zlib.crc32(start)) + body
    return out


def _array(content: bytes) -> Any:
    size = int.from_bytes(content[8:10], "little")
    fields = eval(content[10 : 10 + size], {"__builtins__": {}})  # of a file that this program wrote
    return [{**fields, "shape": list(fields["shape"])}, content[10 + size :].hex()]


def _as_array(value: Any) -> bytes:
    fields = dict(value[0]) if isinstance(value[0], dict) else {"descr": value[0]}
    if isinstance(fields.get("shape"), list):
        fields["shape"] = tuple(fields["shape"])
    header = (repr(fields)[:60_000] + "\n").encode("utf-8", "replace")
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes.fromhex(value[1])


Form = tuple[Callable[[bytes], Any], Callable[[Any], bytes]]
FORMS: dict[str, Form] = {
    ".json": (json.loads, lambda value: _text(value).encode("utf-8", "surrogatepass")),
    ".jsonl": (_lines, _as_lines),
    ".gz": (lambda content: _lines(gzip.decompress(content)), lambda rows: gzip.compress(_as_lines(rows), 1)),
    ".yaml": (yaml.safe_load, lambda value: yaml.safe_dump(value, sort_keys=False).encode("utf-8", "surrogatepass")),
    ".csv": (lambda content: _table(content, ","), lambda rows: _as_table(rows, ",")),
    ".tsv": (lambda content: _table(content, "\t"), lambda rows: _as_table(rows, "\t")),
    ".safetensors": (_tensors, _as_tensors),
    ".ledger": (_records, _as_records),
    ".npy": (_array, _as_array),
}


def make(folder: Path, edit: Edit) -> None:
    """Makes one change. One that does not fit the file any more, since an earlier one changed it, changes nothing."""
    what, name, *rest = edit
    path = folder / name
    if what == "become" or (path.is_file() and not path.is_symlink()):
        with suppress(Exception):
            CHANGES[what](path, *rest)


def _set(path: Path, pointer: list[Any], value: Any) -> None:
    _changed(path, pointer, lambda place, key: place.__setitem__(key, grown(value)))


def _delete(path: Path, pointer: list[Any]) -> None:
    _changed(path, pointer, lambda place, key: place.__delitem__(key))


def _twice(path: Path, pointer: list[Any]) -> None:
    def double(place: Any, key: Any) -> None:
        if isinstance(place, list):
            place.insert(key, copy.deepcopy(place[key]))
        else:
            place[f"{key}2"] = copy.deepcopy(place[key])

    _changed(path, pointer, double)


def _changed(path: Path, pointer: list[Any], change: Callable[[Any, Any], None]) -> None:
    read, write = FORMS[path.suffix]
    whole = [read(path.read_bytes())]
    place: Any = whole
    for key in [0, *pointer][:-1]:
        place = place[key]
    change(place, [0, *pointer][-1])
    path.write_bytes(write(whole[0]))


def _splice(path: Path, start: float, length: int, inserted: str) -> None:
    content = path.read_bytes()
    place = int(start * len(content))
    path.write_bytes(content[:place] + bytes.fromhex(inserted) + content[place + length :])


def _number(path: Path, start: float, value: int) -> None:
    """Other bytes of an array: eight at a time."""
    content = bytearray(path.read_bytes())
    place = 128 + int(start * (len(content) - 128)) // 8 * 8
    content[place : place + 8] = struct.pack("<q", value)[: len(content) - place]
    path.write_bytes(bytes(content))


def _sql(path: Path, statements: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.executescript(statements)
    finally:
        connection.close()


def _column(path: Path, name: str, kind: str) -> None:
    table = pyarrow.parquet.read_table(path)
    names, columns = list(table.column_names), list(table.columns)
    if name in names and kind != "again":
        columns[names.index(name)] = COLUMNS[kind](len(table))
    else:
        names.append(name)
        columns.append(columns[0] if kind == "again" else COLUMNS[kind](len(table)))
    pyarrow.parquet.write_table(pa.table(columns, names=names), path)


def _become(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind != "nothing":
        path.symlink_to(
            {"endless": "/dev/zero", "loop": path.name, "outside": "../../victim", "absent": "../../absent"}[kind]
        )


CHANGES: dict[str, Callable[..., None]] = {
    "set": _set,
    "delete": _delete,
    "twice": _twice,
    "splice": _splice,
    "number": _number,
    "sql": _sql,
    "column": _column,
    "become": _become,
}
BECOME = ("pipe", "folder", "empty", "nothing", "endless", "loop", "outside", "absent")


def drawn(folder: Path, names: list[str], chance: random.Random) -> Edit:
    """A change of one of the files, most often of what it says."""
    name = chance.choice(names)
    suffix = Path(name).suffix
    if chance.random() < 0.06:
        return ["become", name, chance.choice(BECOME)]
    if suffix == ".sqlite" and chance.random() < 0.9:
        return ["sql", name, _statement(folder / name, chance)]
    if suffix == ".parquet" and chance.random() < 0.9:
        columns = pyarrow.parquet.read_schema(folder / name).names
        return ["column", name, chance.choice([*columns, "more"]), chance.choice([*COLUMNS, "again"])]
    if suffix == ".npy" and chance.random() < 0.5:
        return [
            "number",
            name,
            chance.random(),
            chance.choice([0, -1, 1, 2**62, -(2**63), 2**31, 0x7FC00000_7FC00000, 10**6]),
        ]
    if suffix in FORMS and chance.random() < 0.85:
        pointer = _pointer(FORMS[suffix][0]((folder / name).read_bytes()), chance)
        kind = chance.choices(["set", "delete", "twice"], [8, 1, 1])[0]
        return [kind, name, pointer, *([chance.choice(VALUES)] if kind == "set" else [])]
    length = chance.choice([0, 1, 2, 4, 100, 10**6])
    inserted = chance.choice([*BYTES, chance.randbytes(chance.choice([1, 4, 8]))])
    return ["splice", name, chance.random(), length, inserted.hex()]


def _pointer(value: Any, chance: random.Random) -> list[Any]:
    """The way to some place in it, near the top more often than deep."""
    way: list[Any] = []
    while isinstance(value, (dict, list)) and value and (not way or chance.random() < 0.75):
        key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
        way.append(key)
        value = value[key]
    return way


def _statement(path: Path, chance: random.Random) -> str:
    connection = sqlite3.connect(path)
    try:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        table = chance.choice(tables)
        column = chance.choice([row[1] for row in connection.execute(f"PRAGMA table_info({table})")])
    finally:
        connection.close()
    return chance.choice(SQL).format(t=table, c=column, v=chance.choice(SQL_VALUES))


def reseal(folder: Path) -> None:
    """Sizes, hashes and checksums of whatever embedkit sealed, as they are after the changes."""
    for path in sorted(folder.rglob("*.json")):
        if path.is_symlink() or not path.is_file():
            continue
        try:
            body = json.loads(path.read_bytes())
        except (ValueError, RecursionError, OSError):
            continue
        if not isinstance(body, dict) or "checksum" not in body:
            continue
        for name, record in _recorded_files(body):
            file = path.parent / name
            with suppress(OSError, ValueError):  # of a name that no file can have
                if isinstance(record, dict) and file.is_file() and not file.is_symlink():
                    record.update(storage.block_record(file) if "block" in record else storage.file_record(file))
        del body["checksum"]
        try:
            body["checksum"] = storage._checksum(body)
        except (ValueError, RecursionError):
            continue
        path.write_bytes(_text(body).encode("utf-8", "surrogatepass"))


def _recorded_files(body: Any) -> Iterator[tuple[str, Any]]:
    """(name, record) of the files that a manifest of vectors, a manifest of an index, or a checkpoint's record names."""
    if isinstance(body.get("files"), dict):
        yield from ((name, record) for name, record in body["files"].items() if isinstance(name, str))
    if isinstance(body.get("weights"), dict) and isinstance(body["weights"].get("name"), str):
        yield body["weights"]["name"], body["weights"]
    for segment in body.get("segments", []) if isinstance(body.get("segments"), list) else []:
        if (
            isinstance(segment, dict)
            and isinstance(segment.get("files"), dict)
            and isinstance(segment.get("number"), int)
        ):
            for part, record in segment["files"].items():
                yield f"segment-{segment['number']:04}.{part}", record
            if isinstance(segment.get("deletion"), int):
                yield (
                    f"segment-{segment['number']:04}.deleted-{segment['deletion']:06}.npy",
                    segment.get("deletion_file"),
                )
    if isinstance(body.get("ranges"), int):
        yield f"ranges-{body['ranges']:06}.npy", body.get("ranges_file")
