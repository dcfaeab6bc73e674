"""The judged half of a BEIR folder."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from embedkit.corpus.beir import find, qrels_of, read_qrels, read_queries
from embedkit.errors import DataError, UsageError
from embedkit.limits import GRADE

HEADER = "query-id\tcorpus-id\tscore\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "qrels").mkdir()
    return tmp_path


def write_qrels(folder: Path, content: str | bytes, name: str = "test.tsv") -> Path:
    path = folder / "qrels" / name
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


# --- qrels that can be read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test.tsv", "test.tsv.gz"])
def test_grades_are_kept_by_query_and_document(name: str, folder: Path) -> None:
    write_qrels(folder, HEADER + "q1\td1\t1\nq2\td1\t0\nq1\td 2\t3\nq3\td1\t-1\n", name)
    assert read_qrels(folder, "test") == {"q1": {"d1": 1, "d 2": 3}, "q2": {"d1": 0}, "q3": {"d1": -1}}


@pytest.mark.parametrize("rows", ["q\td\t1\n", "q\td\t1", "q\td\t1\r\n", "q\td\t1.0\n", "\nq\td\t1\n\n\n"])
def test_line_ends_blank_lines_and_whole_numbers_with_a_point_do_not_matter(rows: str, folder: Path) -> None:
    write_qrels(folder, HEADER + rows)
    assert read_qrels(folder, "test") == {"q": {"d": 1}}
    assert type(read_qrels(folder, "test")["q"]["d"]) is int


def test_a_byte_order_mark_before_the_header_is_passed_over(folder: Path) -> None:
    write_qrels(folder, b"\xef\xbb\xbf" + f"{HEADER}q\td\t1\n".encode())
    assert read_qrels(folder, "test") == {"q": {"d": 1}}


def test_quotation_marks_are_characters_of_the_id(folder: Path) -> None:
    write_qrels(folder, HEADER + '"q\td"1\t1\n"q"\td\t2\n')
    assert read_qrels(folder, "test") == {'"q': {'d"1': 1}, '"q"': {"d": 2}}


@pytest.mark.parametrize(
    "header", ["qid\tdid\trel\n", "query-id\tcorpus-id\tscore\n", "query-id\titer\tcorpus-id\tscore\n"]
)
def test_the_names_in_the_header_do_not_matter(header: str, folder: Path) -> None:
    write_qrels(folder, header + "q\td\t1\n")
    assert read_qrels(folder, "test") == {"q": {"d": 1}}


@pytest.mark.parametrize("header", ["corpus-id\tscore\tquery-id", "Corpus-ID\tScore\tQuery-ID\r"])
def test_columns_in_another_order_are_read_by_their_names(header: str, folder: Path) -> None:
    write_qrels(folder, f"{header}\nd\t3\tq\n")
    assert read_qrels(folder, "test") == {"q": {"d": 3}}


@pytest.mark.parametrize("content", ["q1 0 d1 2\nq2\tQ0\td 1\n", "\ufeff\nq1 0 d1 2\n", "q1 0 d1 2\r\n\r\nq1 0 d1 2\n"])
def test_four_columns_are_trecs(content: str, tmp_path: Path) -> None:
    (tmp_path / "judged").write_bytes(content.encode())
    assert qrels_of(tmp_path / "judged")["q1"] == {"d1": 2}


def test_a_pair_that_is_judged_twice_alike_is_one_judgement(folder: Path) -> None:
    write_qrels(folder, HEADER + "q\td\t1\nq\td\t1.0\nq\td\t+1\n")
    assert read_qrels(folder, "test") == {"q": {"d": 1}}


@pytest.mark.parametrize("grade", [str(GRADE), str(-GRADE)])
def test_the_largest_grades_are_read(grade: str, folder: Path) -> None:
    write_qrels(folder, HEADER + f"q\td\t{grade}\n")
    assert read_qrels(folder, "test") == {"q": {"d": int(grade)}}


def test_the_split_that_was_asked_for_is_read(folder: Path) -> None:
    write_qrels(folder, HEADER + "q\td\t1\n", "test.tsv")
    write_qrels(folder, HEADER + "q\td\t2\n", "dev.tsv.gz")
    assert read_qrels(folder, "test") == {"q": {"d": 1}}
    assert read_qrels(folder, "dev") == {"q": {"d": 2}}


def test_the_plain_file_comes_before_the_packed_one(folder: Path) -> None:
    write_qrels(folder, HEADER + "q\td\t2\n", "test.tsv.gz")
    write_qrels(folder, HEADER + "q\td\t1\n", "test.tsv")
    assert read_qrels(folder, "test") == {"q": {"d": 1}}


# --- qrels that cannot --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grade", ["1", "0", "2.0", "-1"])
def test_a_file_without_header_is_refused_at_its_first_line(grade: str, folder: Path) -> None:
    path = write_qrels(folder, f"q1\td1\t{grade}\nq2\td2\t1\n")
    with pytest.raises(DataError) as error:
        read_qrels(folder, "test")
    assert str(error.value) == (
        f"{path}, line 1: data came, a header was expected; put 'query-id<TAB>corpus-id<TAB>score' above it."
    )


@pytest.mark.parametrize(
    "columns",
    [
        ["q", "d", "0.5"],
        ["q", "d", "1.5"],
        ["q", "d", "relevant"],
        ["q", "d", ""],
        ["q", "d", "nan"],
        ["q", "d", "inf"],
        ["q", "d", "١"],
        ["q", "d", "1_0"],
        ["q", "d"],
        ["q"],
        ["q", "0", "d", "1"],
        ["q d 1"],
    ],
)
@pytest.mark.parametrize("name", ["test.tsv", "test.tsv.gz"])
def test_a_row_without_a_whole_number_as_third_column_is_refused_with_its_line(
    columns: list[str], name: str, folder: Path
) -> None:
    path = write_qrels(folder, HEADER + "q1\td1\t1\n\n" + "\t".join(columns) + "\nq2\td2\t1\n", name)
    with pytest.raises(DataError) as error:
        read_qrels(folder, "test")
    assert str(error.value) == (
        f"{path}, line 4: {columns} came; expected query id, document id and a whole number, with tabs between."
    )


@pytest.mark.parametrize("grade", ["1e12", "4294967297", "2147483648", "1e19", "1e300", "-2147483649", str(GRADE + 1)])
@pytest.mark.parametrize("head", [HEADER + "q1\td\t1\n", "q1 0 d 1\n\n"], ids=["tsv", "trec"])
def test_a_grade_that_trec_eval_cannot_hold_is_refused_with_its_line(head: str, grade: str, tmp_path: Path) -> None:
    """2^31 took all memory, 2^32 + 1 was 1, 1e12 gave an nDCG of 2e9, 1e300 a SystemError."""
    path = tmp_path / "judged"
    path.write_text(head + ("q\td\t" if "\t" in head else "q 0 d ") + grade)
    with pytest.raises(DataError) as error:
        qrels_of(path)
    assert str(error.value).startswith(
        f"{path}, line 3: the grade '{grade}' came; expected at most 10,000 above or below 0"
    )


@pytest.mark.parametrize("first", ["q\td\t1e12", "q 0 d 1e12"])  # in the first line it was taken for a header
def test_nor_is_it_taken_for_a_header(first: str, tmp_path: Path) -> None:
    (tmp_path / "judged").write_text(f"{first}\n{first.replace('1e12', '1')}\n")
    with pytest.raises(DataError, match=r"line 1: (the grade|data came)"):
        qrels_of(tmp_path / "judged")


@pytest.mark.parametrize(
    ("rows", "line"), [(HEADER + "q\td\t1\nq\te\t1\nq\td\t0\n", 4), ("q 0 d 1\nq 1 d 0\n", 2)], ids=["tsv", "trec"]
)
def test_a_pair_with_two_grades_is_refused(rows: str, line: int, tmp_path: Path) -> None:
    """Whichever came last counted, so the score depended on the order of the rows."""
    path = tmp_path / "judged"
    path.write_text(rows)
    with pytest.raises(DataError) as error:
        qrels_of(path)
    assert str(error.value) == (
        f"{path}, line {line}: 'd' was judged 1 for 'q' before, and now 0; keep the one that holds."
    )


@pytest.mark.parametrize("row", ["q\td \t1", "q\t d\t1", " q\td\t1", "q\u00a0\td\t1", "\td\t1", "q\t\t1", "q\t \t1"])
def test_an_id_with_a_blank_at_an_end_is_refused(row: str, folder: Path) -> None:
    """It would match nothing, and nothing would say so."""
    path = write_qrels(folder, HEADER + "q\te\t1\n" + row + "\n")
    with pytest.raises(DataError) as error:
        read_qrels(folder, "test")
    assert str(error.value).startswith(f"{path}, line 3: the ids ")


@pytest.mark.parametrize("content", ["", HEADER, HEADER + "\n\n", "\n"])
def test_a_file_without_judgements_is_refused(content: str, folder: Path) -> None:
    path = write_qrels(folder, content)
    with pytest.raises(DataError) as error:
        read_qrels(folder, "test")
    assert str(error.value) == f"{path} holds no judgements; expected at least one row below the header."


def test_a_byte_that_is_not_utf8_is_named_by_file_and_line(folder: Path) -> None:
    path = write_qrels(folder, HEADER.encode() + b"caf\xe9\td\t1\n")
    with pytest.raises(DataError) as error:
        read_qrels(folder, "test")
    assert str(error.value).startswith(f"{path}, line 2: byte 0xe9 (the 4th of the line) is not UTF-8")


def test_a_cut_gzip_file_is_named(folder: Path) -> None:
    path = write_qrels(folder, HEADER + "q\td\t1\n", "test.tsv.gz")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError) as error:
        read_qrels(folder, "test")
    assert str(error.value).startswith(f"{path} is not a whole gzip file (")


@pytest.mark.parametrize(
    ("names", "known"),
    [(["train.tsv", "dev.tsv.gz", "notes.txt", "test.csv"], "dev, train"), (["train.tsv"], "train"), ([], "none")],
)
def test_a_missing_split_lists_the_known(names: list[str], known: str, folder: Path) -> None:
    for name in names:
        write_qrels(folder, HEADER + "q\td\t1\n", name)
    with pytest.raises(UsageError) as error:
        read_qrels(folder, "test")
    assert str(error.value) == (
        f"{folder} has no judgements for the split 'test'; it has {known}: choose with --split."
    )


def test_a_folder_without_qrels_has_no_split(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="it has none: choose with --split"):
        read_qrels(tmp_path, "test")


def test_the_name_of_a_split_may_hold_a_point(folder: Path) -> None:
    write_qrels(folder, HEADER + "q\td\t1\n", "dev.small.tsv")
    assert read_qrels(folder, "dev.small") == {"q": {"d": 1}}


def test_a_split_that_is_there_plain_and_packed_is_listed_once(folder: Path) -> None:
    for name in ["dev.tsv", "dev.tsv.gz"]:
        write_qrels(folder, HEADER + "q\td\t1\n", name)
    with pytest.raises(UsageError, match="it has dev: choose"):
        read_qrels(folder, "test")


def test_a_carriage_return_inside_a_line_is_named_by_file_and_line(folder: Path) -> None:
    path = write_qrels(folder, HEADER + "q\rq\td\t1\n")
    with pytest.raises(DataError) as error:
        read_qrels(folder, "test")
    assert str(error.value).startswith(f"{path}, line 2")


# --- queries and files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("queries.jsonl", '{"_id": "q1", "text": "which cat"}\n{"_id": 2, "text": "a dog", "title": "T"}\n'),
        ("queries.csv", "id,text,title\nq1,which cat,\n2,a dog,T\n"),
        ("queries.tsv", "id\ttext\ttitle\nq1\twhich cat\t\n2\ta dog\tT\n"),
    ],
)
def test_queries_are_their_full_texts_by_id_in_the_order_of_the_file(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert list(read_queries(tmp_path / name).items()) == [("q1", "which cat"), ("2", "T a dog")]


def test_a_query_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text('{"_id": "q", "text": "a"}\n{"_id": "q", "text": "b"}\n')
    with pytest.raises(DataError, match=r"queries\.jsonl, line 2: the id 'q' came before"):
        read_queries(path)


def test_find_prefers_the_plain_file_then_the_packed(tmp_path: Path) -> None:
    (tmp_path / "queries.jsonl.gz").touch()
    assert find(tmp_path, "queries.jsonl") == tmp_path / "queries.jsonl.gz"
    (tmp_path / "queries.jsonl").touch()
    assert find(tmp_path, "queries.jsonl") == tmp_path / "queries.jsonl"


def test_find_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        find(tmp_path, "queries.jsonl")
    assert str(error.value) == (
        f"{tmp_path} is no BEIR folder: queries.jsonl (or queries.jsonl.gz) is missing; "
        "expected corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv."
    )
