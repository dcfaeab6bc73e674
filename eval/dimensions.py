"""The default model at 384 and at 128 dimensions over the tasks whose results are published: a table and a picture of the guide.

    python eval/dimensions.py [--data FOLDER] [--output FOLDER]

FOLDER (or EMBEDKIT_DATA) holds scifact, stsb, sick, sts12, sts15, banking77 and xquad. It is `embedkit eval --dims 384,128` on each of
them with the split that was published, then `embedkit compare`. Rows and results are kept in the output (build/dimensions), so that
a run that was stopped goes on at its task; remove it to measure anew. Writes docs/dimensions.svg and the table of docs/evaluation.md.
About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from embedkit.eval.compare import compare, markdown
from embedkit.eval.compare_page import difference_picture
from embedkit.eval.plots import alone
from embedkit.eval.report import read_reports, replace_table
from embedkit.eval.run import Plan, Task, read_tasks, run
from embedkit.eval.variants import Variant
from embedkit.storage import atomic_file

ROOT = Path(__file__).parents[1]
GUIDE, PICTURE = ROOT / "docs" / "evaluation.md", ROOT / "docs" / "dimensions.svg"
TASKS = {  # name of the published result -> file or folder, split
    "STSBenchmark": ("stsb", "test"),
    "SICK-R": ("sick", "all"),
    "STS12": ("sts12/data_senteval.tsv.gz", "test"),
    "STS15": ("sts15/data_senteval.tsv.gz", "test"),
    "Banking77": ("banking77", "test"),
    "XQuAD en": ("xquad/en", "test"),
    "SciFact": ("scifact", "test"),
}
FULL, SHORT = Variant(dim=384), Variant(dim=128)


def tasks(data: Path) -> list[Task]:
    kinds = {"sick": "sts"}  # its pairs also have labels
    found = [(name, *read_tasks(data / path, split, kinds.get(path))) for name, (path, split) in TASKS.items()]
    return [replace(task, name=name) for name, task in found]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, default=os.environ.get("EMBEDKIT_DATA"))
    arguments.add_argument("--output", type=Path, default=ROOT / "build" / "dimensions")
    options = arguments.parse_args()
    if options.data is None or not Path(options.data).is_dir():
        raise SystemExit("Skipped: give the folder of the collections with --data or EMBEDKIT_DATA.")
    plan = Plan(tasks(Path(options.data)), options.output, variants=(FULL, SHORT), cache=options.output / "cache")
    failed = run(plan, progress=True).failed
    if failed:
        raise SystemExit("\n".join(map(str, failed.values())))
    found = compare(*(read_reports(options.output / variant.folder) for variant in (FULL, SHORT)))
    replace_table(GUIDE, "dimensions", [line for line in markdown(found).splitlines() if line.startswith("|")])
    with atomic_file(PICTURE) as stream:
        stream.write(alone(difference_picture(found)).encode())
    print(markdown(found))


if __name__ == "__main__":
    main()
