"""Help that shows how it is done, and options that are there under the names that people were told."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from embedkit.cli.main import cli

from .conftest import Run

ROOT = Path(__file__).parents[2]
CHANGES = ["index build", "index add", "index delete", "index compact", "index plan", "index tune"]
COMMANDS = [
    "",
    "embed",
    "index",
    *CHANGES,
    "index export",
    "index info",
    "index verify",
    "search",
    "eval",
    "compare",
    "data",
    "data check",
    "doctor",
    "train",
    "demo",
]
every_command = pytest.mark.parametrize("name", COMMANDS)

OUTPUT = "--json --quiet -q --log"
MODEL = "--model --revision --device --backend --dtype --threads --batch-tokens --max-tokens --prompt-name"
CORPUS = "--id --text --title --limit"
PROMISED = {  # what people's scripts hold on to
    "embed": "-o --output --kind --dim --layers --precision --ranges --on-long --resume --overwrite --shard --workers --profile "
    f"{CORPUS} {MODEL} {OUTPUT}",
    "index build": "-o --output --coarse --bytes-per-vector --recall --fine --metric --sparse --recipe --on-long --documents "
    f"--resume --ram --profile {CORPUS} {MODEL} {OUTPUT}",
    "index tune": f"--recall -k -o --output --bytes-per-vector --fusion --queries --qrels --sparse-queries --sparse-model {MODEL} {OUTPUT}",
    "index plan": f"--rows --dim --ram --recall --text-bytes --threads --calibration {OUTPUT}",
    "index add": f"--sparse --documents --resume --ram {CORPUS} {MODEL} {OUTPUT}",
    "index delete": f"--ids --where {OUTPUT}",
    "index compact": f"--ram {OUTPUT}",
    "index export": f"-o --output --format {OUTPUT}",
    "index info": OUTPUT,
    "index verify": OUTPUT,
    "search": f"-k --queries -o --output --mode --fusion --weight --sparse-queries --sparse-model --like --where --group --min-score "
    f"--explain {MODEL} {OUTPUT}",
    "eval": f"--data --tasks --run --qrels --metrics --split --type --profile --index -o --output {MODEL} {OUTPUT}",
    "compare": OUTPUT,
    "data check": OUTPUT,
    "doctor": f"--against {MODEL} {OUTPUT}",
    "train": f"-o --output --resume --plan --device --threads {OUTPUT}",
    "demo": f"-o --output {MODEL} {OUTPUT}",
}
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the words name, and the words after its name."""
    command: click.Command = cli
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"there is no command {' '.join(words)}"
        command = command.commands[rest.pop(0)]
    return command, rest


def options_of(name: str) -> set[str]:
    command, _ = command_of(name.split())
    with click.Context(command) as context:
        return {flag for option in command.get_params(context) for flag in (*option.opts, *option.secondary_opts)}


@every_command
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_opens_with_three_worked_examples(run: Run, name: str, flag: str) -> None:
    done = run(*name.split(), flag)
    _, _, examples, *_ = done.out.split("\n\n")  # usage, what it is for, examples, the rest
    assert (done.code, done.err) == (0, "")
    assert len(examples.splitlines()) == 3
    assert all(re.match(r" *(\S+ [^|]*\| )?embedkit ", line) for line in examples.splitlines())


@every_command
def test_examples_in_the_help_are_understood(name: str) -> None:
    command, _ = command_of(name.split())
    lines = str(command.help).split("\b\n")[1].splitlines()[:3]
    for line in lines:
        example = re.split(r"\s{3,}", line.strip())[0]  # the first help has a word on each beside it
        inner, rest = command_of(arguments_of(example))
        assert inner.make_context(inner.name, rest).command is inner  # click.UsageError for what it does not understand


def arguments_of(example: str) -> list[str]:
    """The words after the first `embedkit` up to the end of that command."""
    words = shlex.split(example, comments=True)
    after = words[words.index("embedkit") + 1 :]
    return after[: next((i for i, word in enumerate(after) if word in ("|", "&&", ";", ">", "2>")), len(after))]


@pytest.mark.parametrize("name", PROMISED)
def test_promised_options_are_there(name: str) -> None:
    assert set(PROMISED[name].split()) <= options_of(name)


def test_every_command_has_its_promises() -> None:
    groups = {"index", "data"}
    leaves = set(COMMANDS) - groups - {""}
    named = {f"{name} {inner}" for name in groups for inner in cli.commands[name].commands}  # type: ignore[attr-defined]
    assert leaves == set(PROMISED) == (set(cli.commands) - groups) | named


def told_commands(markdown: str) -> Iterator[str]:
    """Every `embedkit ...` in the code of a document, lines that end in a backslash joined."""
    joined = markdown.replace("\\\n", " ")
    fenced = re.findall(r"^ *```[^\n]*\n(.*?)^ *```", joined, flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^ *```[^\n]*\n.*?^ *```", "", joined, flags=re.MULTILINE | re.DOTALL)
    for line in [line for block in fenced for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", prose):
        if found := re.search(r"(?:^|[|;&] *|\$ )(?:\S*/)?embedkit +(?=[a-z-])([^#|;&>]*)", line.strip()):
            yield found[1]


def test_commands_in_documents_are_found() -> None:
    markdown = "Say `embedkit demo -q`, import `embedkit`.\n```sh\n$ zcat a | embedkit embed - \\\n  -o b.npy  # done\nx\n```\n"
    assert [" ".join(line.split()) for line in told_commands(markdown)] == ["embed - -o b.npy", "demo -q"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_and_options_named_in_the_documents_are_there(path: Path) -> None:
    for line in told_commands(path.read_text(encoding="utf-8")):
        words = re.findall(r"[^\s\[\]()|,]+", re.sub(r"\"[^\"]*\"|'[^']*'", "TEXT", line))
        if words[0].startswith("-"):
            name: list[str] = []
        else:
            name = words[:2] if words[0] == "index" and words[1:2] and not words[1].startswith("-") else words[:1]
        flags = {word.partition("=")[0] for word in words if re.fullmatch(r"-[a-z]|--[a-z-]+(=.*)?", word)}
        assert flags <= options_of(" ".join(name)), f"embedkit {line}"


def test_the_exit_codes_stand_in_the_first_help(run: Run) -> None:
    text = " ".join(run("--help").out.split())
    assert all(f" {code} " in text.partition("Exit codes:")[2] for code in (0, 1, 2, 3, 4, 5, 6, 75))


def test_the_version_is_the_one_of_the_package(run: Run) -> None:
    import embedkit

    assert run("--version").out.split()[-1] == embedkit.__version__
