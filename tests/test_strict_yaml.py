"""YAML as a stranger may write it."""

from __future__ import annotations

import time
from datetime import date

import pytest

from embedkit.limits import NESTED, YAML_VALUES
from embedkit.strict_yaml import read_yaml

LAUGHS = "a0: &a0 [l,l,l,l,l,l,l,l,l,l]\n" + "".join(
    f"a{place}: &a{place} [{','.join([f'*a{place - 1}'] * 10)}]\n" for place in range(1, 9)
)


def test_what_it_says() -> None:
    text = "a: [1, 2.5, x, null, true]\nb: &b {c: 2024-02-03}\nd: *b\ne: [*b, *b]\n"
    inner = {"c": date(2024, 2, 3)}
    assert read_yaml(text) == {"a": [1, 2.5, "x", None, True], "b": inner, "d": inner, "e": [inner, inner]}
    assert read_yaml("") is None


def test_the_ends_of_the_limits_are_read() -> None:
    nested = read_yaml("[" * NESTED + "1" + "]" * NESTED)
    for _ in range(NESTED):
        (nested,) = nested
    assert nested == 1
    assert read_yaml(f"[{', '.join('1' * (YAML_VALUES - 1))}]") == [1] * (YAML_VALUES - 1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\na: 2\n", "the key 'a' stands twice, line 2"),
        ("a: {b: 1, b: 2}", "the key 'b' stands twice, line 1"),
        ("a: [", "expected the node content.*, line 1"),
        (LAUGHS, "more than 10,000 values, aliases written out, line 4"),
        ("a: &a [*a]", r"\*a stands inside itself, line 1"),
        (f"a: *{'b' * 100_000}", "found undefined alias 'bbb"),
        ("a: *b", "found undefined alias 'b', line 1"),
        ("[" * 100_000, "nested more than 50 levels, line 1"),
        ("a: " * 100_000, "mapping values are not allowed here, line 1"),
        (f"a:\n{'- ' * 51}1", "nested more than 50 levels, line 2"),
        (f"[{', '.join('1' * YAML_VALUES)}]", "more than 10,000 values"),
        ("\n".join(f"k{place}: 1" for place in range(100_000)), "more than 10,000 values"),
        ("x: 1\na: !!int abc", "'abc' is no int, line 2"),
        ("a: !!int ''", "'' is no int"),
        ("a: !!float abc", "'abc' is no float"),
        ("a: !!bool abc", "'abc' is no bool"),
        ("a: !!timestamp abc", "'abc' is no timestamp"),
        ("a: 2024-13-45", "'2024-13-45' is no timestamp, line 1"),
        (f"a: {'9' * 5000}", r"'999+\.\.\.9+' is no int, line 1"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor for the tag"),
        ("%YAML " + "9" * 5000 + ".0\n--- a", "Exceeds the limit"),
        (r'a: "\U99999999"', "int too large|chr"),
        (r'a: "\ud800"', "holds no text, line 1"),
        (r'a: "b\0"', "holds no text"),
        ("? [a]\n: 1", "is no name of a setting|unhashable"),
        ("? 2024-02-03\n: 1", r"datetime\.date\(2024, 2, 3\) is no name of a setting"),
        ("a: 1\n---\nb: 2\n", "expected a single document|but found another document"),
        ("a: \x07", "special characters are not allowed|unacceptable character"),
    ],
)
def test_what_is_refused_and_at_once(text: str, reason: str) -> None:
    started = time.process_time()
    with pytest.raises(ValueError, match=reason) as caught:
        read_yaml(text)
    assert len(str(caught.value)) < 300
    assert time.process_time() - started < 5
