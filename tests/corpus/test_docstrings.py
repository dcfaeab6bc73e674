"""Documents from the packages that are installed, here small ones written for the test."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from embedkit.corpus.docstrings import Definition, installed_definitions

LONG = "Long enough a text to be searched for, which takes eighty characters or even more of them"  # 89
EXAMPLE = "\n\n>>> 1 + 1\n2"
SHOWN = "\n\n>>> 1 + 1 2"  # the example, its lines joined as in any paragraph

Packages = Callable[[str, dict[str, str]], None]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packages:
    """package(name, files): a package on sys.path with files of these contents, which must never be imported."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, files: dict[str, str]) -> None:
        for path, content in {"__init__.py": "", **files}.items():
            file = tmp_path / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"raise ImportError('documents are read, not imported')\n# >>>\n{content}")

    return write


def function(name: str, docstring: str, arguments: str = "", indent: str = "") -> str:
    return f'{indent}def {name}({arguments}):\n{indent}    """{docstring}"""\n'


def names(limit: int = 100, *packages: str) -> list[str]:
    return [definition.name for definition in installed_definitions(limit, packages or ("fakepack",))]


def docstrings(content: str, package: Packages) -> list[str]:
    package("fakepack", {"m.py": content})
    return [definition.docstring for definition in installed_definitions(100, ("fakepack",))]


def test_a_definition_is_read_from_source_with_name_signature_and_docstring(package: Packages) -> None:
    package("fakepack", {"deep/m.py": function("f", f"{LONG}.\n\nMore\n  of it.", "x, /, *, y: int=3, **rest")})
    assert installed_definitions(1, ("fakepack",)) == [
        Definition("fakepack.deep.m.f", "(x, /, *, y: int=3, **rest)", f"{LONG}.\nMore of it.")
    ]
    assert "fakepack" not in sys.modules


def test_classes_and_methods_have_qualified_names_and_classes_no_signature(package: Packages) -> None:
    content = (
        f'class Outer(Base):\n    """{LONG} 1"""\n\n    class Inner:\n        """{LONG} 2"""\n\n'
        + function("deepest", f"{LONG} 3", "self", " " * 8)
        + f'    async def later(self):\n        """{LONG} 4"""\n'
    )
    package("fakepack", {"m.py": content})
    assert [(d.name, d.signature) for d in installed_definitions(100, ("fakepack",))] == [
        ("fakepack.m.Outer", ""),
        ("fakepack.m.Outer.Inner", ""),
        ("fakepack.m.Outer.Inner.deepest", "(self)"),
        ("fakepack.m.Outer.later", "(self)"),
    ]


def test_what_is_private_or_inside_a_function_is_left_out(package: Packages) -> None:
    content = (
        function("_hidden", f"{LONG} 1")
        + f'class _Hidden:\n    """{LONG} 2"""\n'
        + function("of_hidden", f"{LONG} 3", "self", "    ")
        + f'class Shown:\n    """{LONG} 4"""\n'
        + function("__call__", f"{LONG} 5", "self", "    ")
        + function("outer", f"{LONG} 6")
        + function("within", f"{LONG} 7", "", "    ")
    )
    package("fakepack", {"m.py": content})
    assert names() == ["fakepack.m.Shown", "fakepack.m.outer"]


def test_public_methods_of_a_class_without_docstring_are_found(package: Packages) -> None:
    package("fakepack", {"m.py": "class Bare:\n" + function("method", LONG, "self", "    ")})
    assert names() == ["fakepack.m.Bare.method"]


def test_a_module_init_gives_its_folder_as_name(package: Packages) -> None:
    package("fakepack", {"__init__.py": function("top", f"{LONG} 1"), "sub/__init__.py": function("low", f"{LONG} 2")})
    assert names() == ["fakepack.sub.low", "fakepack.top"]


# --- which docstrings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "kept"), [(79, 0), (80, 1), (81, 1)])
def test_a_docstring_under_eighty_characters_is_left_out(length: int, kept: int, package: Packages) -> None:
    assert len(docstrings(function("f", "x" * length), package)) == kept


@pytest.mark.parametrize(("length", "kept"), [(599, 599), (600, 600), (601, 600), (5000, 600)])
def test_a_docstring_is_cut_to_six_hundred_characters(length: int, kept: int, package: Packages) -> None:
    text = "".join(chr(97 + i % 26) for i in range(length))
    assert docstrings(function("f", text), package) == [text[:kept]]


def test_white_space_does_not_count_towards_the_length(package: Packages) -> None:
    assert docstrings(function("f", " x" * 40), package) == []  # 79 characters once it is stripped


def test_a_paragraph_becomes_a_line(package: Packages) -> None:
    text = f"\n    {LONG}\n    goes  on.\n\n    Second\n    one.\n\n\n    Third.\n    "
    assert docstrings(function("f", text), package) == [f"{LONG} goes on.\nSecond one.\nThird."]


def test_of_the_same_docstring_the_first_in_order_is_taken(package: Packages) -> None:
    package("fakepack", {"a.py": function("z", LONG), "b.py": function("a", LONG), "c.py": function("c", f"{LONG}.")})
    package("fakeother", {"a.py": function("same", f"{LONG}.")})
    assert names(100, "fakepack", "fakeother") == ["fakepack.a.z", "fakeother.a.same"]
    assert names(100, "fakeother", "fakepack") == ["fakeother.a.same", "fakepack.a.z"]


def test_files_that_show_nothing_to_users_are_passed_over(package: Packages, tmp_path: Path) -> None:
    package("fakepack", {"shown.py": function("f", LONG)})
    (tmp_path / "fakepack/silent.py").write_text(function("g", f"{LONG}."))
    assert names() == ["fakepack.shown.f"]


def test_a_file_that_is_no_python_is_passed_over(package: Packages, tmp_path: Path) -> None:
    package("fakepack", {"good.py": function("f", LONG), "broken.py": "def ("})
    (tmp_path / "fakepack/binary.py").write_bytes(b"# >>> \x00\n")
    (tmp_path / "fakepack/latin.py").write_bytes(b"# >>> \xe9\n")
    (tmp_path / "fakepack/deep.py").write_text("# >>>\na" + ".a" * 20_000)  # RecursionError
    (tmp_path / "fakepack/data.txt").write_text("# >>>\n" + function("g", f"{LONG}."))
    assert names() == ["fakepack.good.f"]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("tests/m.py", False),
        ("deep/tests/m.py", False),
        ("_tests/m.py", False),
        ("mytests/m.py", False),
        ("test_m.py", False),
        ("testing/m.py", False),
        ("testing.py", False),
        ("_testing.py", False),
        ("m_tests.py", False),
        ("conftest.py", False),
        ("setup.py", False),
        ("setup_common.py", False),
        ("vendored/m.py", False),
        ("externals/m.py", False),
        ("latest.py", True),
        ("contest/m.py", True),
        ("mysetup.py", True),
        ("internals/m.py", True),
        ("_private/m.py", True),
    ],
)
def test_tests_and_foreign_code_are_skipped(path: str, found: bool, package: Packages) -> None:
    package("fakepack", {path: function("f", LONG)})
    assert len(names()) == found


def test_the_name_of_the_package_itself_may_begin_with_test(package: Packages) -> None:
    package("testpack", {"m.py": function("f", LONG)})
    assert names(1, "testpack") == ["testpack.m.f"]


# --- which first --------------------------------------------------------------------------------------------------


def test_what_shows_an_example_comes_first_then_the_order_of_names(package: Packages) -> None:
    content = "".join(
        function(name, f"{LONG} {name}{EXAMPLE if name in 'bd' else ''}") for name in ("e", "d", "c", "b", "a")
    )
    package("fakepack", {"m.py": content})
    found = installed_definitions(100, ("fakepack",))
    assert [d.name[-1] for d in found] == ["b", "d", "a", "c", "e"]
    assert found[0].docstring == f"{LONG} b{SHOWN}".replace("\n\n", "\n")


def test_an_example_beyond_the_cut_counts(package: Packages) -> None:
    package("fakepack", {"m.py": function("a", f"{LONG}.") + function("b", "x" * 600 + EXAMPLE)})
    assert names() == ["fakepack.m.b", "fakepack.m.a"]


def test_packages_take_turns_until_each_is_used_up(package: Packages) -> None:
    package("fakeone", {"m.py": "".join(function(n, f"{LONG} 1{n}") for n in "abc")})
    package("faketwo", {"m.py": function("a", f"{LONG} 2")})
    package("fakesix", {"m.py": "".join(function(n, f"{LONG} 6{n}") for n in "ab")})
    expected = ["fakeone.m.a", "faketwo.m.a", "fakesix.m.a", "fakeone.m.b", "fakesix.m.b", "fakeone.m.c"]
    assert names(100, "fakeone", "faketwo", "fakesix") == expected
    for limit in range(8):
        assert names(limit, "fakeone", "faketwo", "fakesix") == expected[:limit]


def test_packages_that_are_missing_or_single_modules_are_passed_over(package: Packages, tmp_path: Path) -> None:
    package("fakepack", {"m.py": function("f", LONG)})
    (tmp_path / "fakemodule.py").write_text("# >>>\n" + function("g", f"{LONG}."))
    assert names(100, "fakemissing", "fakemodule", "fakepack") == ["fakepack.m.f"]
    assert installed_definitions(100, ()) == []


def test_the_usual_packages_are_asked_for_in_a_fixed_order(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(importlib.util, "find_spec", asked.append)
    assert installed_definitions(100) == []
    assert asked == ["numpy", "scipy", "sklearn", "pandas", "torch"]


# --- summary and rest ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("docstring", "summary", "rest"),
    [
        ("One. Two. Three.", "One.", "Two. Three."),
        ("One.\nTwo.", "One.", "Two."),
        ("One goes on\nTwo. Three.", "One goes on", "Two. Three."),
        ("One", "One", ""),
        ("One.", "One.", ""),
        ("Version 1.5 of it. Two.", "Version 1.5 of it.", "Two."),
        ("One. One. One.", "One.", "One. One."),
        ("", "", ""),
    ],
)
def test_a_docstring_is_its_first_sentence_and_the_rest(docstring: str, summary: str, rest: str) -> None:
    definition = Definition("n", "()", docstring)
    assert (definition.summary, definition.rest) == (summary, rest)


def test_numpy_is_found_where_it_is_installed() -> None:
    """The one test on a real package: the norm of numpy, whose summary has stood for years."""
    import numpy

    found = installed_definitions(10_000, ("numpy",))
    (norm,) = (d for d in found if d.name in ("numpy.linalg._linalg.norm", "numpy.linalg.linalg.norm"))  # by version
    assert norm.summary == "Matrix or vector norm."
    assert " ".join((numpy.linalg.norm.__doc__ or "").split()).startswith(" ".join(norm.docstring.split()))
