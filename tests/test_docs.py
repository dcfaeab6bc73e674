"""The documentation runs: every python block of a page in one namespace, every embedkit command of its console blocks.

What a command prints is compared with the page, but for scores and sizes: they depend on the machine's arithmetic.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from embedkit.cli.main import main
from embedkit.encoders.vocabulary import FINDING

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d+\.\d+|\d+(,\d{3})+")


def commands(block: str) -> list[tuple[str, str]]:
    """(command, what the page says it prints)."""
    parts = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    return [(part.partition("\n")[0], part.partition("\n")[2]) for part in parts]


def run(command: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, *arguments = shlex.split(command, comments=True)
    if program != "embedkit":
        return  # make and pip are tried in a fresh clone
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    printed = capsys.readouterr()
    assert ended.value.code == 0, f"{command}\n{printed.err}"
    if shown.strip():
        assert NUMBER.sub("#", printed.out).split() == NUMBER.sub("#", shown).split(), command


@pytest.mark.model
@pytest.mark.parametrize(
    "page",
    [
        "docs/quickstart.md",
        "docs/embedding.md",
        "docs/models.md",
        "docs/index.md",
        "docs/evaluation.md",
        "docs/training.md",
        "README.md",
    ],
)
def test_every_block_of_a_page_runs(
    page: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    default_encoder: Any,
    clip_model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_what_the_readme_takes_for_granted(tmp_path)
    write_a_model_and_images(tmp_path, clip_model)
    namespace: dict[str, Any] = {}
    blocks = BLOCK.findall((ROOT / page).read_text())
    assert len(blocks) >= 5
    for language, block in blocks:
        if language == "python":
            exec(compile(block, page, "exec"), namespace)
        else:
            for command, shown in commands(block):
                if "demo" not in command:  # tests/cli has a small one
                    run(command, shown, capsys)


def write_what_the_readme_takes_for_granted(folder: Path) -> None:
    """corpus.jsonl, products.csv and a BEIR folder my-data."""
    rows = [
        {"_id": f"d{i}", "text": text, "lang": "en"}
        for i, text in enumerate(["Plants store energy as starch.", "Cats sleep.", "The sea is salt."])
    ]
    (folder / "my-data" / "qrels").mkdir(parents=True)
    for path in (folder / "corpus.jsonl", folder / "my-data" / "corpus.jsonl"):
        path.write_text("\n".join(map(json.dumps, rows)))
    (folder / "my-data" / "queries.jsonl").write_text('{"_id": "q", "text": "how do plants store energy?"}')
    (folder / "my-data" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td0\t1\n")
    (folder / "products.csv").write_text('sku,name,description\n7,Chair,"four legs, one back"\n8,Table,flat\n')


def write_a_model_and_images(folder: Path, clip_model: Path) -> None:
    """my-clip and photos/."""
    (folder / "my-clip").symlink_to(clip_model)
    (folder / "photos").mkdir()
    for colour in ("red", "blue"):
        Image.new("RGB", (40, 30), colour).save(folder / "photos" / f"{colour}.png")


def test_the_guide_names_every_finding() -> None:
    """The first argument of each Finding and Variant, the part behind a dash in capitals where it is filled in."""
    page = (ROOT / "docs" / "models.md").read_text()
    listed = set(re.findall(r"^\| `([a-z-]+?)-?(?:[A-Z]+)?` \|", page, re.MULTILINE))
    found = {FINDING}  # which `load` names as well
    for path in sorted((ROOT / "embedkit" / "encoders" / "doctor").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Finding", "Variant"):
                names = (part for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)) if node.args else ()
                found |= {str(name.value).removesuffix("-") for name in names} - {"float16"}
    assert len(found) > 20 and listed == found


@pytest.mark.parametrize("module", ["embedkit.encoders.batches", "embedkit.encoders.doctor.endpoint"])
def test_examples_in_docstrings_are_right(module: str) -> None:
    outcome = doctest.testmod(importlib.import_module(module))
    assert outcome.attempted > 0 and outcome.failed == 0
