"""embedkit data check: what is wrong, where, and what to do; exit code 3."""

from __future__ import annotations

import json
from pathlib import Path

from .conftest import Run


def pairs(path: Path, *scores: str) -> Path:
    rows = [f"one {number}\tother {number}\t{score}" for number, score in enumerate(scores)]
    path.write_text("\n".join(["sentence1\tsentence2\tscore", *rows]))
    return path


def test_findings_are_told_with_the_way_out(run: Run, tmp_path: Path) -> None:
    path = pairs(tmp_path / "pairs.tsv", "1", "nan", "5", "0")
    done = run("data", "check", path)
    assert done.code == 3 and done.err == ""
    name, evidence, fix = done.out.splitlines()
    assert name == "bad-score"
    assert evidence == "    1 scores that are no finite numbers: pairs.tsv, line 3: nan"
    assert fix == "    Fill them or remove the rows."
    done = run("data", "check", path, "--json")
    assert done.code == 3
    assert json.loads(done.out) == [
        {"name": name, "count": 1, "evidence": evidence.strip(), "fix": fix.strip()},
    ]


def test_clean_data_end_well(run: Run, tmp_path: Path) -> None:
    path = pairs(tmp_path / "pairs.tsv", "1", "2", "5")
    done = run("data", "check", path)
    assert (done.code, done.out) == (0, f"Nothing wrong was found in {path}.\n")
    assert run("data", "check", path, "--json").facts == []


def test_wrong_uses_are_one_sentence(run: Run, tmp_path: Path) -> None:
    assert "is not there" in run("data", "check", tmp_path / "nothing").sentence(2)
    assert "holds nothing to check" in run("data", "check", tmp_path).sentence(2)
    (tmp_path / "data.jsonl.gz").write_bytes(b"\x1f\x8b no archive")
    assert "is not a whole gzip file" in run("data", "check", tmp_path).sentence(3)
