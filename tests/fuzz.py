"""Does any input make embedkit fail in another way than it promises? `python tests/fuzz.py [--seconds 60] [--seed 0]`

Changes every file format that embedkit reads, mostly so that its structure and its checksums stay sound, and every command's
arguments. Two processes side by side: one reads (thousands of inputs a minute), the other runs whole commands, each in a
process forked from one that has imported the libraries. Allowed are the exit codes 0, 2 to 6 and 75; a reader may raise what the
command line turns into one of them. Reported are everything else, and: more than 3 GB of memory or 60 s, a socket, another process, a
write outside the folder, a control character in what is said. Prints what it found, as JSON that `--replay FILE` runs again, and a
table of how many inputs each format and each command had. Exit code 1 where something was found.

`tests/fuzz_seeds.jsonl` keeps what was found and mended; `make test` replays it (tests/test_fuzz.py).
`--faults` puts six mended faults back, one at a time, and says whether each is found.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.modules["trio"] = None  # type: ignore[assignment]  # of selenium (extra dev): the hub's client imports it, and it asks ldconfig
CLEARING = "clearing away"  # the thread that the watch does not listen to
MOST_MEMORY, MOST_SECONDS = 3 << 30, 60
RENEWED = 300  # seconds after which a process is followed by a fresh one
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # a file system in memory, where there is one
ALLOWED = {0, 2, 3, 4, 5, 6, 75}
RAW = re.compile("[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

Case = dict[str, Any]  # {"format": name, "edits": [...], "seed": of the reader} or with "command": [...] as well


def bases() -> Path:
    """A folder with a sound example of each format, made once a run in a process of its own: whoever forks must not have
    used a library that keeps threads."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-bases-", dir=MEMORY))
    subprocess.run(
        [sys.executable, __file__, "--make", str(folder)],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return folder


def make_bases(folder: Path) -> None:
    from tests.fuzzing.formats import FORMATS

    for name, form in FORMATS.items():
        (folder / name).mkdir()
        form.make(folder / name)
    # beside the changed files of every command: sound ones of the other formats
    sound = folder / "sound"
    shutil.copytree(folder / "model" / "m", sound / "m")
    shutil.copytree(folder / "index, exact" / "flat", sound / "flat")
    for name, file in (
        ("jsonl", "c.jsonl"),
        ("training data", "anchors.jsonl"),
        ("vectors", "bare.npy"),
        ("vectors", "bare.ids.txt"),
    ):
        shutil.copy(folder / name / file, sound / file)
    shutil.copy(folder / "vectors" / "bare.npy", sound / "rows.npy")
    shutil.copytree(sound / "flat", sound / "i.index")
    (sound / "ids.txt").write_text("d3-3\n")


def drawn(base: Path, chance: random.Random, whole: bool) -> Case:
    """A case at random: a format, one to three changes, and for a whole command its words."""
    from tests.fuzzing import commands, edits
    from tests.fuzzing.formats import FORMATS

    names = list(commands.COMMANDS) if whole else list(FORMATS)
    costs = [1.0 if whole else FORMATS[name].cost for name in names]
    name = chance.choices(names, [1 / cost for cost in costs])[0]
    folder = base / name
    pattern = chance.choice(FORMATS[name].files)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.glob(pattern) if path.is_file())
    count = chance.choices([0, 1, 2, 3], [2 if whole else 0, 6, 2, 1])[0]
    changes = []
    for _ in range(count):
        try:
            changes.append(edits.drawn(folder, files, chance))
        except (ValueError, KeyError, IndexError):  # a file of a form that `edits` only knows as bytes
            changes.append(["splice", chance.choice(files), chance.random(), chance.choice([0, 1, 100]), "00"])
    case: Case = {"format": name, "edits": changes, "sealed": chance.random() < 0.85, "seed": chance.randrange(1000)}
    if whole:
        case["command"] = commands.drawn(name, chance)
    return case


def laid_out(case: Case, base: Path, work: Path) -> Path:
    """The case's files, changed, in a fresh folder with a victim above it that nothing may touch."""
    from tests.fuzzing import edits

    if work.exists():
        away = work.with_name(f"{work.name}-{time.monotonic_ns()}")
        work.rename(away)
        if "command" in case:  # whoever forks has one thread
            shutil.rmtree(away, ignore_errors=True)
        else:  # beside the next cases: it waits for the system much longer than it computes
            for thread in threading.enumerate():
                if thread.name == CLEARING:
                    thread.join()
            threading.Thread(target=shutil.rmtree, args=(away, True), name=CLEARING).start()
    folder = work / "up" / "w"
    folder.parent.mkdir(parents=True)
    (work / "tmp").mkdir()
    (work / "victim").write_text("precious")
    if "command" in case:
        shutil.copytree(base / "sound", folder)
    shutil.copytree(base / case["format"], folder, dirs_exist_ok=True)
    for edit in case["edits"]:
        edits.make(folder, edit)
    if case["sealed"]:
        edits.reseal(folder)
    return folder


def read_once(case: Case, base: Path, work: Path, watch: Any) -> str | None:
    """Runs a reader; what is wrong with how it ended."""
    from tests.fuzzing.formats import FORMATS

    folder = laid_out(case, base, work)
    watch.wake(work / "up", work / "tmp")
    wrong = None
    try:
        FORMATS[case["format"]].read(folder, random.Random(case["seed"]))
    except BaseException as error:  # PanicException of tokenizers is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        wrong = judged(error)
    seen = watch.sleep()
    if (work / "victim").read_text() != "precious":
        seen.append("changes a file outside")
    return wrong or (seen[0] if seen else None)


def judged(error: BaseException) -> str | None:
    """None where the command line has a sentence for the error."""
    import click

    from embedkit.errors import EmbedkitError

    fine = isinstance(error, (EmbedkitError, MemoryError, click.ClickException)) or (
        isinstance(error, OSError) and error.filename is not None
    )
    if fine:
        return (
            f"says raw characters: {ascii(str(error))[:200]}"
            if isinstance(error, EmbedkitError) and RAW.search(str(error))
            else None
        )
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    return f"{type(error).__name__}: {ascii(str(error))[:160]} at {' '.join(places[-4:])}"


def run_once(case: Case, base: Path, work: Path, watch: Any) -> str | None:
    """Runs a whole command in a forked process; what is wrong with how it ended."""
    folder = laid_out(case, base, work)
    home = work / "home"
    home.mkdir()
    said = work / "said"
    child = os.fork()
    if child == 0:
        _be_the_command(case["command"], folder, home, said, work, watch)
    usage, code = _waited(child)
    if isinstance(code, str):
        return code
    text = said.read_bytes().decode("utf-8", "replace")
    if code not in ALLOWED:
        return f"exit {code}: {text[-600:]!a}"
    if RAW.search(text):
        return f"prints raw characters: {text[:200]!a}"
    if "Traceback" in text:
        return f"prints a traceback: {text[-600:]!a}"
    seen = (work / "seen").read_text().splitlines() if (work / "seen").exists() else []
    seen += [f"writes into HOME: {path.name}" for path in home.rglob("*")][:1]
    if (work / "victim").read_text() != "precious":
        seen.append("changes a file outside")
    if usage.ru_maxrss * 1024 > MOST_MEMORY:
        seen.append(f"takes {usage.ru_maxrss >> 10} MB")
    return seen[0] if seen else None


def _be_the_command(words: list[str], folder: Path, home: Path, said: Path, work: Path, watch: Any) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.update(HOME=str(home), HF_HUB_OFFLINE="1", TMPDIR=str(work / "tmp"))
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr, sys.stdin = (
        os.fdopen(1, "w", closefd=False),
        os.fdopen(2, "w", closefd=False),
        os.fdopen(0, closefd=False),
    )
    from embedkit.cli.main import main

    watch.wake(work / "up", work / "tmp", home)
    code = 1
    try:
        main(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        seen = watch.sleep()
        if seen:
            (work / "seen").write_text("\n".join(seen))
        os._exit(code)


def _waited(child: int) -> tuple[Any, int | str]:
    """(its resources, its exit code), or what it was killed for."""
    begun, wrong = time.monotonic(), None
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            code: int | str = os.waitstatus_to_exitcode(status)
            return usage, wrong or (f"killed by signal {-code}" if isinstance(code, int) and code < 0 else code)
        time.sleep(0.01)
        wrong = wrong or _beyond(child, begun)
        if wrong:
            os.kill(child, signal.SIGKILL)


def _beyond(process: int, begun: float) -> str | None:
    if time.monotonic() - begun > MOST_SECONDS:
        return f"takes more than {MOST_SECONDS} s"
    if (memory := resident(process)) > MOST_MEMORY:
        return f"takes {memory >> 20} MB"
    return None


def resident(process: int) -> int:
    """Bytes of anonymous memory of a process."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    return int(found[1]) << 10 if found else 0


# the two processes


def work_off(kind: str, base: Path, seed: int, first: int, seconds: float) -> None:
    """Runs cases until the time is over, a line of JSON each on standard output: before it, and where something is wrong."""
    import faulthandler
    import logging
    import warnings

    from tests.fuzzing.watch import Watch

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    out = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    faulthandler.disable()
    os.environ.update(HF_HUB_OFFLINE="1")
    whole = kind == "commands"
    work = base / f"work-{os.getpid()}" / "case"
    work.parent.mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(work / "tmp")
    import_what_is_needed()
    if name := os.environ.get("FUZZ_FAULT"):
        from tests.fuzzing.put_back import PUT_BACK

        PUT_BACK[name]()
    once: Callable[..., str | None] = run_once if whole else read_once
    watch, ends = Watch(CLEARING), time.monotonic() + seconds
    number = first
    while time.monotonic() < ends:
        case = drawn(base, random.Random(f"{seed}/{kind}/{number}"), whole)
        print(json.dumps({"number": number, "case": case}), file=out, flush=True)
        wrong = once(case, base, work, watch)
        if wrong is not None:
            print(json.dumps({"number": number, "case": case, "wrong": wrong}), file=out, flush=True)
        number += 1


def import_what_is_needed() -> None:
    """So that no input pays seconds for it, nor for what libraries do when they are imported; none starts a thread then."""
    import datasets  # noqa: F401
    import faiss  # noqa: F401
    import mteb  # noqa: F401
    import sentence_transformers  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import torch._dynamo  # noqa: F401
    import transformers.models.bert.modeling_bert  # noqa: F401

    import embedkit.cli.main
    import embedkit.eval.run
    import embedkit.train.trainer  # noqa: F401


def followed(kind: str, base: Path, seed: int, seconds: float) -> Iterator[tuple[Case, str | None]]:
    """Cases as they end, each with what was wrong. A process that dies, hangs or grows is ended and followed by another; so is
    one after some minutes, whose own caches would be taken for growth."""
    number, ends = 0, time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        line = ["--work", kind, "--make", base, "--seed", seed, "--first", number, "--seconds", min(left, RENEWED)]
        worker = subprocess.Popen([sys.executable, __file__, *map(str, line)], stdout=subprocess.PIPE)
        current: dict[str, Any] | None = None
        try:
            for fact in _facts(worker, watched=kind == "readers"):
                if isinstance(fact, dict) and "wrong" not in fact:
                    if current is not None:
                        yield current["case"], None
                    current, number = fact, fact["number"] + 1
                elif current is not None:
                    yield current["case"], fact["wrong"] if isinstance(fact, dict) else fact
                    current = None
            if current is not None:
                yield current["case"], None
        finally:
            worker.kill()
            worker.wait()
            shutil.rmtree(base / f"work-{worker.pid}", ignore_errors=True)


def _facts(worker: subprocess.Popen[bytes], watched: bool) -> Iterator[dict[str, Any] | str]:
    """What the process says, and at last why it ended early. watched: whether it is the one that reads, and not one that watches
    over processes of its own."""
    assert worker.stdout is not None
    os.set_blocking(worker.stdout.fileno(), False)
    begun: float | None = None
    rest = b""
    while (chunk := worker.stdout.read()) != b"":
        if chunk is None:
            if watched and begun is not None and (wrong := _beyond(worker.pid, begun)):
                yield wrong
                return
            time.sleep(0.02)
            continue
        *lines, rest = (rest + chunk).split(b"\n")
        begun = time.monotonic()
        yield from map(json.loads, lines)
    if (code := worker.wait()) != 0:
        yield f"the process ended with {code}"


def fuzz(seconds: float, seed: int, rows: Path | None) -> int:
    from tests.fuzzing.commands import command_of

    base = bases()
    counts: dict[str, Counter[str]] = {"readers": Counter(), "commands": Counter()}
    found: dict[str, tuple[Case, str]] = {}  # one of each kind
    times: Counter[str] = Counter()
    lock = threading.Lock()

    def follow(kind: str) -> None:
        for case, wrong in followed(kind, base, seed, seconds):
            with lock:
                counts[kind][command_of(case["command"]) if "command" in case else case["format"]] += 1
                if wrong is None:
                    continue
                key = kind_of(case, wrong)
                times[key] += 1
                if key not in found:
                    found[key] = case, wrong
                    line = json.dumps({**case, "wrong": wrong})
                    print(line, flush=True)
                    if rows is not None:
                        with rows.open("a") as stream:
                            stream.write(line + "\n")

    threads = [threading.Thread(target=follow, args=(kind,)) for kind in counts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shutil.rmtree(base, ignore_errors=True)
    for kind, counter in counts.items():
        print(f"\n| {kind} | inputs |\n|---|---|")
        for name, count in sorted(counter.items()):
            print(f"| {name} | {count:,} |")
        print(f"| all | {sum(counter.values()):,} |")
    print(f"\n{len(found)} kinds of wrong endings, {sum(times.values())} in all.")
    return 1 if found else 0


def kind_of(case: Case, wrong: str) -> str:
    """Wrong endings that are alike: numbers and texts of the message left out."""
    place = wrong.partition(" at ")[2].split(" ")[-1] if " at " in wrong else re.sub(r"\d+", "N", wrong[-120:])
    return f"{case['format'] if 'command' not in case else 'command'} {wrong.partition(':')[0]} {place}"


def replay(cases: list[Case]) -> list[tuple[Case, str]]:
    """The cases whose ending is wrong."""
    from tests.fuzzing.watch import Watch

    import_what_is_needed()
    base, watch = bases(), Watch(CLEARING)
    work = Path(tempfile.mkdtemp(prefix="fuzz-", dir=MEMORY))
    os.environ["TMPDIR"] = tempfile.tempdir = str(work / "tmp")
    wrong = [
        (case, reason)
        for case in cases
        if (reason := (run_once if "command" in case else read_once)(case, base, work, watch))
    ]
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(base, ignore_errors=True)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=Path, help="append what is found to this file, a line of JSON each")
    parser.add_argument("--replay", type=Path, help="run the cases of a file again")
    parser.add_argument("--faults", action="store_true", help="put six mended faults back, one at a time")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--work", choices=["readers", "commands"], help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        work_off(asked.work, asked.make, asked.seed, asked.first, asked.seconds)
        return 0
    if asked.make:
        make_bases(asked.make)
        return 0
    if asked.replay:
        wrong = replay([json.loads(line) for line in asked.replay.read_text().splitlines() if line])
        for case, reason in wrong:
            print(json.dumps(case), "\n  ", reason)
        print(f"{len(wrong)} wrong endings.")
        return 1 if wrong else 0
    if asked.faults:
        return find_faults(asked.seed, asked.seconds)
    return fuzz(asked.seconds, asked.seed, asked.rows)


def find_faults(seed: int, seconds: float) -> int:
    """Puts one fault after the other back; a row each of what was found, and after how long."""
    from tests.fuzzing.put_back import PUT_BACK

    base, missed = bases(), 0
    print("| fault put back | found | inputs before | seconds |\n|---|---|---|---|")
    for name in PUT_BACK:
        os.environ["FUZZ_FAULT"] = name
        found, count, begun = None, 0, time.monotonic()
        for kind in ("readers", "commands"):
            with closing(followed(kind, base, seed, seconds)) as cases:
                for case, wrong in cases:
                    count += 1
                    if wrong is not None:
                        found = f"{case['format']}: {wrong}"
                        break
            if found:
                break
        missed += found is None
        said = "no" if found is None else found.replace("|", "\\|")[:120]
        print(f"| {name} | {said} | {count:,} | {time.monotonic() - begun:.0f} |", flush=True)
    shutil.rmtree(base, ignore_errors=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
