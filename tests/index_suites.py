"""The long suites of the index; no tests of the suite, which runs samples of them by fixed seeds.

    python tests/index_suites.py crash       every storage operation of every change fails, or is the last before the power goes
    python tests/index_suites.py kills       real processes, ended by SIGKILL at any moment, also while they recover
    python tests/index_suites.py operations  random changes and questions against a dict
    python tests/index_suites.py flips       every byte changed, and files cut at any length
    python tests/index_suites.py churn       --commits 2000 changes, dense and with a sparse leg, collector off: descriptors at most
    python tests/index_suites.py closes      --closes 1000 of an index that threads are searching
    python tests/index_suites.py readers     --minutes 30 of 4 threads and 2 processes that search beside a writer, and memory

Each run is at once a line of --rows (by default SUITE.jsonl); the same arguments go on there. Exit code 1 where anything was lost,
wrong, or ended the interpreter.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from embedkit.errors import IntegrityError, UsageError  # noqa: E402
from embedkit.index import Index  # noqa: E402
from embedkit.index.manifest import check_files, read_manifest  # noqa: E402
from embedkit.jobs import add_to_index, build_index, open_index  # noqa: E402
from embedkit.types import Document  # noqa: E402
from tests.engine.fakes import Windowed, row  # noqa: E402
from tests.index.lexical import bm25  # noqa: E402
from tests.index_loads import churn, closes, readers  # noqa: E402

Found = Counter[str]
Row = dict[str, Any]
LONG_AGO = "2000-01-01T00:00:00+00:00"


class Rows:
    """What was found so far, a line a run; what stands there is not done again."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        self.done = {json.dumps(line["run"]): line for line in map(json.loads, lines)}
        self.total: Found = Counter()

    def add(self, run: list[Any], make: Callable[[], Found]) -> Row:
        """The row of a run."""
        known = self.done.get(json.dumps(run))
        if known is None:
            known = {"run": run, **make()}
            if self.path is not None:
                with self.path.open("a") as stream:
                    stream.write(json.dumps(known) + "\n")
        self.total.update({name: value for name, value in known.items() if isinstance(value, int)})
        return known


def noted(found: Found, what: str, step: Callable[[], str | None]) -> None:
    """Counts what a step came to; what it should not have come to is printed, too."""
    try:
        outcome = step()
        found[what + (f", {outcome}" if outcome else "")] += 1
    except Exception:
        found[f"WRONG: {what}"] += 1
        print(f"--- {what}\n{traceback.format_exc()}", flush=True)


# --- crash ----------------------------------------------------------------------------------------------------------------


def crash(rows: Rows, seeds: range) -> None:
    from tests.index.test_crash import CHANGES, Case, small_and_unsynced

    with tempfile.TemporaryDirectory() as base, small_and_unsynced():
        for name in CHANGES:
            case = Case(Path(base) / name.replace(" ", "-"), name)
            rows.add(["failures", name], lambda case=case: failures(case))
            for seed in seeds:
                rows.add(["crashes", name, seed], lambda case=case, seed=seed: crashes(case, seed))


def failures(case: Any) -> Found:
    from tests.index.test_crash import FAILURES

    found: Found = Counter()
    for k in range(case.operations):
        for name, code in FAILURES.items():
            noted(found, f"an operation fails with {name}", lambda code=code, k=k: case.fail(k, code))
        noted(found, "all operations fail from one on", lambda k=k: case.fail(k, 5, upto=10**6))
    return found


def crashes(case: Any, seed: int) -> Found:
    found: Found = Counter()
    draw = random.Random(f"{case.change} {seed}"[-30:])
    for k in range(case.operations + 1):
        noted(found, "the power goes", lambda k=k: case.crash(k, draw))
        if k < len(case.log) and case.log[k] == "fsync":
            noted(found, "an fsync fails, and the power goes", lambda k=k: case.crash(k, draw, fsync_fails=True))
    return found


# --- kills ----------------------------------------------------------------------------------------------------------------

STEPS = 40  # of one life of an index
KINDS = ("add by a job", "add at once", "add vectors", "delete", "delete by filter", "compact")
Life = dict[str, tuple[Document, bytes]]  # id -> document, its row


class Slow(Windowed):
    """Takes its time, so that kills hit it."""

    pause = 0.004

    def _window(self, *arguments: Any) -> Any:
        time.sleep(self.pause)
        return super()._window(*arguments)


class Plan:
    """What is done to an index, step by step; each follows from the seed and its number alone."""

    def __init__(self, seed: str) -> None:
        self.seed = seed

    def _step(self, number: int) -> tuple[str, list[Document], list[str], int]:
        draw = random.Random(f"{self.seed} {number}")
        kind = draw.choice(KINDS) if number else "build"
        names = [f"d{n}" for n in draw.sample(range(60), 30 if number == 0 else draw.choice([1, 3, 9]))]
        documents = [Document(name, f"{number} {name}", metadata={"n": draw.randrange(9)}) for name in names]
        return kind, documents, names, draw.randrange(9)

    def do(self, number: int, path: Path, resume: bool) -> None:
        kind, documents, names, n = self._step(number)
        if kind == "build":
            build_index(documents, path, model=Slow(), resume=path.exists(), sparse="bm25").close()
        elif kind == "add by a job":
            add_to_index(path, documents, model=Slow(), resume=resume)
        else:
            with open_index(path, Windowed()) as index:
                if kind == "add at once":
                    index.add(documents)
                elif kind == "add vectors":
                    index.add(np.array([row(document.text) for document in documents]), ids=names)
                elif kind == "delete":
                    index.delete(names)
                elif kind == "delete by filter":
                    index.delete(where={"n": n})
                else:
                    index.compact()

    def after(self, steps: int) -> Life | None:
        """What the index holds then; None where there is none yet."""
        life: Life = {}
        for number in range(steps):
            kind, documents, names, n = self._step(number)
            if kind == "delete":
                life = {name: entry for name, entry in life.items() if name not in names}
            elif kind == "delete by filter":
                life = {name: entry for name, entry in life.items() if entry[0].metadata.get("n") != n}
            elif kind != "compact":
                bare = kind == "add vectors"
                life |= {d.id: (Document(d.id, "") if bare else d, row(d.text).tobytes()) for d in documents}
        return life if steps else None


def is_life(path: Path, life: Life | None) -> bool:
    """Whether an index, every byte of it verified, holds exactly this."""
    try:
        index = Index(path, check=True)
    except UsageError:
        return life is None
    with index:
        if life is None or len(index) != len(life):
            return False
        query = np.ones((1, index.dim), np.float32)
        hits = index.search(query, max(1, len(life)))
        assert hits.documents is not None
        found = {
            document.id: (document, score) for document, score in zip(hits.documents[0], hits.scores[0], strict=False)
        }
        texts = {name: document.text for name, (document, _) in life.items()}
        asked = " ".join(sorted(f"{name} {text}" for name, text in texts.items())[::3])
        terms = index.search(asked, max(1, len(life)), mode="sparse")
        expected = bm25(texts, asked)
        by_terms = dict(zip(terms.ids[0], terms.scores[0].tolist(), strict=False))
        if by_terms.keys() != expected.keys() or any(abs(by_terms[n] - s) > 1e-3 for n, s in expected.items()):
            return False
        vectors = {name: np.frombuffer(data, np.float32) for name, (_, data) in life.items()}
        scores = {name: vector.sum() / np.linalg.norm(vector) / index.dim**0.5 for name, vector in vectors.items()}
        return set(found) == set(life) and all(
            found[name][0] == life[name][0] and abs(found[name][1] - scores[name]) < 2e-3 for name in life
        )


def live(folder: Path, seed: str) -> None:
    """The process that is killed: goes on behind the last step that it said was done."""
    said = folder / "said"
    plan, first = Plan(seed), True
    number = said.stat().st_size if said.exists() else 0
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while number < STEPS:
        plan.do(number, folder / "an.index", resume=first)
        os.write(descriptor, b"x")
        number, first = number + 1, False


SHAPES: dict[str, dict[str, Any]] = {
    "passages": {"on_long": "chunk", "fine": "int8", "sparse": "bm25"},
    "codes": {"coarse": "IVF4,SQ8", "fine": "float16"},
}


def build(folder: Path, shape: str) -> None:
    """A build from a corpus, begun or gone on with."""
    import embedkit.engine.run as run

    run.WINDOW = 16
    texts = ["bad" if n % 61 == 5 else f"text {n}" + " and more of it" * (n % 5 == 0) for n in range(320)]
    documents = [Document(f"d{n}", text, metadata={"n": n}) for n, text in enumerate(texts)]
    build_index(documents, folder / "an.index", model=Slow(), resume=True, **SHAPES[shape]).close()


class Zygote:
    """A process that has imported everything, and becomes the processes that are killed."""

    def __enter__(self) -> Zygote:
        command = [sys.executable, str(Path(__file__).resolve()), "--zygote"]
        single = {**os.environ, "OMP_NUM_THREADS": "1"}  # a process with threads of OpenMP cannot be forked
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, bufsize=0, env=single
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def run(self, what: str, folder: Path, argument: str, seconds: float | None = None) -> tuple[int, bool]:
        """(status, whether it was killed), after so many seconds at most."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([what, str(folder), argument]).encode() + b"\n")
        pid = int(self.process.stdout.readline())
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        if not ready:
            with suppress(ProcessLookupError):  # it ended by itself just now
                os.kill(pid, signal.SIGKILL)
        status = int(self.process.stdout.readline())
        return status, os.WIFSIGNALED(status)


def zygote() -> None:
    logging.disable(logging.CRITICAL)
    for line in sys.stdin:
        what, folder, argument = json.loads(line)
        if (pid := os.fork()) == 0:
            os.dup2(2, 1)
            try:
                {"live": live, "build": build}[what](Path(folder), argument)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


def kills(rows: Rows, lives: int, builds: int, seed: int) -> None:
    """At least so many kills of either kind."""
    with tempfile.TemporaryDirectory() as base, Zygote() as parent:
        number = 0
        while rows.total["kills of a changing index"] < lives:
            run = ["life", seed, number]
            left = lives - rows.total["kills of a changing index"]
            rows.add(run, lambda run=run, left=left: killed_life(parent, Path(base) / str(run[2]), f"{run}", left))
            number += 1
        wholes: dict[str, tuple[dict[str, bytes], float]] = {}
        number = 0
        while rows.total["kills of a build"] < builds:
            shape = list(SHAPES)[number % len(SHAPES)]
            if shape not in wholes:
                folder = Path(base) / shape
                folder.mkdir()
                started = time.monotonic()
                parent.run("build", folder, shape)
                wholes[shape] = files_of(folder / "an.index"), time.monotonic() - started
            run = ["build", seed, number]
            rows.add(
                run,
                lambda run=run, shape=shape: killed_build(
                    parent, Path(base) / f"b{run[2]}", run, shape, *wholes[shape]
                ),
            )
            number += 1


def killed_life(parent: Zygote, folder: Path, seed: str, most: int) -> Found:
    """One life of an index, until its last step or `most` kills."""
    folder.mkdir()
    draw, found, plan = random.Random(seed), Counter[str](), Plan(seed)
    patience, before = 1.0, 0
    while found["kills of a changing index"] < most:
        again = (folder / "said").exists()
        status, killed = parent.run("live", folder, seed, patience * draw.choice([0.03, 0.15, 0.4]) * draw.random())
        said = (folder / "said").stat().st_size if (folder / "said").exists() else 0
        # on a machine that is busy nothing would ever be done before the next kill
        patience, before = (1.3 * patience if said == before else max(1.0, patience / 1.3)), said
        if not killed:
            found["lives that were lived to the end" if status == 0 else "WRONG: a process failed"] += 1
            found["steps of lives that ended"] += said
            found["WRONG: content at the end"] += not is_life(folder / "an.index", plan.after(STEPS))
            break
        found["kills of a changing index"] += 1
        found["of these, while it recovered"] += again

        def look(said: int = said) -> str:
            for steps in (said, said + 1):
                if is_life(folder / "an.index", plan.after(steps)):
                    return "as it was" if steps == said else "with the step that was not told any more"
            raise AssertionError(f"{folder} holds neither step {said} nor {said + 1} of {seed}")

        noted(found, "opened after a kill", look)
    if not any("WRONG" in name and value for name, value in found.items()):
        shutil.rmtree(folder)
    return +found


def killed_build(
    parent: Zygote, folder: Path, run: list[Any], shape: str, whole: dict[str, bytes], seconds: float
) -> Found:
    """A build that is killed one to three times, and gone on with."""
    folder.mkdir()
    draw, found = random.Random(str(run)), Counter[str]()
    for _ in range(draw.choice([1, 2, 3])):
        status, killed = parent.run("build", folder, shape, draw.random() * seconds)
        found["kills of a build"] += killed
        found["WRONG: a build failed"] += not killed and status != 0
    status, _ = parent.run("build", folder, shape)
    same = status == 0 and files_of(folder / "an.index") == whole
    found["builds that end with the same bytes" if same else "WRONG: a build ends with other bytes"] += 1
    if same:
        shutil.rmtree(folder)
    return +found


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file but what a build says of its own time; of a manifest all but its time."""
    found = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(".built.json")}
    for name in [name for name in found if name.endswith(".json")]:
        body = {**json.loads(found[name]), "created": LONG_AGO, "checksum": ""}
        found[name] = json.dumps(body).encode()
    return found


# --- operations -----------------------------------------------------------------------------------------------------------


def operations(rows: Rows, count: int, seed: int) -> None:
    """So many in all, in games of 250; every game has a seed of its own."""
    from tests.index.test_operations import CONFIGS

    games = -(-count // 250)
    for number in range(games):
        name = list(CONFIGS)[number % len(CONFIGS)]
        rows.add(["operations", name, seed + number], lambda name=name, own=seed + number: game(name, own))


def game(name: str, seed: int) -> Found:
    from tests.index.test_operations import CONFIGS, Game, selectors_used

    print(f"seed {seed}: {name}", flush=True)
    found: Found = Counter()
    with tempfile.TemporaryDirectory() as base, selectors_used():

        def play() -> None:
            count = Game(Path(base) / "x", CONFIGS[name], seed).play(250)
            found.update({f"operations: {kind}": value for kind, value in count.items()})
            found["operations"] += sum(count.values())

        noted(found, "games", play)
    return found


# --- flips ----------------------------------------------------------------------------------------------------------------


def flips(rows: Rows, sqlite_every: int, seed: int) -> None:
    """Every byte for `verify`; a search without a check after each, of SQLite files after every so many."""
    from tests.index.test_damage import make

    with tempfile.TemporaryDirectory() as base:
        make(Path(base) / "an.index")
        sizes = {
            file.name: file.stat().st_size
            for file in sorted((Path(base) / "an.index").iterdir())
            if file.name != "lock"
        }
    for name, size in sizes.items():
        for start in range(0, size, 4096):
            arguments = [name, start, min(size, start + 4096), sqlite_every if "sqlite" in name else 1, seed]
            rows.add(["flips", *arguments], lambda arguments=arguments: in_a_child(arguments))


def in_a_child(arguments: list[Any]) -> Found:
    """The flips of a range of bytes; the end of the interpreter is counted, and what is behind it is gone on with."""
    found: Found = Counter()
    start = arguments[1]
    while start < arguments[2]:
        asked = [str(argument) for argument in [arguments[0], start, *arguments[2:]]]
        done = subprocess.run(
            [sys.executable, __file__, "--flips", *asked], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        lines = done.stdout.splitlines()
        print("\n".join(line for line in lines[:-1] if not line.isdigit()), end="", flush=True)
        if done.returncode == 0:
            return found + Counter(json.loads(lines[-1]))
        position = int(lines[-1]) if lines else start
        found["WRONG: the interpreter ended"] += 1
        print(f"--- {asked} ended with {done.returncode} at byte {position}", flush=True)
        start = position + 1
    return found


def flip_range(name: str, start: int, stop: int, every: int, seed: int) -> None:
    """In a process of its own: the position before each look, then what was found."""
    from embedkit.index.faiss_import import faiss_threads
    from tests.index.test_damage import Damaged

    logging.disable(logging.CRITICAL)
    draw, found = random.Random(f"{name} {start} {seed}"), Counter[str]()
    with tempfile.TemporaryDirectory() as base, faiss_threads(1):
        damaged = Damaged(Path(base) / "an.index")
        file, manifest = damaged.path / name, read_manifest(damaged.path)
        whole = file.read_bytes()
        for position in range(start, min(stop, len(whole))):
            print(position, flush=True)
            flipped = bytearray(whole)
            flipped[position] ^= draw.choice([0xFF, 1 << draw.randrange(8), draw.randrange(1, 256)])
            file.write_bytes(flipped)
            noted(found, "flips", lambda: named_by_verify(damaged.path, manifest, name))
            if position % every == 0:
                noted(found, "searches over a flipped byte", lambda: damaged.unchecked(file))
            file.write_bytes(whole)
        if start == 0:
            lengths = range(len(whole)) if len(whole) < 4096 else sorted(draw.sample(range(len(whole)), 200))
            for length in lengths:
                noted(found, "truncations", lambda length=length: damaged.cut(file, length))
    print(json.dumps(found))


def named_by_verify(path: Path, manifest: Any, name: str) -> None:
    try:
        check_files(path, read_manifest(path) if "manifest" in name else manifest)
    except IntegrityError as error:
        assert name in str(error), str(error)
        return
    raise AssertionError("verify passed")


# --- the command line -----------------------------------------------------------------------------------------------------


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "suite", nargs="?", choices=["crash", "kills", "operations", "flips", "churn", "closes", "readers"]
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=Path, help="a line a run; goes on where it ends")
    parser.add_argument("--seeds", type=int, default=3, help="crash: seeds of what is left on the disk")
    parser.add_argument("--lives", type=int, default=200, help="kills of an index that is changed")
    parser.add_argument("--builds", type=int, default=40, help="kills of a build")
    parser.add_argument("--count", type=int, default=12_000, help="operations")
    parser.add_argument(
        "--sqlite-every", type=int, default=8, help="flips: searches in SQLite files at every so many bytes"
    )
    parser.add_argument("--commits", type=int, default=2000, help="churn: of each kind")
    parser.add_argument("--closes", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=30, help="readers")
    parser.add_argument("--settled", type=float, default=5, help="readers: minutes after which memory must not grow")
    parser.add_argument("--zygote", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--flips", nargs=5, help=argparse.SUPPRESS)
    return parser.parse_args()


def summary(rows: Rows, started: float) -> Iterator[str]:
    for name, value in sorted(rows.total.items()):
        yield f"{value:7}  {name}"
    yield f"{time.monotonic() - started:7.0f}  seconds"


def do(rows: Rows, options: argparse.Namespace) -> None:
    if options.suite == "crash":
        crash(rows, range(options.seed, options.seed + options.seeds))
    elif options.suite == "kills":
        kills(rows, options.lives, options.builds, options.seed)
    elif options.suite == "operations":
        operations(rows, options.count, options.seed)
    elif options.suite == "churn":
        for sparse in (False, True):
            run = ["churn", options.commits, options.seed, sparse]
            rows.add(run, lambda sparse=sparse: churn(options.commits, options.seed, sparse))
    elif options.suite == "closes":
        rows.add(["closes", options.closes, options.seed], lambda: closes(options.closes, options.seed))
    elif options.suite == "readers":
        lengths = 60 * options.minutes, options.seed, 60 * options.settled
        rows.add(["readers", *lengths], lambda: readers(*lengths))
    else:
        flips(rows, options.sqlite_every, options.seed)


def main() -> int:
    options = parsed()
    if options.zygote:
        zygote()
        return 0
    if options.flips:
        name, *numbers = options.flips
        flip_range(name, *map(int, numbers))
        return 0
    logging.disable(logging.CRITICAL)
    started, rows = time.monotonic(), Rows(options.rows or Path(f"{options.suite}.jsonl"))
    if options.suite != "kills":
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where faiss warns that a few rows are few
    do(rows, options)
    print("\n".join(summary(rows, started)))
    return int(any("WRONG" in name and value for name, value in rows.total.items()))


if __name__ == "__main__":
    sys.exit(main())
