"""Chains of modular arithmetic, checked with Python's own left-to-right evaluation."""

import re

import pytest
from pydantic import ValidationError

from copra.tasks.modular import Modular
from copra.utils.errors import CopraError

SMALL = {"train": 200, "valid": 30, "test": 30}


def worked_out(question: str) -> list[int]:
    """Return the values after each operation of a question, from left to right."""
    chain, modulus = re.fullmatch(r"(\d(?: [+*] \d)+) mod (\d)", question).groups()
    first, *rest = chain.split()
    values = [int(first)]
    for sign, operand in zip(rest[::2], rest[1::2], strict=True):
        values.append(eval(f"({values[-1]} {sign} {operand}) % {modulus}"))
    return values[1:]


def test_steps_are_the_running_values():
    rows = [row for _, row in Modular(min_steps=1, max_steps=5, modulus=5, **SMALL).rows()]
    for row in rows:
        values = worked_out(row.question)
        assert row.steps == tuple(map(str, values))
        assert row.answer == str(values[-1])
    assert {len(row.steps) for row in rows} == {1, 2, 3, 4, 5}


def test_every_operation_can_be_undone_and_all_values_are_as_likely():
    rows = [row for _, row in Modular(modulus=7, **SMALL | {"train": 4000}).rows()]
    operands = [pair for row in rows for pair in re.findall(r"([+*]) (\d)", row.question)]
    assert {int(number) for sign, number in operands if sign == "*"} == {2, 3, 4, 5, 6}
    assert {int(number) for sign, number in operands if sign == "+"} == {1, 2, 3, 4, 5, 6}
    answers = [row.answer for row in rows]
    for value in range(7):
        assert 0.11 < answers.count(str(value)) / len(rows) < 0.18


def test_no_question_occurs_twice():
    questions = [row.question for _, row in Modular(min_steps=2, max_steps=2, **SMALL).rows()]
    assert len(set(questions)) == len(questions) == 260


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"modulus": 6}, "modulus 6 is none of the primes"),
        ({"min_steps": 3, "max_steps": 2}, "min_steps 3 is above max_steps 2"),
    ],
)
def test_impossible_settings(settings, says):
    with pytest.raises(ValidationError, match=says):
        Modular(**settings)


def test_too_many_rows_for_the_questions_there_are():
    with pytest.raises(CopraError, match="modular: no new question was found"):
        list(Modular(min_steps=1, max_steps=1, modulus=5, train=1000, valid=1, test=1).rows())
