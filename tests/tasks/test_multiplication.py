"""Multiplication, checked with whole numbers and with rows in the published form."""

import random
import re

import pytest
from pydantic import ValidationError

from copra.schema.settings import MOST_DIGITS
from copra.tasks.multiplication import Multiplication, written_out
from copra.tasks.task import BadRow, Row
from copra.utils.errors import CopraError

SMALL = {"train": 40, "valid": 10, "test": 10}
# Rows of the published 4 by 4 digits (its form, not its data, is what the shorter ones show).
PUBLISHED = [
    "5 6 3 2 * 7 4 3 4||5 5 5 6 1 + 0 0 6 4 9 0 ( 5 5 1 1 1 1 ) + 0 0 5 9 0 7 0 ( 5 5 6 0 2 8 0 ) "
    "+ 0 0 0 0 6 4 9 0 #### 5 5 6 0 8 2 0 1",
    "6 9 1 5 * 6 4 4 7||6 7 1 1 3 + 0 4 8 7 0 2 ( 6 1 0 9 3 2 ) + 0 0 4 8 7 0 2 ( 6 1 4 7 1 3 2 ) "
    "+ 0 0 0 2 7 3 6 3 #### 6 1 4 9 8 6 8 3",
]


def number(digits: str) -> int:
    """The number behind digits that are spaced, the last first."""
    assert re.fullmatch(r"\d( \d)*", digits)
    return int(digits.replace(" ", "")[::-1])


def file_of(tmp_path, *lines: str | bytes) -> str:
    path = tmp_path / "rows.txt"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    return str(path)


def rows_of(path: str) -> list[Row | BadRow]:
    task = Multiplication(train=path, valid=1, test=1)
    return [row for split, row in task.rows() if split == "train"]


@pytest.mark.parametrize("line", PUBLISHED)
def test_rows_are_written_as_published(line, tmp_path):
    left, right = (number(digits) for digits in line.partition("||")[0].split(" * "))
    row = written_out(left, right)
    assert f"{row.question}||{' '.join(row.steps)} #### {row.answer}" == line
    assert rows_of(file_of(tmp_path, line)) == [row]


def test_a_step_is_a_partial_product_with_the_sum_so_far():
    # 12 * 34: 12 * 4 = 48 and 12 * 30 = 360 make 408.
    assert written_out(12, 34) == Row("2 1 * 4 3", ("8 4 0", "+ 0 6 3 0"), "8 0 4 0")
    # 105 * 209: 105 * 9 = 945, 105 * 0, 105 * 200 = 21000; the sum is 945, 945, 21945.
    assert written_out(105, 209) == Row(
        "5 0 1 * 9 0 2", ("5 4 9 0", "+ 0 0 0 0 0 ( 5 4 9 0 0 )", "+ 0 0 0 1 2 0"), "5 4 9 1 2 0"
    )
    assert written_out(57, 8) == Row("7 5 * 8", ("6 5 4",), "6 5 4")


@pytest.mark.parametrize(
    ("digits", "second_digits"), [(1, 1), (2, 2), (3, 2), (2, 3), (4, 4), (1, 5), (6, 7)]
)
def test_generated_rows_multiply(digits, second_digits):
    sizes = SMALL if digits + second_digits > 2 else {"train": 30, "valid": 5, "test": 5}
    for _, row in Multiplication(digits=digits, second_digits=second_digits, **sizes).rows():
        left, right = row.question.split(" * ")
        assert (len(left.split()), len(right.split())) == (digits, second_digits)
        assert left[-1] != "0" != right[-1]
        assert number(row.answer) == number(left) * number(right)
        assert len(row.answer.split()) == digits + second_digits
        assert len(row.steps) == second_digits
        total = 0
        for place, step in enumerate(row.steps):
            plus, partial, so_far = re.fullmatch(r"(\+ )?([\d ]+\d)(?: \( ([\d ]+\d) \))?", step).groups()
            assert (plus is None) == (place == 0)
            assert number(partial) == number(left) * int(right.split()[place]) * 10**place
            total += number(partial)
            assert (so_far is not None) == (0 < place < second_digits - 1)
            assert so_far is None or number(so_far) == total
        assert total == number(row.answer)


def test_splits_are_disjoint_and_sizes_are_kept():
    rows = list(Multiplication(digits=2, second_digits=2, train=3000, valid=100, test=200).rows())
    assert [split for split, _ in rows] == ["test"] * 200 + ["valid"] * 100 + ["train"] * 3000
    assert len({row.id for _, row in rows}) == len(rows)
    leading = [int(row.question.split()[1]) for _, row in rows]
    assert min(leading.count(digit) for digit in range(1, 10)) > len(rows) / 9 * 0.8


def test_rows_depend_on_the_seed_and_not_on_the_size_of_a_larger_split():
    rows = list(Multiplication(**SMALL).rows())
    assert list(Multiplication(**SMALL).rows()) == rows
    assert list(Multiplication(**{**SMALL, "train": 60}).rows())[: len(rows)] == rows
    assert list(Multiplication(**SMALL, seed=1).rows()) != rows


def test_the_first_rows_never_change():
    """Rows are part of every published number: a change here changes the task."""
    rows = Multiplication(digits=3, second_digits=2, seed=7, **SMALL).rows()
    assert [next(rows)[1].question for _ in range(3)] == ["0 9 7 * 2 4", "9 9 9 * 9 5", "2 6 7 * 2 2"]


def test_generated_training_rows_leave_out_the_questions_of_a_test_file(tmp_path):
    products = [written_out(left, right) for left in range(1, 10) for right in range(2, 10)]
    lines = [f"{row.question}||{' '.join(row.steps)} #### {row.answer}" for row in products]
    task = Multiplication(digits=1, second_digits=1, train=7, valid=2, test=file_of(tmp_path, *lines))
    rows = list(task.rows())
    assert [row for split, row in rows if split == "test"] == products
    assert {row.question.split(" * ")[1] for split, row in rows if split != "test"} == {"1"}
    assert len({row.question for split, row in rows if split != "test"}) == 9


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("2 1 * 4 3 8 4 0 #### 8 0 4 0", "no '||' between question and steps"),
        ("2 1 * 4 3||8 4 0 + 0 6 3 0", "no '####' before the answer"),
        ("12 * 34||8 4 0 + 0 6 3 0 #### 8 0 4 0", "the question '12 * 34' is no product of spaced digits"),
        ("||8 4 0 #### 8", "the question '' is no product"),
        ("2 1 * 4 3||8 4 0 + 0 6 3 0 ####", "the answer '' is no number of spaced digits"),
        ("2 1 * 4 3||8 4 0 + 0 6 3 0 #### 0408", "the answer '0408' is no number of spaced digits"),
        ("2 1 * 4 3||8 4 0 + x #### 8 0 4 0", "the step '+ x' is no partial product"),
        (b"2 1 * \xff", "not UTF-8 text (invalid start byte at byte 6)"),
        ("", "no '||'"),
    ],
)
def test_bad_rows_say_where_and_why(tmp_path, line, reason):
    path = file_of(tmp_path, PUBLISHED[0], line, PUBLISHED[1])
    good, bad, after = rows_of(path)
    assert isinstance(good, Row)
    assert isinstance(after, Row)
    assert (bad.file, bad.row) == (path, 2)
    assert bad.reason.startswith(reason)


def test_files_end_in_any_line_break_and_chains_may_be_missing(tmp_path):
    path = tmp_path / "rows.txt"
    path.write_bytes(b"\xef\xbb\xbf2 1 * 4 3||8 4 0  +  0 6 3 0 #### 8 0 4 0\r\n3 * 2|| #### 6 0\r\n\n")
    assert rows_of(str(path)) == [written_out(12, 34), Row("3 * 2", (), "6 0")]


def test_paths_come_from_the_environment_and_are_watched(tmp_path, monkeypatch):
    file_of(tmp_path, *PUBLISHED)
    monkeypatch.setenv("PRODUCTS", str(tmp_path))
    task = Multiplication(train=5, valid=5, test="${PRODUCTS}/rows.txt")
    assert task.files() == {"test": tmp_path / "rows.txt"}
    assert "${PRODUCTS}" in task.canonical()["test"], "settings must not depend on the machine"
    assert Multiplication.model_validate(task.canonical()) == task
    assert Multiplication().files() == {}


def test_a_missing_file_names_the_key_and_the_path(tmp_path):
    task = Multiplication(train=str(tmp_path / "gone.txt"), valid=1, test=1)
    with pytest.raises(CopraError, match=r"^train: .*gone\.txt cannot be read \(No such file"):
        list(task.rows())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": "rows.txt"}, "train is read from a file; say of valid and test too"),
        ({"train": "rows.txt", "test": 3}, "train is read from a file; say of valid too"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        Multiplication(**wrong)


def test_too_many_rows_for_the_digits_is_an_error_that_says_so():
    task = Multiplication(digits=1, second_digits=1, train=81, valid=1, test=1)
    with pytest.raises(CopraError, match=r"no new question .* row 80 of 81 of the train split"):
        list(task.rows())


def test_factors_have_as_many_digits_as_can_be_drawn():
    longest = Multiplication(kind="multiplication", digits=MOST_DIGITS, second_digits=1)
    question = longest.draw(random.Random(0)).question
    assert len(question.split(" * ")[0].split()) == MOST_DIGITS
