"""The house rules, read from the source with `ast`: who imports whom, what is never used, who may write a file."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "embedkit").rglob("*.py"))
FOLDERS = ("embedkit", "tests", "index", "train", "eval", "docs")

# room -> the rooms below it that it may import, and the packages of others; None: any
ONE = {"types", "errors", "version", "escapes", "limits", "typed"}
TWO = ONE | {"storage", "statistics"}
THREE = TWO | {"vectors", "encoder", "corpus"}
FOUR = THREE | {"recipe", "strict_yaml", "encoders", "engine", "index"}
NUMBERS = {"numpy", "scipy", "yaml"}
MODELS = NUMBERS | {
    "torch",
    "transformers",
    "sentence_transformers",
    "huggingface_hub",
    "tqdm",
    "tokenizers",
    "safetensors",
    "openvino",
    "PIL",
}
ROOMS: dict[str, tuple[set[str], set[str] | None]] = {
    "version": (set(), set()),
    "types": (set(), {"numpy"}),
    "escapes": (set(), set()),
    "errors": ({"escapes"}, set()),
    "limits": ({"errors", "escapes"}, set()),
    "typed": ({"errors", "limits"}, set()),
    "statistics": (ONE, NUMBERS),
    "storage": (ONE, NUMBERS),
    "strict_yaml": ({"types", "errors", "limits"}, {"yaml"}),
    "recipe": (ONE | {"strict_yaml"}, NUMBERS),
    "vectors": (TWO, NUMBERS),
    "encoder": (TWO, NUMBERS),
    "corpus": (TWO, NUMBERS | {"pyarrow", "datasets"}),
    "encoders": (THREE | {"recipe"}, MODELS),
    "engine": (THREE | {"recipe"}, MODELS | {"pyarrow"}),
    "index": (THREE, NUMBERS | {"faiss", "regex", "Stemmer"}),
    "export": (THREE | {"engine", "index"}, NUMBERS | {"faiss", "pyarrow", "lancedb", "qdrant_edge"}),
    "jobs": (FOUR, NUMBERS | {"tqdm"}),
    "train": (FOUR | {"jobs"}, None),
    "eval": (FOUR | {"jobs"}, None),
    "cli": (FOUR | {"export", "jobs", "train", "eval"}, None),
}
# package -> the rooms that may import it when they are imported; all others only where it is used, inside a function
HEAVY: dict[str, set[str]] = {
    "torch": {"encoders", "train"},
    "transformers": {"encoders", "train"},
    "sentence_transformers": {"encoders", "train"},
    "openvino": set(),
    "faiss": set(),
    "mteb": set(),
    "datasets": set(),
    "pyarrow": set(),
    "pandas": set(),
    "PIL": set(),
    "matplotlib": set(),
    "lancedb": set(),
    "qdrant_edge": set(),
}
WRITERS = {"save", "savez", "savez_compressed", "savetxt", "tofile", "write_text", "write_bytes", "symlink_to"}
MOVERS = {"move", "copy", "copy2", "copyfile", "copytree", "rename", "renames", "replace"}  # of shutil, os and Path
# (file, call) of the writes outside storage.py that are known: a log, a database that counts once storage has published the
# manifest that names it, the null device, and a store that fills a folder which storage publishes whole
KNOWN_WRITES = {
    ("cli/options.py", "FileHandler"),
    ("index/documents.py", "connect"),
    ("index/document_writer.py", "connect"),
    ("cli/main.py", "os.open"),
    ("limits.py", "os.open"),  # to read without waiting for a pipe's writer
    ("export/lance_table.py", "lancedb.connect"),
}


@dataclass(frozen=True)
class Import:
    module: str  # dotted, as "embedkit.index.index" or "torch.nn"
    line: int
    late: bool  # inside a function
    typing: bool  # under `if TYPE_CHECKING`

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in SOURCES}


def room_of(module: str) -> str:
    """ "index" for "embedkit.index.index"; nothing for the package itself."""
    return [*module.split("."), ""][1]


def imports_of(tree: ast.AST, late: bool = False, typing: bool = False) -> Iterator[Import]:
    """Every import statement, and importlib.import_module("a literal name")."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, late, typing)
        elif isinstance(node, ast.ImportFrom):
            yield Import("." * node.level + (node.module or ""), node.lineno, late, typing)
            for alias in node.names:
                if (whole := f"{node.module}.{alias.name}") in MODULES:
                    yield Import(whole, node.lineno, late, typing)
        elif isinstance(node, ast.Call) and call_name(node).split(".")[-1] in ("import_module", "__import__"):
            name = node.args[0]
            yield Import(str(name.value) if isinstance(name, ast.Constant) else "", node.lineno, late, typing)
        inner = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for part in node.body:
                yield from imports_of(ast.Module([part], []), late, True)
            for part in node.orelse:
                yield from imports_of(ast.Module([part], []), late, typing)
        else:
            yield from imports_of(node, late or inner, typing)


def call_name(node: ast.Call) -> str:
    """ "np.load" of np.load(...), "open" of anything(...).open(...)."""
    if isinstance(node.func, ast.Attribute):
        owner = node.func.value
        return f"{owner.id}.{node.func.attr}" if isinstance(owner, ast.Name) else node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def short(path: Path) -> str:
    return path.relative_to(ROOT / "embedkit").as_posix()


every_file = pytest.mark.parametrize("path", SOURCES, ids=short)


def wrong_imports(module: str, tree: ast.AST) -> list[str]:
    """Sentences on the imports of a module that its room does not allow."""
    rooms, packages = ROOMS[room_of(module)]
    wrong = []
    for found in imports_of(tree):
        if not found.package:
            wrong.append(f"line {found.line}: {module} imports relatively, or what is named elsewhere; write the name")
        elif found.package == "embedkit":
            room = room_of(found.module)
            if room and room != room_of(module) and room not in rooms:
                wrong.append(f"line {found.line}: {module} imports {found.module}, which stands beside or above it")
        elif found.package not in sys.stdlib_module_names and packages is not None and found.package not in packages:
            wrong.append(f"line {found.line}: {module} imports {found.package}, which is not for this room")
        at_once = not (found.late or found.typing)
        if at_once and room_of(module) not in HEAVY.get(found.package, {room_of(module)}):
            wrong.append(f"line {found.line}: {module} imports {found.package} when it is imported itself")
    return wrong


@every_file
def test_imports_run_downwards_only_and_heavy_ones_are_late(path: Path) -> None:
    if path == ROOT / "embedkit" / "__init__.py":
        loaded = [found for found in imports_of(tree_of(path)) if not (found.typing or found.late)]
        outside = {found.module for found in loaded if found.package not in sys.stdlib_module_names}
        assert outside <= {"embedkit.version"}, "`import embedkit` loads names when they are used"
        return
    assert room_of(name_of(path)) in ROOMS, "a new room: say in ROOMS what it may import"
    assert wrong_imports(name_of(path), tree_of(path)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("embedkit.types", "import embedkit.errors"),
        ("embedkit.errors", "import scipy"),
        ("embedkit.storage", "from embedkit import vectors"),
        ("embedkit.vectors", "from embedkit.encoder import Encoder"),
        ("embedkit.corpus.beir", "import embedkit.index.index"),
        ("embedkit.encoders.loading", "from embedkit.engine import embed_documents"),
        ("embedkit.engine.run", "def f():\n    from embedkit.encoders import load"),
        ("embedkit.index.index", "def f():\n    import torch"),
        ("embedkit.index.index", "from embedkit.jobs import open_index"),
        ("embedkit.index.coarse", "import faiss"),
        ("embedkit.jobs", "from embedkit.eval import evaluate"),
        ("embedkit.eval.run", "from embedkit.train import fit"),
        ("embedkit.train.fit", "from embedkit.eval import evaluate"),
        ("embedkit.eval.run", "from embedkit.cli.main import main"),
        ("embedkit.eval.mteb_tasks", "try:\n    import mteb\nexcept ImportError:\n    mteb = None"),
        ("embedkit.cli.embed", "class A:\n    import torch"),
        ("embedkit.index.coarse", "faiss = importlib.import_module('faiss')"),
        ("embedkit.cli.embed", "from .options import fields"),
        ("embedkit.cli.embed", "def f(name):\n    return importlib.import_module(name)"),
    ],
)
def test_the_import_rules_refuse_what_they_are_for(module: str, source: str) -> None:
    assert len(wrong_imports(module, ast.parse(source))) == 1


TENSORS = ("cached", "contrastive", "elastic", "gather", "heap", "losses")  # of embedkit/train


@pytest.mark.parametrize("name", TENSORS)
def test_losses_import_torch_alone(name: str) -> None:
    """They know no model, no data and no recipe."""
    found = imports_of(tree_of(MODULES[f"embedkit.train.{name}"]))
    outside = {one.module for one in found if one.package not in sys.stdlib_module_names | {"torch"}}
    allowed = {f"embedkit.train.{other}" for other in TENSORS}
    assert {module for module in outside if not module.startswith(tuple(allowed))} == set()


def test_modules_import_each_other_in_no_circle() -> None:
    """Imports under TYPE_CHECKING are no imports, those inside functions are."""
    below = {
        name: {found.module for found in imports_of(tree_of(path)) if found.module in MODULES and not found.typing}
        for name, path in MODULES.items()
    }
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle(below) is None


def circle(graph: dict[str, set[str]]) -> list[str] | None:
    """The first circle found, as the names on it."""
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str] | None:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return None
        for target in sorted(graph[name]):
            if found := visit(target, [*trail, name]):
                return found
        done.add(name)
        return None

    return next((found for name in sorted(graph) if (found := visit(name, []))), None)


@every_file
def test_only_the_version_is_taken_from_the_package_itself(path: Path) -> None:
    """`embedkit.load` inside the library would be an import of any room from any room."""
    taken = {
        node.attr
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "embedkit"
    }
    names = {
        alias.name
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ImportFrom) and node.module == "embedkit"
        for alias in node.names
    }
    assert taken <= {"__version__"}
    assert {name for name in names if f"embedkit.{name}" not in MODULES} <= {"__version__"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_imports_the_workshops_the_tests_or_the_docs(folder: str) -> None:
    """Programs in index/, train/ and eval/ are copied and run; they are no library."""
    workshops = set(FOLDERS) - {"embedkit", folder}
    found = {
        f"{path.relative_to(ROOT)}, line {one.line}: {one.module}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for one in imports_of(tree_of(path))
        if one.package in workshops
    }
    assert found == set()


def forbidden(tree: ast.AST) -> list[str]:
    """Uses of pickles and of remote code."""
    found = [f"line {one.line}: {one.module}" for one in imports_of(tree) if one.package in PICKLES]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and call_name(node) in ("torch.load", "np.load", "numpy.load"):
            refuses = any(k.arg == "allow_pickle" and ast.unparse(k.value) == "False" for k in node.keywords)
            if call_name(node) == "torch.load" or not refuses:
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code"):
            if ast.unparse(node.value) != "False":
                found.append(f"line {node.value.lineno}: {node.arg}={ast.unparse(node.value)}")
        elif isinstance(node, ast.Dict):
            keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
            found += [f"line {node.lineno}: {key}" for key in keys & {"allow_pickle", "trust_remote_code"}]
    return found


# the one way on which the named argument of `load` goes to sentence-transformers
TRUSTED = {"encoders/sentence_transformer.py": ["trust_remote_code=asked.trust_remote_code"]}
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


@every_file
def test_nothing_is_unpickled_and_no_remote_code_runs(path: Path) -> None:
    assert [use.partition(": ")[2] for use in forbidden(tree_of(path))] == TRUSTED.get(short(path), [])


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from joblib import load",
        "torch.load(path, weights_only=True)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "load(name, trust_remote_code=True)",
        "load(name, trust_remote_code=asked)",
        "load(name, **{'trust_remote_code': True})",
    ],
)
def test_the_rule_against_pickles_refuses_what_it_is_for(source: str) -> None:
    assert forbidden(ast.parse(source)) != []


def writes(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, call) of whatever may open, make or rename a file."""
    return [
        (node.lineno, name)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and (name := call_name(node)) and _may_write(node, name)
    ]


def _may_write(node: ast.Call, name: str) -> bool:
    owner, _, last = name.rpartition(".")
    if last in WRITERS | {"FileHandler", "connect", "mkstemp", "NamedTemporaryFile"}:
        return True
    if name == "os.open":
        return ast.unparse(node.args[1]) != "os.O_RDONLY"
    if last in MOVERS:  # str.replace takes two arguments, Path.replace one; replace() alone is that of dataclasses
        method = isinstance(node.func, ast.Attribute) and last in ("rename", "replace") and len(node.args) == 1
        return method or owner in ("os", "shutil")
    if last != "open":
        return False
    # open(path, mode) and gzip.open(path, mode), or path.open(mode)
    first = 1 if isinstance(node.func, ast.Name) or owner in ("gzip", "bz2", "lzma", "io", "codecs", "Image") else 0
    modes = [k.value for k in node.keywords if k.arg == "mode"] or node.args[first : first + 1]
    return any(not isinstance(mode, ast.Constant) or set(str(mode.value)) & set("wax+") for mode in modes)


@every_file
def test_only_storage_writes_files(path: Path) -> None:
    if path.name == "storage.py":
        assert len(writes(tree_of(path))) >= 4, "the check no longer sees what it is for"
        return
    unknown = [(line, call) for line, call in writes(tree_of(path)) if not _known(short(path), call)]
    assert unknown == []


def _known(file: str, call: str) -> bool:
    return any(file == known and call in (name, f"logging.{name}", f"sqlite3.{name}") for known, name in KNOWN_WRITES)


@pytest.mark.parametrize(
    "source",
    [
        "open(path, 'w')",
        "open(path, mode='a')",
        "open(path, mode)",
        "path.open('wb')",
        "(folder / name).open('r+b')",
        "gzip.open(path, 'wt')",
        "path.write_text(text)",
        "path.with_suffix('.x').write_bytes(b'')",
        "np.save(path, rows)",
        "rows.tofile(path)",
        "shutil.move(a, b)",
        "os.replace(a, b)",
        "partial.replace(path)",
        "partial.rename(path)",
        "os.open(path, os.O_RDWR)",
        "logging.FileHandler(path)",
        "sqlite3.connect(path)",
    ],
)
def test_the_rule_on_writing_sees_what_it_is_for(source: str) -> None:
    assert len(writes(ast.parse(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "open(path)",
        "path.open('rb')",
        "gzip.open(p, 'rb')",
        "text.replace('a', 'b')",
        "replace(record, number=2)",
        "os.open(path, os.O_RDONLY)",
    ],
)
def test_the_rule_on_writing_lets_readers_pass(source: str) -> None:
    assert writes(ast.parse(source)) == []


LIGHT = {
    "import embedkit": "import embedkit",
    "embedkit --help": "import embedkit.cli.main as m\ntry: m.main(['--help'])\nexcept SystemExit: pass",
    "embedkit search --help": "import embedkit.cli.main as m\ntry: m.main(['search', '-h'])\nexcept SystemExit: pass",
}


@pytest.mark.parametrize("code", LIGHT.values(), ids=LIGHT)
def test_heavy_packages_are_not_imported_before_they_are_needed(code: str) -> None:
    ask = f"{code}\nimport sys\nprint(*(set(sys.modules) & {set(HEAVY)!r}), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.split() == []


def test_no_file_tells_to_install_another_project_from_the_index_of_packages() -> None:
    """embedkit is installed from its folder (`pip install -e .`); the name on PyPI is not ours."""
    telling = re.compile(r"pip3? +install +(?:-\S+ +)*[\"']?" + "embedkit" + r"\b")
    assert telling.search("pip install -U 'embed" + "kit[cpu]'")
    found = [path for path in _project_files() if telling.search(path.read_text(encoding="utf-8", errors="replace"))]
    assert found == []


def _project_files() -> list[Path]:
    list_files: Callable[..., subprocess.CompletedProcess[bytes]] = subprocess.run
    if shutil.which("git") is None:
        pytest.skip("git is not here")
    listing = list_files(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if listing.returncode:
        pytest.skip("the project is not a git checkout here")
    files = [ROOT / name.decode() for name in listing.stdout.split(b"\0") if name]
    assert len(files) > 20
    return [path for path in files if path.is_file()]
