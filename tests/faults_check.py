"""Every fault that was reported, and the tests that hold the right value now: `python tests/faults_check.py` runs them and prints a table.

The names are those of the reports: a complaint, a fault of training or evaluation, an attack with its input. A row is right where all of
its tests ran and passed; a test that is missing, left out or failing makes the row, and the exit code, wrong.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# fault, what happens now, tests: node ids below tests/, or what they begin with, the whole name of the function at least
CASES = Path(__file__).with_name("faults.tsv")


def cases() -> list[tuple[str, str, list[str]]]:
    rows = [line.split("\t") for line in CASES.read_text(encoding="utf-8").splitlines()[1:]]
    return [(name, now, tests.split()) for name, now, tests in rows]


def outcomes(tests: set[str]) -> dict[str, str]:
    """Test -> passed, failed or skipped."""
    files = {f"tests/{test.partition('::')[0]}" for test in tests}
    functions = {test.partition("::")[2].partition("[")[0] for test in tests}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        line = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n",
            "auto",
            "--long",
            f"--junitxml={report}",
            "-o",
            "junit_family=xunit1",
            "-k",
            " or ".join(sorted(functions)),
            *sorted(files),
        ]
        subprocess.run(line, cwd=ROOT, stdout=subprocess.DEVNULL)
        import xml.etree.ElementTree as ET

        found = {}
        for case in ET.parse(report).iter("testcase"):
            told = {child.tag for child in case}
            outcome = "failed" if told & {"failure", "error"} else "skipped" if "skipped" in told else "passed"
            found[f"{case.get('file')}::{case.get('name')}".removeprefix("tests/")] = outcome
        return found


def main() -> int:
    known = cases()
    found = outcomes({test for _, _, tests in known for test in tests})
    print("| fault | what happens now | tests | |\n|---|---|---|---|")
    wrong = 0
    for name, now, tests in known:
        its = {test: [outcome for node, outcome in found.items() if node.startswith(test)] for test in tests}
        ran = Counter(outcome for one in its.values() for outcome in one)
        right = bool(tests) and all(its.values()) and set(ran) == {"passed"}
        wrong += not right
        told = ", ".join(f"{count} {outcome}" for outcome, count in ran.items()) or "no test"
        print(f"| {name} | {now} | {told} | {'right' if right else 'WRONG'} |")
    print(f"\n{len(known)} faults, {wrong} wrong.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
