"""embedkit index plan: what it prints, and what it cannot do."""

from __future__ import annotations

import pytest

from embedkit.cli.plan import duration, size

from .conftest import Run


def test_a_plan_names_what_build_takes_and_marks_one_option(run: Run) -> None:
    done = run("index", "plan", "--rows", "1e8", "--dim", 384, "--ram", "16GB", "--threads", 2, "--json")
    assert done.code == 0
    options = done.facts["options"]
    assert done.facts["rows"] == 10**8 and done.facts["ram"] == 16 * 10**9
    assert sum(option["chosen"] for option in options) == 1
    auto = next(option for option in options if option["bytes_per_vector"] == 56 and option["fine"] == "float16")
    assert auto["coarse"] == "PCAR192,IVF16384,PQ96x4fs" and auto["machines"] == 1
    assert auto["ram"] == pytest.approx(10**8 * 60, rel=0.05)  # a code, its row number, an id
    assert auto["disk"] == pytest.approx(10**8 * (768 + 60 + 60), rel=0.05)
    exact = next(option for option in options if option["coarse"] == "none" and option["fine"] == "float16")
    assert exact["machines"] == 5  # 77 GB


def test_a_plan_is_a_table_for_people(run: Run) -> None:
    done = run("index", "plan", "--rows", 100_000, "--dim", 64, "--ram", "1GB", "--recall", 0.9, "-q")
    lines = done.out.splitlines()
    assert (done.code, done.err) == (0, "")
    assert lines[0].split()[:4] == ["coarse", "bytes", "fine", "RAM"]
    assert sum(line.startswith("*") for line in lines) == 1 and lines[-1].split()[0] in ("none", "*")


def test_the_text_of_documents_is_on_disk_alone(run: Run) -> None:
    asked = ("index", "plan", "--rows", 50_000, "--dim", 64, "--ram", "1GB", "--json")
    without, with_texts = (run(*asked, "--text-bytes", mean).facts["options"][0] for mean in (0, 1000))
    assert with_texts["ram"] == without["ram"]
    assert with_texts["disk"] - without["disk"] == pytest.approx(50_000 * 1000, rel=0.3)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--ram", "16 gigs"),
        ("--ram", "16GiB"),
        ("--rows", "1.5"),
        ("--rows", "0"),
        ("--rows", "many"),
        ("--rows", "1e99"),
        ("--rows", "inf"),
        ("--dim", "0"),
        ("--recall", "2"),
        ("--calibration", "nowhere.json"),
    ],
)
def test_a_size_that_cannot_be_is_refused(run: Run, option: str, value: str) -> None:
    asked = {"--rows": "1e6", "--dim": "64", "--ram": "1GB", option: value}
    done = run("index", "plan", *[word for pair in asked.items() for word in pair])
    assert done.code == 2 and value in done.err


def test_sizes_are_read_with_and_without_a_unit(run: Run) -> None:
    read = [
        run("index", "plan", "--rows", 1000, "--dim", 8, "--ram", ram, "--json").facts["ram"]
        for ram in ("16GB", "16gb", "16000MB", "16000000000", "0.016TB")
    ]
    assert read == [16 * 10**9] * 5


def test_what_no_machine_of_that_size_can_hold_exits_6(run: Run) -> None:
    done = run("index", "plan", "--rows", "1e6", "--dim", 384, "--ram", "20MB")
    assert done.code == 6 and "No option holds 1,000,000 rows of 384 dimensions" in done.err


def test_numbers_are_written_for_people() -> None:
    assert [size(count) for count in (0, 999, 56_400_000, 999_600_000, 7.68e11)] == [
        "0 kB",
        "0.999 kB",
        "56.4 MB",
        "1 GB",
        "768 GB",
    ]
    assert [duration(seconds) for seconds in (2, 89, 90, 5400, 172_800)] == [
        "2.0 s",
        "89.0 s",
        "1.5 min",
        "1.5 h",
        "2.0 d",
    ]
