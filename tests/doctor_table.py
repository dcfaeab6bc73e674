"""What the doctor finds in models with one seeded fault each, what it says of healthy ones, and how long it takes; regenerates two
tables of eval/README.md.

    python -m tests.doctor_table [--runs 3]

The models are those of the tests (`tests/encoders/patients.py`): small, with random weights, made on the spot. The time is that
of the whole command `embedkit doctor` on the default model, from the shell to its last line. Two minutes on two cores.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from embedkit.encoders.doctor.examination import Examination, doctor
from embedkit.eval.report import replace_table
from tests.encoders import patients

README = Path(__file__).parents[1] / "eval" / "README.md"
SHOWN = 160  # letters of a piece of evidence


def examined(build: patients.Build) -> Examination:
    """What the doctor says of a model that is made for it."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' remarks on models that are wrong on purpose
        examination = doctor(build(Path(folder)))
        return Examination(
            examination.model,
            [finding._replace(evidence=finding.evidence.replace(folder, "")) for finding in examination.findings],
            examination.seen,
            examination.not_checked,
        )


def faults() -> list[str]:
    lines = ["| seeded fault | what the doctor finds | its evidence |", "|---|---|---|"]
    for name, (build, _) in patients.FAULTS.items():
        found = examined(build).findings
        names = ", ".join(f"`{finding.name}`" for finding in found) or "nothing"
        lines.append(f"| {name} | {names} | {' '.join(_short(finding.evidence) for finding in found)} |")
    return lines


def healthy() -> list[str]:
    lines = ["| healthy model | findings | checks that said it is well | not checked |", "|---|---|---|---|"]
    for name, build in patients.HEALTHY.items():
        examination = examined(build)
        counts = len(examination.findings), len(examination.seen), len(examination.not_checked)
        lines.append(f"| {name} | {' | '.join(map(str, counts))} |")
    return lines


def _short(text: str) -> str:
    flat = " ".join(text.split()).replace("|", "\\|")
    return flat if len(flat) <= SHOWN else f"{flat[:SHOWN].rsplit(' ', 1)[0]} ..."


def seconds() -> float:
    """Of one `embedkit doctor`, in a process of its own."""
    start = time.perf_counter()
    subprocess.run([Path(sys.executable).with_name("embedkit"), "doctor"], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=3)
    runs = arguments.parse_args().runs
    times = [seconds() for _ in range(runs)]
    spread = f"median {statistics.median(times):.1f} s of {runs} runs ({min(times):.1f} to {max(times):.1f} s)"
    lines = [*faults(), "", *healthy(), "", f"`embedkit doctor` on the default model, whole process: {spread}."]
    print("\n".join(lines))
    replace_table(README, "doctor", lines)


if __name__ == "__main__":
    main()
