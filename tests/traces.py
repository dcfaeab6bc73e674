"""What the system sees of each command: `python tests/traces.py [COMMAND ...]` runs all of them under strace (Debian: strace).

For each: sockets to other machines (AF_INET, AF_INET6), programs that are started, threads aside, and files opened for writing, made
or renamed below HOME, which is an empty folder. Python's own audit events do not hear what a library does in C; the system does.
Prints a table, as docs/security.md has it; the exit code is 1 where a row holds anything that EXPECTED does not.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

COMMANDS = {
    "embed": "embed c.jsonl -o o.npy",
    "embed, another model": "embed c.jsonl -o p.npy --model m",
    "embed, torch": "embed c.jsonl -o q.npy --model m --backend torch",
    "embed, several workers": "embed c.jsonl -o s.npy --model m --workers 2",
    "index build": "index build c.jsonl -o o.index --sparse bm25",
    "index add": "index add o.index c.jsonl",
    "index delete": "index delete o.index d1",
    "index compact": "index compact o.index",
    "index verify": "index verify o.index",
    "index info": "index info o.index",
    "index plan": "index plan --rows 1e6 --dim 384 --ram 4GB",
    "index tune": "index tune coarse --recall 0.5 --queries rows.npy",
    "index tune --fusion": "index tune o.index --fusion --queries beir/queries.jsonl --qrels beir/qrels/train.tsv",
    "index export, numpy": "index export o.index -o e1 --format numpy",
    "index export, faiss": "index export o.index -o e2 --format faiss",
    "index export, lancedb": "index export o.index -o e3 --format lancedb",
    "index export, qdrant": "index export o.index -o e4 --format qdrant",
    "search": "search o.index cat",
    "search, hybrid": "search o.index cat --mode hybrid --explain --json",
    "eval, BEIR folder": "eval --data beir -o r1",
    "eval, through an index": "eval --data beir --index compact -o r2",
    "eval, STS": "eval --data sts.jsonl:all -o r3",
    "eval, classification": "eval --data classes.jsonl -o r4",
    "eval, a run": "eval --run r.trec --qrels q.tsv -o r5",
    "compare": "compare r1 r2",
    "data check": "data check sts.jsonl",
    "demo": "demo",
    "doctor": "doctor m",
    "train --plan": "train contrastive model=m data.0.path=anchors.jsonl batch.size=4 steps=1 --plan",
    "train": "train contrastive model=m data.0.path=anchors.jsonl batch.size=4 steps=2 --device cpu -o t",
}  # fmt: skip
# what a dependency cannot be kept from: command -> what it may show
IPV6 = "socket(AF_INET6"  # urllib3, which mteb and LanceDB import, asks once whether the system has IPv6
EXPECTED = {
    "index export, lancedb": IPV6,
    "eval, STS": IPV6,
    "eval, classification": IPV6,
    "embed, several workers": "python",
}
# trio comes with selenium (extra dev); the hub's client imports it where it is, and it asks ldconfig for a library
PROGRAM = "import sys; sys.modules['trio'] = None; from embedkit.cli.main import main; main()"
SILENCING = ("CI", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "HF_HOME", "XDG_CACHE_HOME")


def lay_out(folder: Path) -> None:
    from tests.fuzzing.formats import FORMATS

    for name, inner in (
        ("jsonl", "."),
        ("beir", "beir"),
        ("labelled texts", "."),
        ("training data", "."),
        ("run and qrels", "."),
        ("model", "."),
    ):
        made = folder / inner
        made.mkdir(exist_ok=True)
        FORMATS[name].make(made)
    from tests.fuzzing.formats import write_lines

    write_lines(folder / "beir" / "queries.jsonl", [{"_id": f"q{n}", "text": f"cat {n}"} for n in range(30)])
    judged = "".join(f"q{n}\td{n % 6}\t1\n" for n in range(30))
    (folder / "beir" / "qrels" / "train.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    (folder / "x").mkdir()
    FORMATS["index, coarse"].make(folder / "x")
    shutil.move(folder / "x" / "coarse", folder / "coarse")
    from tests.fuzzing.formats import np, vectors

    np.save(folder / "rows.npy", vectors(40))


def traced(words: list[str], folder: Path, home: Path) -> tuple[int, str]:
    """(exit code, what strace wrote)."""
    log = folder / "trace"
    calls = (
        "socket,connect,execve,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,symlink,link"
    )
    environment = {name: value for name, value in os.environ.items() if name not in SILENCING}
    line = ["strace", "-f", "-qq", "-e", f"trace={calls}", "-o", str(log), sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        [*line, *words],
        cwd=folder,
        env={**environment, "HOME": str(home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        print(done.stderr[-500:], file=sys.stderr)
    return done.returncode, log.read_text(errors="replace")


def seen(trace: str, home: Path) -> dict[str, list[str]]:
    """Sockets, programs and writes below HOME in what strace wrote."""
    sockets = re.findall(r"(?:socket|connect)\(.*?AF_INET6?.*", trace)
    programs = [
        Path(name).name for name, result in re.findall(r'execve\("([^"]+)".*?= (-?\d+)', trace) if result == "0"
    ][1:]
    changes = []
    for line in trace.splitlines():
        if (
            str(home) in line
            and "ENOENT" not in line
            and re.search(r"O_WRONLY|O_RDWR|O_CREAT|mkdir|rename|unlink|link\(", line)
        ):
            changes.append(line)
    return {"sockets": sockets, "programs": programs, "below HOME": changes}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", help="names of the table; all of them when left out")
    asked = parser.parse_args()
    if shutil.which("strace") is None:
        raise SystemExit("strace is not here; install it (Debian: strace).")
    folder, wrong = Path(tempfile.mkdtemp(prefix="traces-")), 0
    lay_out(folder)
    print(
        "| command | exit | sockets (AF_INET, AF_INET6) | other programs | writes below HOME |\n|---|---|---|---|---|"
    )
    for name, words in COMMANDS.items():
        if asked.commands and name not in asked.commands:
            continue
        home = folder / "home"
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        code, trace = traced(words.split(), folder, home)
        found = seen(trace, home)
        found["below HOME"] += [str(path) for path in home.rglob("*")]
        told = [f"{len(facts)}: {facts[0][:90].replace('|', ',')}" if facts else "none" for facts in found.values()]
        print(f"| `{name}` | {code} | {' | '.join(told)} |", flush=True)
        allowed = EXPECTED.get(name)
        unexpected = [fact for facts in found.values() for fact in facts if allowed is None or allowed not in fact]
        wrong += bool(unexpected) or code not in (0, 6)
    shutil.rmtree(folder)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
