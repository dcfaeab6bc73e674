"""Is `embedkit index plan` right? Builds what it predicted and compares: regenerates a table of index/README.md.

    python index/plan_check.py VECTORS.npy TEXTS.jsonl [--disk FOLDER] [--large 1000000]

VECTORS.npy are the rows of texts, (n, 384) float32, and TEXTS.jsonl the texts themselves, a `text` each, in the same order: 100,000 of
them are indexed with six layouts and more, and --large synthetic rows (million.py). Each build has a process of its own; its facts go to
plan_check.jsonl at once, and one that stands there is not repeated. The prediction is made with the calibration that embedkit brings,
from rows, layout and mean length of a text alone; plan_calibration.py measured other sizes. Costs about twelve minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from million import make_rows
from plan_builds import measured
from plan_calibration import SYNTHETIC, growth, reach, read_done

from embedkit.cli.plan import duration, size
from embedkit.eval.report import replace_table
from embedkit.index.costs import Calibration, Task, predict, query_seconds, read_calibration
from embedkit.index.layout import Layout
from embedkit.index.plan import Goal, automatic_bytes, best, options
from embedkit.index.sizes import anatomy

HERE = Path(__file__).parent
ROWS = HERE / "plan_check.jsonl"
DIM, REAL = 384, 100_000
EMPTY = 2.0  # bytes of a document without a text: its empty metadata
LAYOUTS: tuple[dict[str, Any], ...] = (
    {},
    {"fine": "float32"},
    {"fine": "int8"},
    {"bytes_per_vector": 40, "recall": 0.95},
    {"coarse": "IVF256,SQ8"},
    {"coarse": "PQ96x4fs", "fine": "int8"},
    {"coarse": "none"},
)
LARGE_LAYOUTS: tuple[dict[str, Any], ...] = (
    {},
    {"bytes_per_vector": 40, "fine": "int8"},
    {"recall": 0.95},
    {"coarse": "IVF1024,SQ8"},
    {"coarse": "none", "fine": "int8"},
    {"coarse": "none"},
)
BILLION_MACHINES = ((16 * 10**9, 2), (128 * 10**9, 16))
COMPARED = {"ram": 0.15, "disk": 0.15, "peak": 0.15, "query_s": 0.5, "own_query_s": 0.5}  # the error that is allowed


def predicted(row: dict[str, Any]) -> dict[str, float | None]:
    """As `plan` says it; the peak with the process itself. own_query_s: as it would, had it known how many lists and candidates the
    build would find that its rows need."""
    asked, count = Layout(**row["layout"]), row["rows"]
    calibration = read_calibration() if row["rows"] == REAL else for_synthetic_rows()
    task = Task(count, DIM, asked.factory(count, DIM), asked.fine, asked.recall, row["text"])
    said = predict(task, calibration, row["threads"])
    parts = anatomy(task.factory, DIM) if task.factory else None
    own = said.query_seconds
    if parts is not None:
        own = query_seconds(task, parts, calibration, row["probes"], row["shortlist"])
    return {
        "ram": said.ram,
        "disk": said.disk,
        "peak": None if said.build_peak is None else said.build_peak + calibration.process,
        "build_s": said.build_seconds,
        "query_s": said.query_seconds,
        "own_query_s": own,
        "probes": said.probes,
        "shortlist": said.shortlist,
    }


def for_synthetic_rows() -> Calibration:
    """The calibration, with the lists that synthetic rows need: as whoever calibrates with vectors of their own has it."""
    done = read_done()
    found = (reach(done, False, share, recall) for share, recall in SYNTHETIC)
    needed = tuple(entry for entry in found if entry is not None)
    return replace(read_calibration(), reach=needed, growth=growth(done, False, *SYNTHETIC[0]))


def wanted(large: int) -> Iterator[tuple[int, dict[str, Any]]]:
    yield from ((REAL, layout) for layout in LAYOUTS)
    yield from ((large, layout) for layout in LARGE_LAYOUTS)


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| rows | layout | RAM, MB | disk, MB | peak of the build, MB | build, s | query, core-ms | query at its own settings |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        said, was = row["predicted"], {**row, "build_s": row["measured"]["build_seconds"]}
        cells = [
            f"{row['rows']:,}",
            ", ".join(f"{name} {value}" for name, value in row["layout"].items()) or "auto",
            *(cell(said[name], was[name], 1e-6) for name in ("ram", "disk", "peak")),
            cell(said["build_s"], was["build_s"], 1),
            cell(said["query_s"], was["query_s"], 1e3),
            cell(said["own_query_s"], was["query_s"], 1e3),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def cell(said: float, was: float, unit: float) -> str:
    return f"{said * unit:,.3g} for {was * unit:,.3g} ({said / was - 1:+.0%})"


def missed(rows: list[dict[str, Any]]) -> list[str]:
    """Predictions that are further off than they may be; of times, the factor counts."""
    found = []
    for row in rows:
        for name, allowed in COMPARED.items():
            ratio = row["predicted"][name] / row[name.removeprefix("own_")]
            off = max(ratio, 1 / ratio) if name.endswith("query_s") else 1 + abs(ratio - 1)
            if off > 1 + allowed:
                found.append(f"{row['rows']:,} rows, {row['layout']}: {name} by a factor {ratio:.2f}")
    return found


def billion() -> list[str]:
    """The lines of the guide: `auto`, the best, and exact search, on small and on large machines."""
    calibration, lines = (
        read_calibration(),
        [
            "| machines of | coarse | fine | machines | RAM of each | disk of each | build | its peak | queries/s |",
            "|---|---|---|---|---|---|---|---|---|",
        ],
    )
    for ram, threads in BILLION_MACHINES:
        found = options(Goal(10**9, DIM, ram, threads), calibration)
        chosen = best(found)
        for option in found:
            usual = option.bytes_per_vector in (automatic_bytes(DIM, 8), None) and option.fine == "float16"
            if option is chosen or usual:
                facts = option.facts()
                cells = [
                    f"{size(ram)}, {threads} threads",
                    f"`{facts['coarse']}`" + (" (best)" if option is chosen else ""),
                    option.fine,
                    str(option.machines),
                    size(facts["ram"]),
                    size(facts["disk"]),
                    duration(facts["build_seconds"]),
                    size(facts["build_peak"]),
                    f"{facts['queries_per_second']:,.0f}",
                ]
                lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("vectors", type=Path)
    arguments.add_argument("texts", type=Path)
    arguments.add_argument("--large", type=int, default=1_000_000)
    arguments.add_argument("--disk", default=tempfile.gettempdir())
    asked = arguments.parse_args()
    with asked.texts.open() as stream:
        text = sum(len(json.loads(line)["text"].encode()) for line in islice(stream, REAL)) / REAL + EMPTY
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    done = {json.dumps([row["rows"], row["layout"]]) for row in rows}
    with tempfile.TemporaryDirectory(dir=asked.disk) as scratch:
        for count, layout in wanted(asked.large):
            if json.dumps([count, layout]) in done:
                continue
            is_real, synthetic = count == REAL, Path(scratch) / "synthetic.npy"
            if not is_real and not synthetic.exists():
                make_rows(synthetic, count, DIM)
            facts = measured(asked.vectors if is_real else synthetic, asked.texts if is_real else None, count, layout)
            rows.append({**facts, "text": text if is_real else EMPTY})
            with ROWS.open("a") as stream:
                stream.write(json.dumps(rows[-1]) + "\n")
            print(count, layout, f"{facts['wall_s']:.1f} s", flush=True)
    for row in rows:  # by the calibration that is there now
        row["predicted"] = predicted(row)
    replace_table(HERE / "README.md", "plan-check", table(rows))
    replace_table(HERE.parent / "docs" / "index.md", "plan-billion", billion())
    print("\n".join([*table(rows), *billion()]))
    print("\n".join(missed(rows)) or "every prediction is as near as it must be")


if __name__ == "__main__":
    main()
