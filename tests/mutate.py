"""Do the tests see a wrong line? `python tests/mutate.py [--seed 0] [--count 40] [--only PATH]`; no part of `make test`.

Copies the project to a temporary folder and there changes one line of embedkit at a time: a comparison flipped, a whole
number off by one, + for -, // for *, two arguments swapped, `or` for `and`, a `not` taken away; the kinds take turns.
Then the tests that mirror the changed file run and, if they pass, the whole suite without those marked `data`; a failure
or a timeout has killed the mutation. Left out is what no test can see: annotations, TYPE_CHECKING, __all__, messages
(f-strings), max(a, b) against max(b, a). Constants that only tune are in, so 100 % is no goal; the exit code is 0 from
80 % on. Each outcome is at once a line of --rows; the same choice, sources and tests go on there, others start over.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PYTEST = ["-m", "pytest", "-x", "-q", "-m", "not data", "-p", "no:cacheprovider"]
NOT_COPIED = (".git", ".venv", ".*_cache", "__pycache__", "*.index", "*.npy*", "build", "dist", "results")
EQUIVALENT = ("max", "min", "click.option", "click.argument")  # calls that mean the same with arguments swapped
FLIPS: dict[type[ast.AST], str] = {  # operator -> how it is written | what it becomes
    ast.Lt: "<|<=", ast.LtE: "<=|<", ast.Gt: ">|>=", ast.GtE: ">=|>", ast.Eq: "==|!=", ast.NotEq: "!=|==",
    ast.In: "in|not in", ast.NotIn: "not in|in", ast.Is: "is|is not", ast.IsNot: "is not|is",
    ast.And: "and|or", ast.Add: "+|-", ast.Sub: "-|+", ast.Mult: "*|//",
}  # fmt: skip


@dataclass(frozen=True)
class Mutation:
    file: str  # below the project's folder
    line: int
    start: int  # bytes of the line that are replaced
    end: int
    kind: str
    after: str

    def apply(self, source: str) -> str:
        lines = source.splitlines(keepends=True)
        line = lines[self.line - 1].encode()
        lines[self.line - 1] = (line[: self.start] + self.after.encode() + line[self.end :]).decode()
        return "".join(lines)


def mutations(file: str, source: str) -> list[Mutation]:
    """All that can be made of a file, in the order of their places."""
    found = {Mutation(file, *place) for node in visible(ast.parse(source)) for place in changes(node, source)}
    return sorted(found, key=lambda mutation: (mutation.line, mutation.start, mutation.kind))


def visible(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes whose change a test can see. (Before Python 3.12 what stands in an f-string does not know its column.)"""
    checking = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    names = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    if checking or names or isinstance(node, ast.JoinedStr):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from visible(child)


def changes(node: Any, source: str) -> Iterator[tuple[int, int, int, str, str]]:
    """(line, start, end, kind, what stands there then) of everything that can be done to one node."""
    pairs: list[tuple[Any, Any, Any, str]] = []
    if isinstance(node, ast.Constant) and type(node.value) is int:
        yield node.lineno, node.col_offset, node.end_col_offset or 0, "constant", str(node.value + 1)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not) and node.lineno == node.operand.lineno:
        yield node.lineno, node.col_offset, node.operand.col_offset, "not", ""
    elif isinstance(node, ast.Compare):
        operands = itertools.pairwise([node.left, *node.comparators])
        pairs = [(*pair, op, "comparison") for pair, op in zip(operands, node.ops, strict=True)]
    elif isinstance(node, ast.BinOp):
        pairs = [(node.left, node.right, node.op, "arithmetic")]
    elif isinstance(node, ast.BoolOp):
        pairs = [(left, right, node.op, "and") for left, right in itertools.pairwise(node.values)]
    elif isinstance(node, ast.Call) and ast.unparse(node.func) not in EQUIVALENT:
        for left, right in itertools.pairwise(node.args):
            one, two = ast.get_source_segment(source, left), ast.get_source_segment(source, right)
            if left.lineno == right.end_lineno and one != two:
                swapped = f"{two}{gap(left, right, source)}{one}"
                yield left.lineno, left.col_offset, right.end_col_offset or 0, "arguments", swapped
    for left, right, operator, kind in pairs:
        before, _, after = FLIPS.get(type(operator), "").partition("|")
        if before and left.end_lineno == right.lineno:  # brackets may stand between operand and operator
            start = left.end_col_offset + len(gap(left, right, source).partition(before)[0])
            yield right.lineno, start, start + len(before), kind, after


def gap(left: Any, right: Any, source: str) -> str:
    return source.splitlines()[right.lineno - 1].encode()[left.end_col_offset : right.col_offset].decode()


def sources_hash(folder: Path) -> str:
    paths = sorted([*folder.glob("embedkit/**/*.py"), *folder.glob("tests/**/*.py")])
    return hashlib.sha256(b"\0".join(bytes(path.relative_to(folder)) + path.read_bytes() for path in paths)).hexdigest()


def run(command: list[str], project: Path, timeout: float | None = None) -> tuple[int | None, str]:
    """Exit code (None: out of time) and output of Python; embedkit is that of the copy."""
    environment = {**os.environ, "PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1"}
    options: dict[str, Any] = {"cwd": project, "env": environment, "start_new_session": True, "text": True}
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    try:
        output, _ = process.communicate(timeout=timeout)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        return None, ""
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that a test has started
            process.communicate()


def judge(mutation: Mutation, project: Path, timeout: float) -> dict[str, Any]:
    """Writes the wrong line, runs the tests, restores the right one."""
    path, place = project / mutation.file, Path(mutation.file).relative_to("embedkit")
    source, started, killed_by = path.read_text(encoding="utf-8"), time.perf_counter(), None
    near = [f"tests/{place.parent}/test_{place.name}", f"tests/test_{place.name}"] if place.parent.name else []
    near.append(f"tests/{place.parent}" if place.parent.name else f"tests/test_{place.name}")
    mirror = [name for name in near if (project / name).exists()]
    path.write_text(changed := mutation.apply(source), encoding="utf-8")
    try:
        for suite in filter(None, (mirror, ["tests"])):
            code, _ = run([*PYTEST, *suite], project, timeout)
            if code not in (0, 5):  # 5: no test that is not marked `data`
                killed_by = "timeout" if code is None else " ".join(suite)
                break
    finally:
        path.write_text(source, encoding="utf-8")
    was, now = (text.splitlines()[mutation.line - 1].strip() for text in (source, changed))
    facts = {"was": was, "now": now, "by": killed_by, "seconds": round(time.perf_counter() - started, 1)}
    return {**asdict(mutation), "killed": killed_by is not None, **facts}


def choose(project: Path, only: str, seed: int) -> list[Mutation]:
    """All mutations in a seeded order in which the kinds take turns."""
    files = [path.relative_to(project) for path in sorted(project.glob("embedkit/**/*.py"))]
    wanted = [str(file) for file in files if Path(only) in (file, *file.parents)]
    places = [one for name in wanted for one in mutations(name, (project / name).read_text(encoding="utf-8"))]
    random.Random(seed).shuffle(places)
    by_kind = [[one for one in places if one.kind == kind] for kind in sorted({one.kind for one in places})]
    return [one for turn in itertools.zip_longest(*by_kind) for one in turn if one is not None]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--only", default="embedkit", metavar="PATH", help="a file or folder, as embedkit/index")
    parser.add_argument("--rows", type=Path, default=ROOT / "tests" / "mutations.jsonl")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        project = Path(scratch).resolve() / "project"
        shutil.copytree(ROOT, project, ignore=shutil.ignore_patterns(*NOT_COPIED))
        where = run(["-c", "import embedkit; print(embedkit.__file__)"], project)[1].strip()
        assert where == str(project / "embedkit" / "__init__.py"), f"{where} would be tested, not the copy"
        header = {"seed": given.seed, "only": given.only, "sources": sources_hash(project)}
        rows = [json.loads(line) for line in given.rows.read_text().splitlines()] if given.rows.exists() else []
        if not rows or any(rows[0].get(name) != value for name, value in header.items()):
            started = time.perf_counter()
            code, output = run([*PYTEST, "tests"], project)
            assert code == 0, f"The tests fail without any mutation:\n{output[-3000:]}"
            rows = [{**header, "suite_seconds": round(time.perf_counter() - started, 1)}]
            given.rows.write_text(json.dumps(rows[0]) + "\n")
        chosen = choose(project, given.only, given.seed)[: given.count]
        for mutation in chosen[len(rows) - 1 :]:
            rows.append(judge(mutation, project, timeout=3 * rows[0]["suite_seconds"] + 60))
            with given.rows.open("a") as stream:
                stream.write(json.dumps(rows[-1]) + "\n")
    return report(rows[1 : len(chosen) + 1])


def report(rows: list[dict[str, Any]]) -> int:
    for row in sorted(rows, key=lambda row: (row["killed"], row["file"], row["line"])):
        fate = f"killed by {row['by']}" if row["killed"] else "SURVIVED"
        print(f"{row['file']}:{row['line']}  {fate}, {row['seconds']} s\n    - {row['was']}\n    + {row['now']}")
    killed = sum(row["killed"] for row in rows)
    print(f"{killed} of {len(rows)} killed")
    return 0 if killed >= 0.8 * len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
