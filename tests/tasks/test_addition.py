"""Addition, checked by reading the rows and adding again with whole numbers."""

import itertools
import os
import re
import subprocess
import sys
from collections import Counter
from string import ascii_lowercase

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from copra.tasks.addition import Addition, write_sum
from copra.tasks.answers import same_answer
from copra.tasks.task import Row

SMALL = {"train": 60, "valid": 20, "test": 20}
STEP = re.compile(r"([a-z]) (\d) \+ ([A-Z]) (\d)( \+ 1)? =( 1)? ([a-z]{2}) (\d)")


def read_hinted(text):
    """The letters before the digits, joined, and the number."""
    pairs = text.split()
    return pairs[0::2], int("".join(pairs[1::2]))


def check_hinted(row):
    first, second = row.question.replace(". ", "").split(" + ")
    letters, a = read_hinted(first)
    capitals, b = read_hinted(second)
    doubled, total = read_hinted(row.answer)
    assert total == a + b
    assert all(len(letter) == 1 for letter in letters)
    assert capitals == [letter.upper() for letter in letters]
    places = [ascii_lowercase.index(letter[0]) for letter in doubled]
    assert all(right == (left + 1) % 26 for left, right in itertools.pairwise(places))
    assert doubled[-len(letters) :] == [letter * 2 for letter in letters]
    assert len(doubled) == len(str(a + b))
    carry = 0
    steps = [step for step in row.steps if set(step) - set(". ")]
    for place, (letter, step) in enumerate(zip(reversed(letters), steps, strict=True)):
        name, left, capital, right, carried, carries, result, digit = STEP.fullmatch(step).groups()
        assert (name, capital, result) == (letter, letter.upper(), letter * 2)
        assert (int(left), int(right)) == (a // 10**place % 10, b // 10**place % 10)
        assert bool(carried) == bool(carry)
        carry = 1 if carries else 0
        assert int(left) + int(right) + bool(carried) == 10 * carry + int(digit)
        assert int(digit) == (a + b) // 10**place % 10
    return len(letters)


def check_plain(row):
    first, second = (number.split() for number in row.question.split(" + "))
    digits = len(first)
    a, b = int("".join(first)), int("".join(second))
    *lines, total = row.steps
    assert int(total.replace(" ", "")) == a + b
    assert row.answer == " ".join(str(a + b))
    for done, line in enumerate(lines):
        left, sum_so_far, carry = re.fullmatch(r"([\d +]*),([\d ]*) C: ([01])", line).groups()
        rest = " + ".join(" ".join(number[: digits - done]) for number in (first, second))
        assert left.strip() == (rest if done < digits else "")
        low = a % 10**done + b % 10**done
        assert sum_so_far.replace(" ", "") == (str(low % 10**done).zfill(done) if done else "")
        assert int(carry) == low // 10**done
    assert len(lines) == digits + 1
    return digits


variants = st.builds(
    Addition,
    train=st.integers(1, 40),
    valid=st.integers(1, 10),
    test=st.integers(1, 10),
    min_digits=st.integers(1, 3),
    max_digits=st.integers(3, 12),
    test_digits=st.lists(st.integers(1, 25), min_size=1, max_size=3, unique=True),
    blanks=st.integers(0, 30),
    seed=st.integers(0, 10**6),
)


@settings(max_examples=60, deadline=None)
@given(variants)
def test_answers_and_steps_follow_from_the_question(task):
    for split, row in task.rows():
        digits = check_hinted(row)
        assert digits in task.test_digits if split == "test" else task.min_digits <= digits <= task.max_digits
    plain = Addition.model_validate({**task.canonical(), "hints": False, "blanks": 0})
    for split, row in plain.rows():
        digits = check_plain(row)
        assert digits in task.test_digits if split == "test" else task.min_digits <= digits <= task.max_digits


def test_worked_examples():
    assert write_sum((2, 9), (5, 7)) == Row(
        "2 9 + 5 7", ("2 9 + 5 7 , C: 0", "2 + 5 , 6 C: 1", ", 8 6 C: 0", "0 8 6"), "8 6"
    )
    assert write_sum((2, 9), (5, 7), 10) == Row(
        "k 2 l 9 + K 5 L 7", ("l 9 + L 7 = 1 ll 6", "k 2 + K 5 + 1 = kk 8"), "kk 8 ll 6"
    )
    # A final carry, a column that only carries, and letters that go on after z.
    assert write_sum((9, 4, 0), (1, 5, 0), 24) == Row(
        "y 9 z 4 a 0 + Y 1 Z 5 A 0",
        ("a 0 + A 0 = aa 0", "z 4 + Z 5 = zz 9", "y 9 + Y 1 = 1 yy 0"),
        "xx 1 yy 0 zz 9 aa 0",
    )
    assert write_sum((5,), (5,), 0) == Row("a 5 + A 5", ("a 5 + A 5 = 1 aa 0",), "zz 1 aa 0")
    assert write_sum((0,), (0,)) == Row("0 + 0", ("0 + 0 , C: 0", ", 0 C: 0", "0 0"), "0")


@pytest.mark.slow
@pytest.mark.parametrize("hints", [True, False])
def test_the_default_task(hints):
    task = Addition(hints=hints)
    splits = {"train": [], "valid": [], "test": []}
    for split, row in task.rows():
        splits[split].append(row)
    read = check_hinted if hints else check_plain
    lengths = {split: Counter(read(row) for row in rows) for split, rows in splits.items()}
    assert lengths["test"] == {9: 1000}
    # 80 of the 100 one-digit questions, 10 for validation; the other lengths share the rest.
    assert lengths["train"][1] == 80
    assert lengths["valid"][1] == 10
    for split in ("train", "valid"):
        assert sum(lengths[split].values()) == getattr(task, split)
        shares = [lengths[split][digits] for digits in range(2, 9)]
        assert max(shares) - min(shares) <= 1
    sums = [re.sub(r"[^\d+]", "", row.question) for rows in splits.values() for row in rows]
    assert len(set(sums)) == len(sums), "a pair of numbers occurs twice"


def test_every_letter_can_be_the_first():
    rows = [row for _, row in Addition(**SMALL | {"train": 2000}).rows()]
    firsts = Counter(row.question[0] for row in rows)
    assert set(firsts) == set(ascii_lowercase)
    assert max(firsts.values()) < 3 * min(firsts.values())


def test_blanks_stand_in_training_and_validation_alone():
    plain = list(Addition(**SMALL, max_digits=12).rows())
    blank = list(Addition(**SMALL, max_digits=12, blanks=10).rows())
    in_questions, lines = Counter(), Counter()
    for split, row in blank:
        in_questions[split, row.question.count(".")] += 1
        lines[split, row.steps[-1].count(".") if "." in row.steps[-1] else 0] += 1
        assert not re.search(r"[a-zA-Z] \.", row.question), "a blank parts a letter from its digit"
        assert not row.question.endswith("."), "the last digit is where the work starts"
    assert {row for split, row in plain if split == "test"} == {
        row for split, row in blank if split == "test"
    }
    for counts in (in_questions, lines):
        assert max(number for _, number in counts) == 10
        assert all(number == 0 for split, number in counts if split == "test")
    without = lines["train", 0] + lines["valid", 0]
    assert 0.5 < without / 80 < 0.75, "most rows go straight to the answer"


def test_answers_are_compared_as_text():
    assert Addition().answers == "text"
    assert same_answer("kk 8  ll 6", "kk 8 ll 6", Addition().answers)
    assert not same_answer("kk 8 ll 7", "kk 8 ll 6", Addition().answers)


def test_more_training_rows_change_no_other_row():
    small = list(Addition(**SMALL).rows())
    large = list(Addition(**SMALL | {"train": 90}).rows())
    assert large[: len(small)] == small
    assert list(Addition(**SMALL, seed=1).rows()) != small


def test_lengths_take_turns_until_their_questions_are_used_up():
    task = Addition(train=300, valid=4, test=7, max_digits=3, test_digits=[1, 5, 3], hints=False)
    digits = {"train": [], "valid": [], "test": []}
    for split, row in task.rows():
        digits[split].append(check_plain(row))
    assert digits["test"] == [1, 5, 3, 1, 5, 3, 1]
    assert digits["valid"] == [1, 2, 3, 1]
    assert digits["train"][:240] == [1, 2, 3] * 80
    assert digits["train"][240:] == [2, 3] * 30


@pytest.mark.slow
def test_rows_are_the_same_in_another_process_whatever_its_hash_seed():
    task = Addition(**SMALL, blanks=5)
    code = (
        "from copra.tasks.addition import Addition\n"
        f"for pair in Addition.model_validate({task.canonical()!r}).rows(): print(pair)"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {"".join(f"{pair}\n" for pair in task.rows())}


def test_the_first_rows_never_change():
    """Rows are part of every published number: a change here changes the task."""
    task = Addition(train=1, valid=2, test=1, min_digits=2, max_digits=3, test_digits=[3], blanks=6, seed=7)
    assert [(row.question, row.steps, row.answer) for _, row in task.rows()] == [
        (
            "u 9 v 5 w 0 + U 2 V 6 W 7",
            ("w 0 + W 7 = ww 7", "v 5 + V 6 = 1 vv 1", "u 9 + U 2 + 1 = 1 uu 2"),
            "tt 1 uu 2 vv 1 ww 7",
        ),
        (
            ". x 2 y 9 + . X 9 Y 8",
            ("y 9 + Y 8 = 1 yy 7", "x 2 + X 9 + 1 = 1 xx 2"),
            "ww 1 xx 2 yy 7",
        ),
        (
            ". b 2 . c 8 d 9 + B 6 C 1 D 9",
            ("d 9 + D 9 = 1 dd 8", "c 8 + C 1 + 1 = 1 cc 0", "b 2 + B 6 + 1 = bb 9"),
            "bb 9 cc 0 dd 8",
        ),
        (
            "p 4 . q 6 + . . P 5 . . . Q 8",
            ("q 6 + Q 8 = 1 qq 4", "p 4 + P 5 + 1 = 1 pp 0", ". . . ."),
            "oo 1 pp 0 qq 4",
        ),
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"min_digits": 9}, "min_digits 9 is above max_digits 8"),
        ({"test_digits": [9, 10, 9]}, "names a length twice"),
        ({"test_digits": [26]}, "26-digit numbers need 27 letters, but there are 26"),
        ({"max_digits": 30}, "30-digit numbers need 31 letters"),
        ({"hints": False, "blanks": 4}, "blanks stand between hinted digits"),
        ({"max_digits": 1, "train": 81, "valid": 10}, r"train: \[1\] digits give at most 80 rows, not 81"),
        ({"max_digits": 1, "train": 80}, r"valid: \[1\] digits give at most 10 rows, not 500"),
        ({"test_digits": [2], "test": 811}, r"test: \[2\] digits give at most 810 rows, not 811"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        Addition(**wrong)


def test_every_question_can_be_asked_for():
    rows = list(Addition(train=80, valid=10, test=10, max_digits=1, test_digits=[1]).rows())
    assert len({re.sub(r"[^\d+]", "", row.question) for _, row in rows}) == 100


def test_numbers_may_be_longer_than_the_alphabet_without_hints():
    (row,) = [
        row
        for split, row in Addition(**SMALL | {"test": 1}, test_digits=[40], hints=False).rows()
        if split == "test"
    ]
    assert check_plain(row) == 40
