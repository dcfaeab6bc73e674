"""A changed, shortened, missing, foreign or hostile file of an index: named by `verify`, never searched with wrong ids.

A sample by a fixed seed; `tests/index_suites.py flips` changes every byte.
"""

from __future__ import annotations

import gc
import hashlib
import json
import random
import shutil
import sqlite3
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedkit.cli.main import main
from embedkit.errors import IntegrityError, UsageError
from embedkit.index import Index
from embedkit.index.faiss_import import faiss_threads
from embedkit.index.manifest import OLD_MANIFEST, POSTED, SPARSE_PARTS
from embedkit.jobs import IndexRecipe, add_to_index, build_index, open_index
from embedkit.storage import block_record, sealed_json
from embedkit.types import Document

from ..engine.fakes import Windowed

QUERIES = np.random.default_rng(3).standard_normal((2, Windowed.dim)).astype(np.float32)
KINDS = (
    "fine.npy",
    "codes.faiss",
    "documents.sqlite",
    "ids.npy",
    "ids.txt",
    "starts.npy",
    "spans.npy",
    "deleted",
    "ranges",
    "terms.txt",
    "terms.npy",
    "postings.npy",
    "posted.npy",
    "weights.npy",
    "lengths.npy",
)
ALWAYS_CHECKED = ("manifest", *(kind for kind in KINDS if kind not in ("fine.npy", "documents.sqlite")))
COUNT = 30


def make(path: Path) -> None:
    """A small index with a file of every kind: two segments with passages and terms, one of them with codes, and deletions in
    both."""
    corpus, layout = [document(n) for n in range(COUNT)], {"on_long": "chunk", "fine": "int8", "coarse": "IVF1,SQ8"}
    recipe = IndexRecipe(sparse="bm25").record("a recipe")
    with faiss_threads(1):
        build_index(corpus, path, model=Windowed(), sparse="bm25", recipe=recipe, **layout).close()  # type: ignore[arg-type]
        add_to_index(path, [document(n) for n in (100, 101)], model=Windowed())
        with Index(path) as index:
            index.delete(["d3", "d101"])


def document(number: int) -> Document:
    text = f"text {number}" + " and more" * (number % 3 == 1)
    return Document(f"d{number}", text, metadata={"n": number, "lang": "de" if number % 2 else "en"})


def answers(path: Path) -> list[Any]:
    """What an index says without having been checked, row by row of its files where it can."""
    with Index(path, threads=1) as index:
        found: list[Any] = [len(index)]
        for options in ({}, {"group": None}, {"where": {"lang": "en"}}, {"where": {"n": {"gte": 5}}, "group": "mean"}):
            hits = index.search(QUERIES, 5, **options)  # type: ignore[arg-type]
            found.append((hits.ids, hits.documents, hits.passages, hits.scores.tolist()))
        found.append(index.get(["d4", "d0", "d100"]))
        found.append(index.search(like="d4", k=3).ids)
        for where in (None, {"lang": "en"}):
            hits = index.search(["text 4 more", "101"], 50, mode="sparse", where=where)
            found.append((hits.ids, hits.documents, hits.scores.tolist()))
        return found


def ids_of(found: list[Any]) -> set[str]:
    return {name for answer in found[1:5] for ids in answer[0] for name in ids}


class Damaged:
    """An index of which a file is changed, and put back."""

    def __init__(self, path: Path) -> None:
        make(path)
        self.path = path
        self.whole = answers(path)
        with Index(path) as index:
            self.alive = {f"d{n}" for n in (*range(COUNT), 100)} - {"d3"}
            self.names = {
                passage for hits in [index.search(QUERIES, 500, group=None)] for ids in hits.ids for passage in ids
            }
        self.files = sorted(
            entry for entry in path.iterdir() if entry.name != "lock" and not entry.name.endswith(".built.json")
        )  # the record of a build is for people

    def with_bytes(self, file: Path, content: bytes, look: Callable[[], str]) -> str:
        before = file.read_bytes()
        try:
            file.write_bytes(content)
            return look()
        finally:
            file.write_bytes(before)

    def verified(self) -> str:
        """The IntegrityError of verify, or nothing."""
        try:
            with Index(self.path, check=True):
                return ""
        except IntegrityError as error:
            assert error.exit_code == 5
            return str(error)

    def unchecked(self, file: Path) -> str:
        """What opening and searching without a check comes to; asserts that no id, text or passage is a wrong one."""
        try:
            found = answers(self.path)
        except IntegrityError:
            return "refused"
        if found == self.whole:
            return "right"
        assert "fine.npy" in file.name, f"{file.name} is trusted"
        assert ids_of(found) <= self.alive | self.names
        assert (found[5], found[7:]) == (self.whole[5], self.whole[7:])
        english = {f"d{n}" for n in range(0, 200, 2)}
        assert all(name in english for ids in found[3][0] for name in ids)
        for answer in found[1:5]:
            assert all(len(ids) == len(set(ids)) for ids in answer[0])
        return "other scores"

    def flip(self, file: Path, position: int, mask: int = 0xFF) -> str:
        """verify names the file and the bytes, and a search is not led astray."""
        content = bytearray(file.read_bytes())
        content[position] ^= mask

        def look() -> str:
            said = self.verified()
            assert file.name in said, (file.name, position, mask, said)
            assert "bytes 0 to" in said or "manifest" in file.name, said
            return self.unchecked(file)

        return self.with_bytes(file, bytes(content), look)

    def cut(self, file: Path, length: int) -> str:
        def look() -> str:
            assert file.name in self.verified()
            outcome = self.unchecked(file)
            # the spaces behind the last brace of the manifest say nothing, and no search reads what a build says of itself
            assert outcome == "refused" or (outcome == "right" and file.name.endswith(".json"))
            return outcome

        return self.with_bytes(file, file.read_bytes()[:length], look)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with faiss_threads(1):
        yield


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Damaged:
    return Damaged(tmp_path_factory.mktemp("damage") / "an.index")


def test_the_index_has_a_file_of_every_kind_and_passes(damaged: Damaged) -> None:
    names = " ".join(file.name for file in damaged.files)
    assert all(kind in names for kind in (*KINDS, "manifest"))
    assert damaged.verified() == ""
    with Index(damaged.path) as index:
        assert len(index.manifest.segments) == 2
        index.verify()


@pytest.mark.parametrize("kind", ["manifest", *KINDS])
def test_a_changed_byte_is_named_and_never_leads_to_a_wrong_id(damaged: Damaged, kind: str) -> None:
    draw = random.Random(kind)
    for file in damaged.files:
        if kind not in file.name:
            continue
        size = file.stat().st_size
        most = 8 if kind in SPARSE_PARTS else 50 if "segment-0001" in file.name else 20
        for position in sorted({0, size - 1, *draw.sample(range(size), min(size, most))}):
            outcome = damaged.flip(file, position, draw.choice([0xFF, 1 << draw.randrange(8)]))
            if kind in ALWAYS_CHECKED:
                assert outcome == "refused" or (kind == "manifest" and outcome == "right")
    assert damaged.verified() == ""


def test_a_shortened_or_lengthened_file_is_named_before_it_is_mapped(damaged: Damaged) -> None:
    draw = random.Random(0)
    for file in damaged.files:
        size = file.stat().st_size
        for length in sorted({0, 1, size - 1, size // 2, *draw.sample(range(size), min(size, 8))}):
            damaged.cut(file, length)

        def longer(file: Path = file) -> str:
            assert file.name in damaged.verified()
            return ""

        damaged.with_bytes(file, file.read_bytes() + b"\0", longer)


def test_a_missing_file_is_named(damaged: Damaged, tmp_path: Path) -> None:
    for file in damaged.files:
        copy = tmp_path / file.name
        shutil.copytree(damaged.path, copy)
        (copy / file.name).unlink()
        if "manifest" in file.name:
            with pytest.raises(UsageError, match=r"was begun and is not finished"):
                Index(copy)
            continue
        for check in (False, True):
            with pytest.raises(IntegrityError, match=f"{file.name} is missing"):
                Index(copy, check=check)


def test_files_that_were_exchanged_are_named(damaged: Damaged, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(damaged.path, copy)
    one, two = copy / "segment-0001.deleted-000003.npy", copy / "segment-0001.starts.npy"
    shutil.move(one, tmp_path / "x")
    shutil.move(two, one)
    shutil.move(tmp_path / "x", two)
    with pytest.raises(IntegrityError, match=r"segment-0001\.(deleted|starts)"):
        Index(copy)


@pytest.mark.parametrize("name", ["notes.txt", "fine.npy", "manifest-1.json", "segment-0001", ".hidden", "sub"])
def test_a_foreign_file_is_named_by_verify_and_stays_where_it_is(damaged: Damaged, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(damaged.path, copy)
    (copy / name).mkdir() if name == "sub" else (copy / name).write_bytes(b"mine")
    with Index(copy) as index:
        with pytest.raises(IntegrityError, match=name):
            index.verify()
        index.delete("d7")
        assert (copy / name).exists()


def test_the_command_line_says_it_with_exit_code_5(
    damaged: Damaged, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(damaged.path, copy)
    assert exit_code(["index", "verify", str(copy)]) == 0
    content = bytearray((copy / "segment-0001.fine.npy").read_bytes())
    content[-1] ^= 1
    (copy / "segment-0001.fine.npy").write_bytes(content)
    capsys.readouterr()
    assert exit_code(["index", "verify", str(copy)]) == 5
    assert "segment-0001.fine.npy" in capsys.readouterr().err


def exit_code(arguments: list[str]) -> Any:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return stopped.value.code


def test_what_failed_to_open_holds_nothing_open(damaged: Damaged, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(damaged.path, copy)
    (copy / "manifest-000003.json").write_bytes(b"{}")
    gc.collect()  # what earlier tests left open would be closed meanwhile
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with pytest.raises(IntegrityError):
            Index(copy)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# --- manifests that were made to harm, with checksums that fit ------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    None, -1, 0, 1, 2, 7, 10**6, 2**31, 2**40, 2**64, 10**400, 0.5, -1.5, 1e300, True, False,
    "", "x", "1", "../../x", "/etc/passwd", "x" * 300, [], [1], [[]], {}, {"x": 1},
)  # fmt: skip


class Hostile:
    """An index whose manifest says whatever it is told to."""

    def __init__(self, path: Path, original: Path) -> None:
        shutil.copytree(original, path)
        self.path, self.file = path, path / "manifest-000003.json"
        self.body: dict[str, Any] = json.loads(self.file.read_text())
        del self.body["checksum"]

    def outcome(self, body: dict[str, Any]) -> str:
        self.file.write_bytes(sealed_json(body))
        try:
            answers(self.path)
        except IntegrityError:
            return "refused"
        except KeyError:  # an index without its first segment is an index
            return "opened"
        return "opened"

    def changed(self, place: tuple[Any, ...], value: Any) -> dict[str, Any]:
        body = json.loads(json.dumps(self.body))
        inner = body
        for key in place[:-1]:
            inner = inner[key]
        if value is REMOVED:
            del inner[place[-1]]
        else:
            inner[place[-1]] = value
        return body  # type: ignore[no-any-return]


REMOVED = ...  # prints the same in every process


@pytest.fixture
def hostile(damaged: Damaged, tmp_path: Path) -> Hostile:
    return Hostile(tmp_path / "hostile", damaged.path)


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a JSON value, by the keys that lead there."""
    if before:
        yield before
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from places(inner, (*before, key))


def test_any_fact_of_a_manifest_may_be_anything(hostile: Hostile) -> None:
    """What comes of it is an index, or an IntegrityError; no other error, no end of the interpreter, no memory."""
    draw = random.Random(1)
    outcomes = set()
    tracemalloc.start()
    for place in places(hostile.body):
        if (SPARSE_PARTS - {POSTED}) & set(place):
            continue  # as of any other file
        for value in [REMOVED, *draw.sample(VALUES, 2)]:
            outcomes.add(hostile.outcome(hostile.changed(place, value)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert outcomes == {"refused", "opened"}
    assert peak < 20 << 20


SIZES = [("dim",), ("segments", 0, "rows"), ("segments", 0, "documents"), ("segments", 0, "deleted"), ("number",)]


@pytest.mark.parametrize("place", SIZES, ids=str)
@pytest.mark.parametrize(
    "value", [value for value in VALUES if value not in (3, "d")], ids=lambda value: repr(value)[:12]
)
def test_counts_that_do_not_fit_the_files_are_refused(hostile: Hostile, place: tuple[Any, ...], value: Any) -> None:
    body = hostile.changed(place, value)
    expected = "opened" if body == hostile.body and type(value) is int else "refused"
    assert hostile.outcome(body) == expected


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("metric",), "l2"),
        (("fine",), "float64"),
        (("fine",), "float32"),
        (("ranges",), None),
        (("ranges_file",), None),
        (("ranges",), "../../../etc/passwd"),
        (("segments", 0, "deletion"), "../../../etc/passwd"),
        (("segments", 0, "deletion"), 2),
        (("segments", 0, "number"), 2),
        (("segments", 0, "number"), "../1"),
        (("segments", 0, "number"), 10**9),
        (("next_segment",), 1),
        (("segments", 0, "coarse"), None),
        (("segments", 1, "coarse"), "Flat"),
        (("segments", 0, "recall"), [0.5]),
        (("segments", 0, "recall"), "ab"),
        (("segments", 0, "files", "fine.npy", "bytes"), -5),
        (("segments", 0, "files", "fine.npy", "bytes"), 2**62),
        (("segments", 0, "files", "fine.npy", "block"), 1),
        (("segments", 0, "files", "fine.npy", "block"), 0),
        (("segments", 0, "files", "fine.npy", "sha256"), []),
        (("segments", 0, "files", "../../../etc/passwd"), {"bytes": 1, "block": 1 << 24, "sha256": ["0"]}),
        (("segments", 0, "files", "fine.npy"), REMOVED),
        (("segments", 0, "files", "spans.npy"), None),
        (("source", "settings"), "model"),
        (("source", "on_long"), 7),
        (("created",), 0),
        (("recall_target",), "high"),
        (("extra",), 1),
        (("segments", 0, "extra"), 1),
        (("version",), "2"),
        (("version",), 2),
        (("sparse",), None),
        (("sparse",), {}),
        (("sparse", "bm25"), None),
        (("sparse", "bm25", "stem"), "klingon"),
        (("sparse", "bm25", "stop"), "klingon"),
        (("sparse", "bm25", "k1"), -1),
        (("sparse", "bm25", "k1"), 1e300),
        (("sparse", "bm25", "b"), 1.5),
        (("sparse", "weight"), 2),
        (("sparse", "fusion"), "rff"),
        (("recipe",), REMOVED),
        (("recipe",), {}),
        (("recipe", "name"), None),
        (("recipe", "settings"), "coarse"),
        (("segments", 0, "files", "lengths.npy"), REMOVED),
        (("segments", 1, "files", "terms.txt"), REMOVED),
        (("version",), True),
        (("format",), "another"),
    ],
    ids=str,
)
def test_facts_that_no_index_has_are_refused(hostile: Hostile, place: tuple[Any, ...], value: Any) -> None:
    assert hostile.outcome(hostile.changed(place, value)) == "refused"


def test_a_segment_that_stands_there_twice_is_refused(hostile: Hostile) -> None:
    assert hostile.outcome({**hostile.body, "segments": hostile.body["segments"] * 2}) == "refused"


def test_deletions_beyond_the_documents_are_refused(hostile: Hostile) -> None:
    for deleted in (0, 2, COUNT - 1, COUNT, COUNT + 1, 10**9):
        assert hostile.outcome(hostile.changed(("segments", 0, "deleted"), deleted)) == "refused"


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(hostile: Hostile, text: str) -> None:
    body = {**hostile.body, "recall_target": float(text)}
    checksum = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    hostile.file.write_text(json.dumps({**body, "checksum": checksum}))
    with pytest.raises(IntegrityError):
        Index(hostile.path)


@pytest.mark.parametrize("depth", [200, 100_000])
def test_deep_nesting_is_refused_or_harmless(hostile: Hostile, depth: int) -> None:
    deep: Any = {}
    hostile.file.write_text('{"a":' * depth + "1" + "}" * depth)
    with pytest.raises(IntegrityError):
        Index(hostile.path)
    for _ in range(200):
        deep = {"a": deep}
    assert hostile.outcome(hostile.changed(("source", "settings"), {"model": deep})) in ("refused", "opened")


def test_a_manifest_under_another_number_is_refused(hostile: Hostile) -> None:
    hostile.file.rename(hostile.path / "manifest-000009.json")
    with pytest.raises(IntegrityError, match="is the manifest of version 3"):
        Index(hostile.path)


def test_a_newer_format_is_refused_with_what_to_do(hostile: Hostile) -> None:
    hostile.file.write_bytes(sealed_json({**hostile.body, "version": 5}))
    with pytest.raises(
        IntegrityError, match=r"has index format 5, this embedkit reads formats 2 to 4; update embedkit"
    ):
        Index(hostile.path)


def test_the_first_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    np.save(tmp_path / "fine.npy", np.eye(3, dtype=np.float16))
    (tmp_path / OLD_MANIFEST).write_bytes(sealed_json({"format": "embedkit-index", "version": 1}))
    with pytest.raises(IntegrityError, match=r"has index format 1, this embedkit reads formats 2 to 4; build it again"):
        Index(tmp_path)


def test_an_index_cannot_say_that_the_code_of_its_model_is_to_be_trusted(
    hostile: Hostile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor anything else of `load` that an index does not store; nor is the model fetched, unless the user names it."""
    from embedkit.jobs import openers

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(openers, "load", lambda model, **options: asked.append(options) or Windowed())
    settings = {
        "model": "someone/evil",
        "revision": "0" * 40,
        "trust_remote_code": True,
        "device": "cuda",
        "max_tokens": 9,
    }
    hostile.file.write_bytes(sealed_json(hostile.changed(("source", "settings"), settings)))
    with open_index(hostile.path) as index:
        index.search("a question", 1)
    with open_index(hostile.path, "someone/evil") as index:
        index.search("a question", 1)
    stored = {"revision": "0" * 40, "max_tokens": 9, "local_files_only": True}
    assert asked == [stored, {"max_tokens": 9, "local_files_only": False}]


SETTINGS: tuple[tuple[str, Any], ...] = (
    ("prompts", 5), ("prompts", ["a"]), ("prompts", {"a": 1}), ("prompt_names", "query"), ("dim", "abc"), ("dim", 8.5),
    ("max_tokens", "x"), ("max_tokens", True), ("layers", [1]), ("model", 7), ("revision", {}), ("profile", "fast"),
)  # fmt: skip


@pytest.mark.parametrize(("name", "value"), SETTINGS, ids=str)
def test_stored_settings_of_another_type_are_refused_by_name(hostile: Hostile, name: str, value: Any) -> None:
    hostile.file.write_bytes(sealed_json(hostile.changed(("source", "settings"), {name: value})))
    with pytest.raises(IntegrityError, match=f"says what no index can be .settings.{name}"):
        Index(hostile.path)


# --- files that were made to harm, with every hash recomputed -----------------------------------------------------------------

ENDLESS = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT n, n, n FROM r"
STATEMENTS = {
    "sizes without end": f"ALTER TABLE sizes RENAME TO s2; CREATE VIEW sizes(documents, postings, sizes_check) AS {ENDLESS}",
    "huge texts": "ALTER TABLE documents RENAME TO d2; CREATE VIEW documents AS SELECT number, id, id_check, content_check, title, "
    "zeroblob(900000000) AS text, metadata FROM d2",
    "ids without end": f"DROP TABLE ids; CREATE VIEW ids(bucket, entries_check, entries) AS {ENDLESS}",
    "one view more": f"CREATE VIEW more AS {ENDLESS}",
    "no index": "DROP INDEX by_value",
    "another index": "CREATE INDEX other ON documents (text)",
    "a trigger": "CREATE TRIGGER t AFTER INSERT ON sizes BEGIN SELECT 1; END",
}


def recorded(hostile: Hostile, part: str) -> None:
    """The manifest vouches for a part of the first segment, whatever is in it now."""
    record = block_record(hostile.path / f"segment-0001.{part}")
    hostile.file.write_bytes(sealed_json(hostile.changed(("segments", 0, "files", part), record)))


@pytest.mark.parametrize("statements", STATEMENTS.values(), ids=STATEMENTS)
def test_a_file_of_documents_with_other_tables_is_refused_at_once(hostile: Hostile, statements: str) -> None:
    connection = sqlite3.connect(hostile.path / "segment-0001.documents.sqlite")
    connection.executescript(statements)
    connection.close()
    recorded(hostile, "documents.sqlite")
    with pytest.raises(IntegrityError, match="it holds other tables than those of an index"):
        Index(hostile.path, check=True)


def test_codes_that_do_not_fit_their_rows_are_refused(hostile: Hostile) -> None:
    """Row numbers beyond the rows, and a matrix that lacks most of its numbers: faiss itself notices while it searches."""
    import faiss

    segment = hostile.body["segments"][0]
    rows, dim = segment["rows"], hostile.body["dim"]
    vectors = np.random.default_rng(0).standard_normal((rows, dim)).astype(np.float32)
    numbered = faiss.IndexIDMap(faiss.IndexFlatIP(dim))
    numbered.add_with_ids(vectors, np.arange(rows) + (1 << 45))
    turned = faiss.IndexPreTransform(faiss.PCAMatrix(dim, 2), faiss.IndexFlatIP(2))
    turned.train(vectors)
    turned.add(vectors)
    faiss.copy_array_to_vector(np.ones(3, np.float32), faiss.downcast_VectorTransform(turned.chain.at(0)).A)
    for index, reason in ((numbered, "they name rows that are not there"), (turned, "cannot be searched")):
        faiss.write_index(index, str(hostile.path / "segment-0001.codes.faiss"))
        recorded(hostile, "codes.faiss")
        with Index(hostile.path) as opened, pytest.raises(IntegrityError, match=f"codes.faiss.*{reason}"):
            opened.snapshot.segments[0].codes().coarse_scores(QUERIES, 5)  # type: ignore[union-attr]


# --- links ----------------------------------------------------------------------------------------------------------------


def test_an_index_of_links_opens_as_the_cache_of_the_hub_lays_it_out(damaged: Damaged, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in damaged.path.iterdir():
        (linked / file.name).symlink_to(file)
    assert answers(linked) == damaged.whole
    Index(linked, check=True).close()


def test_a_link_that_leads_nowhere_or_to_itself_is_an_error_and_no_endless_wait(
    damaged: Damaged, tmp_path: Path
) -> None:
    for number, target in enumerate(["nowhere", "segment-0001.ids.txt"]):
        copy = tmp_path / str(number)
        shutil.copytree(damaged.path, copy)
        (copy / "segment-0001.ids.txt").unlink()
        (copy / "segment-0001.ids.txt").symlink_to(target)
        with pytest.raises(IntegrityError, match=r"segment-0001\.ids\.txt is missing"):
            Index(copy)
    (tmp_path / "0" / "manifest-000003.json").unlink()
    (tmp_path / "0" / "manifest-000003.json").symlink_to("nowhere")
    with pytest.raises(UsageError):
        Index(tmp_path / "0")
    (tmp_path / "1" / "manifest-000004.json").mkdir()
    with pytest.raises(IntegrityError, match=r"segment-0001\.ids\.txt"):
        Index(tmp_path / "1")


WRITTEN = (
    "segment-0003.fine.npy", "segment-0003.documents.sqlite", "segment-0003.ids.txt", "add.rows", "add.postings", "lock",
    "segment-0003.posted.npy", "manifest-000004.json.partial", "manifest-000004.json", "segment-0001.deleted-000004.npy",
)  # fmt: skip


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to], ids=["link", "hard link"])
def test_a_change_writes_through_no_link(damaged: Damaged, tmp_path: Path, link: Callable[[Path, Path], None]) -> None:
    """An index that came from somewhere else may hold links to files of its reader."""
    copy, mine = tmp_path / "copy", tmp_path / "mine.txt"
    for name in WRITTEN:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(damaged.path, copy, ignore=shutil.ignore_patterns("lock"))
        mine.write_text("mine")
        link(copy / name, mine)
        with (
            suppress(IntegrityError),
            open_index(copy, Windowed()) as index,
        ):  # refused or not, but not through
            index.add([document(3), document(5)])
        assert mine.read_text() == "mine", name


@pytest.mark.parametrize("name", ["add.npy", "add.npy.partial", "add.ids.txt", "add.manifest.json.partial"])
def test_the_job_of_an_addition_writes_through_no_link(damaged: Damaged, tmp_path: Path, name: str) -> None:
    """A name that ends so is followed only where a user gives it."""
    copy, mine = tmp_path / "copy", tmp_path / "mine.txt"
    shutil.copytree(damaged.path, copy)
    mine.write_text("mine")
    (copy / name).symlink_to(mine)
    with suppress(IntegrityError):
        add_to_index(copy, [document(5)], model=Windowed())
    assert {path.name for path in tmp_path.iterdir()} == {"copy", "mine.txt"}
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("name", ["lock", "add.rows"])
def test_a_link_that_leads_nowhere_makes_no_file_there(damaged: Damaged, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(damaged.path, copy, ignore=shutil.ignore_patterns("lock"))
    (copy / name).symlink_to(tmp_path / "made outside")
    with suppress(IntegrityError), open_index(copy, Windowed()) as index:
        index.add([document(5)])
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
