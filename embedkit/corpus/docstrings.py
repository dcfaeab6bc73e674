"""Real documents that are on every machine: the documentation of the Python packages installed beside embedkit.

Read from source with `ast`, nothing is imported. A document is a public function or class: qualified name, signature and
docstring. Of several with the same docstring the first is taken.
"""

from __future__ import annotations

import ast
import importlib.util
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("numpy", "scipy", "sklearn", "pandas", "torch")
LENGTH = 600  # characters of a docstring that are kept
SHORTEST = 80  # characters under which a docstring says too little to be searched for
SKIPPED = ("test", "testing", "_test", "conftest", "setup", "vendored", "externals")


@dataclass(frozen=True)
class Definition:
    """A documented function or class."""

    name: str  # qualified, as "numpy.linalg._linalg.norm"
    signature: str  # "(x, ord=None, axis=None)"; empty for a class
    docstring: str  # cut to LENGTH characters, one line a paragraph

    @property
    def summary(self) -> str:
        """The first sentence."""
        head, stop, _ = self.docstring.partition("\n")[0].partition(". ")
        return head + stop.strip()

    @property
    def rest(self) -> str:
        """The docstring without its first sentence."""
        return self.docstring.removeprefix(self.summary).strip()


def installed_definitions(limit: int, packages: Sequence[str] = PACKAGES) -> list[Definition]:
    """At most `limit` definitions in a fixed order: the packages take turns, and each begins with what it shows examples
    for, which is what it offers its users. Packages that are not installed are passed over."""
    turns = itertools.zip_longest(*(_ordered(package) for package in packages))
    seen: set[str] = set()
    chosen: list[Definition] = []
    for definition in itertools.chain.from_iterable(turns):
        if definition is not None and definition.docstring not in seen and len(chosen) < limit:
            seen.add(definition.docstring)
            chosen.append(definition)
    return chosen


def _ordered(package: str) -> list[Definition]:
    spec = importlib.util.find_spec(package)  # finds a top-level package without importing it
    if spec is None or not spec.submodule_search_locations:
        return []
    root = Path(spec.submodule_search_locations[0])
    found = [
        pair
        for path in sorted(root.rglob("*.py"))
        if not _skipped(path.relative_to(root))
        for pair in _read(path, root)
    ]
    return [definition for _, definition in sorted(found, key=lambda pair: (not pair[0], pair[1].name))]


def _skipped(path: Path) -> bool:
    return any(
        part.removesuffix(".py").startswith(SKIPPED) or part.removesuffix(".py").endswith("tests")
        for part in path.parts
    )


def _read(path: Path, root: Path) -> Iterator[tuple[bool, Definition]]:
    """(whether it shows an example, definition) of every documented public function, class and method of a file."""
    source = path.read_bytes()
    if b">>>" not in source:
        return  # nothing shown to users: parsing all files of torch takes ten seconds
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return  # a file for another version of Python
    module = ".".join((root.name, *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
    yield from _definitions(tree, module)


def _definitions(scope: ast.AST, prefix: str) -> Iterator[tuple[bool, Definition]]:
    for node in ast.iter_child_nodes(scope):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        name = f"{prefix}.{node.name}"
        whole = ast.get_docstring(node) or ""
        text = "\n".join(" ".join(paragraph.split()) for paragraph in whole.split("\n\n"))[:LENGTH]
        if len(text) >= SHORTEST:
            signature = "" if isinstance(node, ast.ClassDef) else f"({ast.unparse(node.args)})"
            yield ">>>" in whole, Definition(name, signature, text)
        if isinstance(node, ast.ClassDef):
            yield from _definitions(node, name)
