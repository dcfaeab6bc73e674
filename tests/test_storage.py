"""What is written is whole, durable and provably unchanged; two writers of one name cannot meet."""

from __future__ import annotations

import errno
import fcntl
import gc
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pytest

import embedkit
from embedkit.errors import IntegrityError, Stopped, UsageError
from embedkit.storage import (
    PositionalFile,
    atomic_file,
    atomic_folder,
    block_record,
    check_absent,
    check_blocks,
    check_file,
    check_size,
    file_record,
    lock,
    locked_file,
    make_folder,
    npy_header,
    positional_file,
    read_json,
    refuse_held,
    remove_folder,
    remove_unheld,
    sealed_json,
    sealed_partial,
    shared_hold,
    sync_file,
    sync_folder,
    writable,
    write_json,
)

FAILURES = [RuntimeError, KeyboardInterrupt, SystemExit]


def publish(path: Path, content: bytes) -> None:
    with atomic_file(path) as stream:
        stream.write(content)


def entries(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def open_descriptors() -> list[str]:
    gc.collect()  # what other tests left open goes now, not in the midst of this one
    return sorted(path.name for path in Path("/dev/fd").iterdir())


# --- atomic_file --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"new", bytes(range(256)) * 10_000])
def test_a_file_appears_with_its_whole_content_and_nothing_beside_it(content: bytes, tmp_path: Path) -> None:
    publish(tmp_path / "a.bin", content)
    assert (tmp_path / "a.bin").read_bytes() == content
    assert entries(tmp_path) == ["a.bin"]


def test_a_file_is_not_there_before_the_block_ends(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a.bin") as stream:
        stream.write(b"new")
        stream.flush()
        assert entries(tmp_path) == ["a.bin.partial"]


def test_an_old_file_is_seen_whole_until_it_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"old and longer")
    with atomic_file(tmp_path / "a.bin") as stream:
        stream.write(b"new")
        stream.flush()
        assert (tmp_path / "a.bin").read_bytes() == b"old and longer"
    assert (tmp_path / "a.bin").read_bytes() == b"new"


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("old", [b"old", None])
def test_a_failure_leaves_what_was_there_and_no_partial_file(
    failure: type[BaseException], old: bytes | None, tmp_path: Path
) -> None:
    if old is not None:
        (tmp_path / "a.bin").write_bytes(old)
    with pytest.raises(failure), atomic_file(tmp_path / "a.bin") as stream:
        stream.write(b"half of the new")
        raise failure
    assert entries(tmp_path) == ([] if old is None else ["a.bin"])
    assert old is None or (tmp_path / "a.bin").read_bytes() == old


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_disk_leaves_what_was_there(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no space left on device")

    (tmp_path / "a.bin").write_bytes(b"old")
    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), fail)
    with pytest.raises(OSError, match="no space"):
        publish(tmp_path / "a.bin", b"new")
    assert entries(tmp_path) == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == b"old"


def test_the_longer_leftover_of_a_crashed_writer_is_overwritten_whole(tmp_path: Path) -> None:
    (tmp_path / "a.bin.partial").write_bytes(b"left by a crash" * 1000)
    publish(tmp_path / "a.bin", b"new")
    assert (tmp_path / "a.bin").read_bytes() == b"new"
    assert entries(tmp_path) == ["a.bin"]


def test_missing_parent_folders_are_made(tmp_path: Path) -> None:
    publish(tmp_path / "a/b/c.bin", b"new")
    assert (tmp_path / "a/b/c.bin").read_bytes() == b"new"


def test_the_stream_can_be_read_and_sought(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a.bin") as stream:
        stream.write(b"0123456789")
        stream.seek(2)
        assert stream.read(3) == b"234"
        stream.seek(0)
        stream.write(b"X")
    assert (tmp_path / "a.bin").read_bytes() == b"X123456789"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o000, 0o666)])
def test_the_permissions_follow_the_umask(mask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        publish(tmp_path / "a.bin", b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == mode


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    before = open_descriptors()
    publish(tmp_path / "a.bin", b"new")
    with pytest.raises(KeyError), atomic_file(tmp_path / "a.bin"):
        raise KeyError
    with atomic_file(tmp_path / "b.bin"), pytest.raises(Stopped), atomic_file(tmp_path / "b.bin"):
        pass
    assert open_descriptors() == before


def test_the_error_of_the_block_is_told_even_where_its_partial_is_gone(tmp_path: Path) -> None:
    with pytest.raises(KeyError), atomic_file(tmp_path / "a.bin"):
        (tmp_path / "a.bin.partial").unlink()
        raise KeyError
    assert entries(tmp_path) == []


# --- links ---------------------------------------------------------------------------------------------------------

MAKE: dict[str, Callable[[Path, Path], None]] = {
    "a link": lambda path, victim: path.symlink_to(victim),
    "a hard link": lambda path, victim: path.hardlink_to(victim),
    "a link that leads nowhere": lambda path, victim: path.symlink_to(victim.with_name("made outside")),
    "a pipe": lambda path, _: os.mkfifo(path),
}


def seal(path: Path) -> None:
    with sealed_partial(path) as stream:
        stream.write(b"new")


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A file of the reader's, outside of the folder that came from elsewhere; nothing is made beside it either."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_bytes(b"precious")
    (tmp_path / "home").mkdir()
    yield outside / "mine"
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == {"mine": b"precious"}


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize(("write", "name"), [(lambda path: publish(path, b"new"), "a.partial"), (seal, "a")])
def test_a_new_file_takes_the_place_of_whatever_stands_there(
    kind: str, write: Callable[[Path], None], name: str, victim: Path, tmp_path: Path
) -> None:
    MAKE[kind](tmp_path / "home" / name, victim)
    write(tmp_path / "home/a")
    assert (entries(tmp_path / "home"), (tmp_path / "home/a").read_bytes()) == (["a"], b"new")
    assert not (tmp_path / "home/a").is_symlink()


@pytest.mark.parametrize("kind", ["a link", "a hard link", "a link that leads nowhere"])
def test_a_published_file_takes_the_place_of_a_link_and_a_user_s_own_link_is_asked_where_it_leads(
    kind: str, victim: Path, tmp_path: Path
) -> None:
    MAKE[kind](tmp_path / "home/a", victim)
    publish(tmp_path / "home/a", b"new")
    assert ((tmp_path / "home/a").read_bytes(), (tmp_path / "home/a").is_symlink()) == (b"new", False)
    (tmp_path / "home/b").symlink_to("there/c")
    publish(writable(tmp_path / "home/b"), b"new")
    assert (tmp_path / "home/there/c").read_bytes() == (tmp_path / "home/b").read_bytes() == b"new"
    assert (tmp_path / "home/b").is_symlink()


@pytest.mark.parametrize("opened", [positional_file, lambda path: locked_file(path, path)], ids=["open", "locked"])
@pytest.mark.parametrize("kind", MAKE)
def test_a_file_that_is_gone_on_with_is_a_regular_one_with_no_other_name(
    kind: str, opened: Callable[..., Any], victim: Path, tmp_path: Path
) -> None:
    MAKE[kind](tmp_path / "home/a", victim)
    expected = "has another name" if kind == "a hard link" else "is a link or no regular file"
    with pytest.raises(IntegrityError, match=expected), opened(tmp_path / "home/a"):
        raise AssertionError("the block must not begin")


def test_a_lock_may_have_other_names_but_not_lead_elsewhere(victim: Path, tmp_path: Path) -> None:
    """Copies of an index by hard links are backups that many keep, and nothing is written into its lock."""
    (tmp_path / "home/lock").hardlink_to(victim)
    with lock(tmp_path / "home/lock", tmp_path), pytest.raises(Stopped), lock(tmp_path / "home/lock", tmp_path):
        raise AssertionError("the block must not begin")
    (tmp_path / "home/lock").unlink()
    MAKE["a link that leads nowhere"](tmp_path / "home/lock", victim)
    with pytest.raises(IntegrityError, match="remove it"), lock(tmp_path / "home/lock", tmp_path):
        raise AssertionError("the block must not begin")


@pytest.mark.parametrize("name", ["model", "model.partial"])
def test_a_folder_takes_the_place_of_a_link_to_one(name: str, victim: Path, tmp_path: Path) -> None:
    (tmp_path / "home" / name).symlink_to(victim.parent)
    with atomic_folder(tmp_path / "home/model") as partial:
        (partial / "a").write_bytes(b"1")
    assert entries(tmp_path / "home") == ["model", "model/a"]
    assert not (tmp_path / "home/model").is_symlink()


def test_what_another_process_holds_is_told(tmp_path: Path) -> None:
    refuse_held(tmp_path / "a", tmp_path)  # there is nothing
    with (
        locked_file(tmp_path / "a", tmp_path),
        pytest.raises(Stopped, match=f"Another thread of this process is writing {tmp_path};"),
    ):
        refuse_held(tmp_path / "a", tmp_path)
    refuse_held(tmp_path / "a", tmp_path)


# --- what is durable when -----------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The order of what reaches the disk: "fsync NAME SIZE", "fsync FOLDER/", "rename NAME -> NAME"."""
    events: list[str] = []
    fsync, replace, rename = os.fsync, Path.replace, Path.rename

    def record_fsync(descriptor: int) -> None:
        known = {path.stat().st_ino: path for path in (tmp_path, *tmp_path.rglob("*"))}
        path = known[os.fstat(descriptor).st_ino]
        events.append(f"fsync {path.name}/" if path.is_dir() else f"fsync {path.name} {path.stat().st_size}")
        fsync(descriptor)

    def record(move: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def moved(path: Path, target: Path) -> Path:
            events.append(f"rename {path.name} -> {target.name}")
            return move(path, target)

        return moved

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record(replace))
    monkeypatch.setattr(Path, "rename", record(rename))
    return events


def test_a_file_is_durable_before_its_name_and_its_name_before_the_block_is_over(
    disk: list[str], tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    publish(tmp_path / "home/a.bin", b"12345")
    assert disk == ["fsync a.bin.partial 5", "rename a.bin.partial -> a.bin", "fsync home/"]


def test_a_failed_file_is_never_renamed(disk: list[str], tmp_path: Path) -> None:
    with pytest.raises(KeyError), atomic_file(tmp_path / "a.bin"):
        raise KeyError
    assert disk == []


def test_sync_folder_syncs_the_folder_alone(disk: list[str], tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/a.bin").write_bytes(b"1")
    sync_folder(tmp_path / "home")
    assert disk == ["fsync home/"]


def test_new_parent_folders_are_durable_too(disk: list[str], tmp_path: Path) -> None:
    publish(tmp_path / "a/b/c.bin", b"new")
    assert {"fsync b/", "fsync a/", f"fsync {tmp_path.name}/"} <= set(disk)


# --- folders ----------------------------------------------------------------------------------------------------------


def test_check_absent_speaks_only_of_what_is_there(tmp_path: Path) -> None:
    check_absent(tmp_path / "nothing")
    with pytest.raises(UsageError, match="is there already"):
        check_absent(tmp_path)


def test_a_folder_that_could_not_be_made_durable_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would stand in the way of the next try."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        make_folder(tmp_path / "a/b")
    assert entries(tmp_path) == []


def test_a_folder_is_removed_durably_with_all_that_is_in_it(disk: list[str], tmp_path: Path) -> None:
    (tmp_path / "home/index/deep").mkdir(parents=True)
    (tmp_path / "home/index/deep/a").write_bytes(b"1")
    remove_folder(tmp_path / "home/index")
    assert (entries(tmp_path), disk) == (["home"], ["fsync home/"])


def test_a_filled_folder_is_durable_before_its_name_and_replaces_the_old_one(disk: list[str], tmp_path: Path) -> None:
    for content in (b"1", b"22"):
        disk.clear()
        with atomic_folder(tmp_path / "model") as partial:
            assert entries(partial) == []
            (partial / "deep").mkdir()
            (partial / "deep/a").write_bytes(content)
    assert (tmp_path / "model/deep/a").read_bytes() == b"22"
    assert entries(tmp_path) == ["model", "model/deep", "model/deep/a"]
    home = f"fsync {tmp_path.name}/"
    assert set(disk[1:-2]) == {"fsync a 2", "fsync deep/", "fsync model.partial/"}
    assert disk[-2:] == [home, home]  # the old one is gone, the new one is there


def test_a_folder_that_failed_leaves_what_was_there(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "model") as partial:
        (partial / "a").write_bytes(b"1")
    (tmp_path / "model.partial").mkdir()  # what a crashed writer left
    with pytest.raises(KeyError), atomic_folder(tmp_path / "model") as partial:
        (partial / "b").write_bytes(b"2")
        raise KeyError
    assert entries(tmp_path) == ["model", "model/a"]


# --- two writers --------------------------------------------------------------------------------------------------

OTHER_WRITER = """
import sys
from pathlib import Path
from embedkit import storage

with storage.atomic_file(Path(sys.argv[1])) as held:
    held.write(b"theirs")
    print("writing", flush=True)
    sys.stdin.read()  # until this end is closed, or the process is killed
"""


@contextmanager
def other_process_writes(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process in the midst of writing `path`."""
    environment = {**os.environ, "PYTHONPATH": str(Path(embedkit.__file__).parents[1])}
    command = [sys.executable, "-c", OTHER_WRITER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"writing\n"
            yield process
        finally:
            process.kill()


def test_a_second_writer_in_another_process_is_stopped_and_the_first_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "name.v1.x"
    with other_process_writes(path) as process:
        with pytest.raises(Stopped) as error, atomic_file(path):
            raise AssertionError("the block must not begin")
        assert str(error.value) == f"Another process is writing {path}; wait for it to end, then run this again."
        assert error.value.exit_code == 75
        process.communicate(timeout=30)  # closes its standard input: the other writer comes to its end
        assert process.returncode == 0
    assert path.read_bytes() == b"theirs"
    assert not (tmp_path / "name.v1.x.partial").exists()


def test_the_lock_of_a_killed_writer_is_free_and_its_leftovers_are_cleared(tmp_path: Path) -> None:
    path = tmp_path / "name"
    with other_process_writes(path) as process:
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(timeout=30) == -signal.SIGKILL
    assert (tmp_path / "name.partial").exists()
    publish(path, b"o")
    assert entries(tmp_path) == ["name"]
    assert path.read_bytes() == b"o"


def test_a_second_writer_in_the_same_process_is_stopped_and_spoils_nothing(tmp_path: Path) -> None:
    path = tmp_path / "name"
    with atomic_file(path) as held:
        held.write(b"first")
        held.flush()
        with pytest.raises(Stopped), atomic_file(path):
            raise AssertionError("the block must not begin")
    assert path.read_bytes() == b"first"


def test_writers_of_different_names_do_not_meet(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a") as first, atomic_file(tmp_path / "b") as second:
        first.write(b"1")
        second.write(b"2")
    assert entries(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("left", [False, True], ids=["published", "published, and begun anew"])
def test_a_file_that_another_publishes_between_open_and_lock_is_not_written_to(
    left: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The partial file that was opened has become the published one: locking it must not lead to emptying it."""
    flock = fcntl.flock

    def other_is_faster(descriptor: int, operation: int) -> None:
        (tmp_path / "a.bin.partial").write_bytes(b"theirs")
        (tmp_path / "a.bin.partial").replace(tmp_path / "a.bin")
        if left:
            (tmp_path / "a.bin.partial").write_bytes(b"")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", other_is_faster)
    with pytest.raises(Stopped, match=r"is writing .*/a\.bin; wait"), atomic_file(tmp_path / "a.bin"):
        raise AssertionError("the block must not begin")
    assert (tmp_path / "a.bin").read_bytes() == b"theirs"


# --- npy_header ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["<f4", "<f2", "<u4", "<u8", "|u1"])
@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (7,), (0,)])
def test_numpy_loads_what_follows_a_header(shape: tuple[int, ...], dtype: str, tmp_path: Path) -> None:
    rows = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    (tmp_path / "a.npy").write_bytes(npy_header(shape, np.dtype(dtype)) + rows.tobytes())
    found = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert (found.dtype, found.shape) == (np.dtype(dtype), shape)
    assert np.array_equal(found, rows)


def test_a_header_has_128_bytes_whatever_the_shape(tmp_path: Path) -> None:
    fields = b"{'descr': '<f2', 'fortran_order': False, 'shape': (1, 2)}"
    beginning = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    assert npy_header((1, 2), np.dtype("<f2")) == beginning + fields + b" " * (117 - len(fields)) + b"\n"
    (tmp_path / "a.npy").write_bytes(npy_header((10**18, 10**9), np.dtype("<f4")))
    with (tmp_path / "a.npy").open("rb") as stream:
        assert np.lib.format.read_magic(stream) == (1, 0)
        assert np.lib.format.read_array_header_1_0(stream)[0] == (10**18, 10**9)
        assert stream.tell() == 128


# --- file_record, check_size, check_file --------------------------------------------------------------------------

MIB = 2**20


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB + 12_345])
def test_the_record_of_a_file_is_its_length_and_sha256(size: int, tmp_path: Path) -> None:
    content = np.random.default_rng(size).bytes(size)
    (tmp_path / "a.bin").write_bytes(content)
    record = file_record(tmp_path / "a.bin")
    assert record == {"bytes": size, "sha256": hashlib.sha256(content).hexdigest()}
    check_size(tmp_path / "a.bin", record)
    check_file(tmp_path / "a.bin", record)


@pytest.mark.parametrize("check", [check_size, check_file])
@pytest.mark.parametrize(
    ("content", "state"),
    [(b"1234", "has 4 bytes"), (b"123456", "has 6 bytes"), (b"", "has 0 bytes"), (None, "is missing")],
)
def test_a_file_of_another_length_is_named_with_both_lengths(
    check: Callable[..., None], content: bytes | None, state: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"12345")
    record = file_record(path)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(IntegrityError) as error:
        check(path, record)
    assert str(error.value) == f"{path} {state}, its manifest says 5; restore it or build it again."


def test_a_folder_in_place_of_a_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=f"{tmp_path} is missing, its manifest says 0"):
        check_size(tmp_path, {"bytes": 0})


@pytest.mark.parametrize("position", [0, 1, MIB - 1, MIB, MIB + 4])
def test_any_changed_byte_of_a_file_is_found_and_check_size_alone_does_not_look(position: int, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(MIB + 5))
    record = file_record(path)
    with path.open("r+b") as stream:
        stream.seek(position)
        stream.write(b"\x01")
    check_size(path, record)
    with pytest.raises(IntegrityError) as error:
        check_file(path, record)
    assert str(error.value) == (
        f"{path} has changed since it was written (SHA-256 differs); restore it or build it again."
    )


# --- write_json, read_json ----------------------------------------------------------------------------------------

CONTENT: dict[str, Any] = {
    "format": "x",
    "version": 1,
    "name": 'naïve 猫 🐟 "quoted"\n',
    "score": 0.1 + 0.2,
    "tiny": 5e-324,
    "big": 2**70,
    "none": None,
    "yes": True,
    "deep": {"z": [1, 2.5, "a", []], "a": {}},
}


def test_json_comes_back_as_it_was_given(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", CONTENT)
    assert read_json(tmp_path / "a.json") == CONTENT
    assert "checksum" not in CONTENT
    assert entries(tmp_path) == ["a.json"]


def test_the_json_file_is_plain_json_in_the_order_given_with_its_checksum_last(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", CONTENT)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    body = json.loads(text)
    assert list(body) == [*CONTENT, "checksum"]
    assert {**body, "checksum": 0} == {**CONTENT, "checksum": 0}
    assert text == json.dumps(body, indent=1, ensure_ascii=False) + "\n"  # a person can read it, line by line
    canonical = json.dumps(CONTENT, sort_keys=True).encode()
    assert body["checksum"] == hashlib.sha256(canonical).hexdigest()


def test_the_order_of_the_names_does_not_matter_to_the_checksum(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", CONTENT)
    body = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    (tmp_path / "a.json").write_text(json.dumps(dict(reversed(body.items()))), encoding="utf-8")
    assert read_json(tmp_path / "a.json") == CONTENT


def test_json_replaces_what_was_there(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", CONTENT)
    write_json(tmp_path / "a.json", {"b": 1})
    assert read_json(tmp_path / "a.json") == {"b": 1}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", {1, 2}])
def test_what_json_cannot_hold_is_refused_and_the_old_file_stays(value: Any, tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "a.json", {"b": value})
    assert read_json(tmp_path / "a.json") == {"b": 1}
    assert entries(tmp_path) == ["a.json"]


def test_any_flipped_bit_of_a_json_file_is_found_unless_the_content_is_the_same(tmp_path: Path) -> None:
    content = {"é": "1 e", "n": 15, "x": [0.25, None, True], "y": {"z": ""}}
    path = tmp_path / "a.json"
    write_json(path, content)
    whole = path.read_bytes()
    found = harmless = 0
    for position in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << bit
            path.write_bytes(flipped)
            try:
                assert read_json(path) == content
                assert whole[position : position + 1].isspace()
                harmless += 1
            except IntegrityError as error:
                assert str(error) == f"{path} is damaged (its checksum does not fit); restore it or build it again."
                found += 1
    assert found + harmless == 8 * len(whole)
    assert found > 0.9 * 8 * len(whole)


def test_a_json_file_cut_at_any_length_is_found_unless_only_its_last_line_end_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, 2], "b": "x"})
    whole = path.read_bytes()
    for length in range(len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(IntegrityError):
            read_json(path)
    path.write_bytes(whole[:-1])
    assert read_json(path) == {"a": [1, 2], "b": "x"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"5",
        b"{}",
        b'{"a": 1}',
        b'{"a": 1, "checksum": null}',
        b'{"a": 1, "checksum": "' + hashlib.sha256(b'{"a": 2}').hexdigest().encode() + b'"}',
        b'{"a": "\xe9"}',
        b"[" * 100_000,
        b'{"a": ' + b"7" * 5000 + b"}",
    ],
    ids=lambda content: repr(content[:24]),
)
def test_what_write_json_did_not_write_is_damaged(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(IntegrityError, match="is damaged"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    "content",
    [{"checksum": "mine", "a": 1}, {"a": {9: "x", 10: "y"}}],
    ids=["a field of that name", "numbers as names"],
)
def test_no_content_is_written_that_counts_as_damaged(content: dict[str, Any], tmp_path: Path) -> None:
    try:
        write_json(tmp_path / "a.json", content)
    except (ValueError, TypeError):
        assert not (tmp_path / "a.json").exists()  # refused, which is as good
    else:
        assert read_json(tmp_path / "a.json") == json.loads(json.dumps(content))


def test_an_unchanged_copy_is_as_good(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", CONTENT)
    shutil.copy(tmp_path / "a.json", tmp_path / "b.json")
    assert read_json(tmp_path / "b.json") == CONTENT


class Shape(TypedDict):
    a: int


@pytest.mark.parametrize(
    ("content", "reason"),
    [({"a": "1"}, "a is '1', not a whole number"), ({"b": 1}, "a is missing"), ({"a": True}, "a is True, not a whole")],
)
def test_json_of_other_types_is_refused_though_its_checksum_fits(
    content: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    write_json(tmp_path / "a.json", {"a": 1, "more": None})
    assert read_json(tmp_path / "a.json", Shape) == {"a": 1, "more": None}
    write_json(tmp_path / "a.json", content)
    with pytest.raises(IntegrityError, match=rf"a\.json: {reason}"):
        read_json(tmp_path / "a.json", Shape)


def test_json_that_nobody_could_write_again_is_damaged(tmp_path: Path) -> None:
    for body in ('{"a": "\\ud800"}', '{"a": NaN}', '{"a": 1e999}', '{"a": ' + "[" * 60 + "]" * 60 + "}"):
        content = json.loads(body)
        checksum = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        (tmp_path / "a.json").write_text(body[:-1] + f', "checksum": "{checksum}"}}')
        with pytest.raises(IntegrityError, match="is damaged"):
            read_json(tmp_path / "a.json")


def test_json_is_read_from_regular_files_of_a_limited_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(IntegrityError, match="is a pipe"):
        read_json(tmp_path / "pipe.json")
    write_json(tmp_path / "a.json", CONTENT)
    monkeypatch.setattr("embedkit.storage.MANIFEST", (tmp_path / "a.json").stat().st_size - 1)
    with pytest.raises(IntegrityError, match="the most that is read of such a file"):
        read_json(tmp_path / "a.json")


# --- positional files ---------------------------------------------------------------------------------------------


def test_bytes_go_where_they_are_sent_in_however_many_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, pread = os.pwrite, os.pread
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: pwrite(descriptor, bytes(data)[:3], at))
    monkeypatch.setattr(os, "pread", lambda descriptor, length, at: pread(descriptor, min(length, 2), at))
    with positional_file(tmp_path / "a") as file:
        file.write(4, b"0123456789")
        file.write(0, memoryview(np.arange(1, dtype="<u4")))
        assert file.read(0, 100) == bytes(4) + b"0123456789"
        assert (file.read(5, 3), file.read(14, 3), file.size) == (b"123", b"", 14)
        file.truncate(5)
    assert (tmp_path / "a").read_bytes() == bytes(4) + b"0"


@pytest.mark.parametrize("call", ["pwrite", "pread", "fsync", "ftruncate"])
def test_an_error_on_a_descriptor_names_the_file(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "a fault")

    monkeypatch.setattr(os, call, fail)
    steps: dict[str, Callable[[PositionalFile], Any]] = {
        "pwrite": lambda file: file.write(0, b"a"),
        "pread": lambda file: file.read(0, 1),
        "fsync": lambda file: file.sync(),
        "ftruncate": lambda file: file.truncate(0),
    }
    with positional_file(tmp_path / "a") as file, pytest.raises(OSError) as error:
        steps[call](file)
    assert (error.value.errno, error.value.filename) == (errno.EIO, str(tmp_path / "a"))


def test_a_locked_file_has_one_writer_and_keeps_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.ledger").write_bytes(b"kept")
    with locked_file(tmp_path / "a.ledger", tmp_path / "a.npy") as file:
        with (
            pytest.raises(Stopped, match=r"Another thread of this process is writing .*/a\.npy; wait"),
            locked_file(tmp_path / "a.ledger", tmp_path / "a.npy"),
        ):
            raise AssertionError("the block must not begin")
        assert file.read(0, 9) == b"kept"


def test_a_sealed_partial_is_durable_and_keeps_its_name(disk: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.partial").write_bytes(b"older and longer")
    with sealed_partial(tmp_path / "a.partial") as stream:
        stream.write(b"new")
        stream.write(b"er")
    assert disk == ["fsync a.partial 5"]
    assert (tmp_path / "a.partial").read_bytes() == b"newer"


def test_after_an_error_what_was_buffered_goes_nowhere(tmp_path: Path) -> None:
    """Written when the stream is cleared away, it would go to whatever file has its descriptor by then."""
    kept = []
    with pytest.raises(KeyError), sealed_partial(tmp_path / "a.partial") as stream:
        kept.append(stream)
        stream.write(b"buffered")
        raise KeyError
    with (tmp_path / "innocent").open("wb") as other:
        kept.clear()
        other.write(b"mine")
    assert ((tmp_path / "a.partial").read_bytes(), (tmp_path / "innocent").read_bytes()) == (b"", b"mine")


def test_what_another_library_wrote_is_made_durable(disk: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").write_bytes(b"12345")
    sync_file(tmp_path / "a.sqlite")
    assert disk == ["fsync a.sqlite 5"]


# --- records block by block ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 250])
def test_every_block_has_the_sha256_of_its_bytes(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedkit.storage.BLOCK", 100)
    content = bytes(range(256))[:size]
    (tmp_path / "a").write_bytes(content)
    parts = [content[start : start + 100] for start in range(0, size, 100)]
    hashes = [hashlib.sha256(part).hexdigest() for part in parts]
    assert block_record(tmp_path / "a") == {"bytes": size, "block": 100, "sha256": hashes}
    check_blocks(tmp_path / "a", block_record(tmp_path / "a"))


@pytest.mark.parametrize(("place", "start", "end"), [(0, 0, 100), (99, 0, 100), (100, 100, 200), (249, 200, 250)])
def test_a_changed_byte_is_found_in_its_block(
    place: int, start: int, end: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedkit.storage.BLOCK", 100)
    (tmp_path / "a").write_bytes(bytes(250))
    record = block_record(tmp_path / "a")
    with (tmp_path / "a").open("r+b") as stream:
        stream.seek(place)
        stream.write(b"x")
    with pytest.raises(IntegrityError, match=rf"a has changed .* \(SHA-256 of its bytes {start} to {end} differs\)"):
        check_blocks(tmp_path / "a", record)
    (tmp_path / "a").write_bytes(bytes(251))
    with pytest.raises(IntegrityError, match="a has 251 bytes, its manifest says 250"):
        check_blocks(tmp_path / "a", record)


# --- files that readers hold --------------------------------------------------------------------------------------


def test_a_file_that_somebody_holds_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    first, second = shared_hold(tmp_path / "a"), shared_hold(tmp_path / "a")  # any number of readers
    assert first is not None and second is not None
    for hold in (first, second):
        assert not remove_unheld(tmp_path / "a")
        os.close(hold)
    assert remove_unheld(tmp_path / "a")
    assert entries(tmp_path) == []
    assert shared_hold(tmp_path / "a") is None


@pytest.mark.parametrize("again", [False, True], ids=["gone", "gone, and another of the name"])
def test_a_file_that_is_removed_while_it_is_opened_is_not_held(
    again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"1")
    before, flock = open_descriptors(), fcntl.flock

    def other_is_faster(descriptor: int, operation: int) -> None:
        if again:
            (tmp_path / "b").write_bytes(b"2")
            (tmp_path / "b").replace(tmp_path / "a")
        else:
            (tmp_path / "a").unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", other_is_faster)
    assert shared_hold(tmp_path / "a") is None
    assert open_descriptors() == before


def test_without_locks_nothing_is_removed_and_everything_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on some network folders."""
    (tmp_path / "a").write_bytes(b"1")

    def unknown(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    hold = shared_hold(tmp_path / "a")
    assert hold is not None
    os.close(hold)
    assert not remove_unheld(tmp_path / "a")


def test_an_error_that_has_nothing_to_do_with_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"1")

    def broken(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "a fault")

    monkeypatch.setattr(Path, "unlink", broken)
    with pytest.raises(OSError, match="a fault"):
        remove_unheld(tmp_path / "a")


# --- checksums of JSON --------------------------------------------------------------------------------------------


def test_the_checksum_leaves_times_out_and_nothing_else(tmp_path: Path) -> None:
    one, other = ({"a": 1, "times": {"created": when}} for when in ("now", "then"))
    checksums = [json.loads(sealed_json(content))["checksum"] for content in (one, other, {"a": 1}, {"a": 2})]
    assert checksums[0] == checksums[1] == checksums[2] != checksums[3]
    write_json(tmp_path / "a.json", one)
    assert read_json(tmp_path / "a.json") == one
