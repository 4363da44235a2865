"""Word sums, checked by an interpreter that reads the questions and nothing else."""

import itertools
import os
import re
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from copra.tasks.word_sums import PEOPLE, WordSums
from copra.utils.errors import CopraError

SMALL = {"train": 60, "valid": 20, "test": 20}


def solve(question: str) -> tuple[int, dict[str, int]]:
    """The answer to a question and everybody's number, from its sentences in whatever order."""
    *facts, asked = re.findall(r"[^.?]+[.?]", question)
    verb = r"(\w+) (?:has|got)"
    numbers: dict[str, int] = {}
    while len(numbers) < len(facts):
        before = len(numbers)
        for fact in facts:
            if m := re.search(rf"{verb} (\d+) (?!more|fewer)\w+\.", fact):
                numbers[m[1]] = int(m[2])
            elif (m := re.search(rf"{verb} (\d+) (more|fewer) than (\w+)\.", fact)) and m[4] in numbers:
                numbers[m[1]] = numbers[m[4]] + (int(m[2]) if m[3] == "more" else -int(m[2]))
            elif (m := re.search(rf"{verb} (twice|thrice|half) what (\w+)", fact)) and m[3] in numbers:
                doubled = numbers[m[3]] * {"twice": 4, "thrice": 6, "half": 1}[m[2]]
                assert doubled % 2 == 0, f"half a thing in {question!r}"
                numbers[m[1]] = doubled // 2
        assert len(numbers) > before, f"no way on in {question!r}"
    return numbers[re.search(r"does (\w+) have\?", asked)[1]], numbers


def check_row(row, task):
    answer, numbers = solve(row.question)
    assert row.answer == str(answer)
    assert all(0 <= number <= task.max_number for number in numbers.values())
    previous = None
    for step in row.steps:
        left, sign, right, result = re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (\d+)", step).groups()
        assert eval(f"{left} {sign} {right}") == int(result)
        assert previous is None or left == previous, "a step must start from the last one's result"
        previous = result
    assert previous == row.answer


variants = st.builds(
    WordSums,
    train=st.just(30),
    valid=st.just(6),
    test=st.just(6),
    min_steps=st.integers(2, 3),
    max_steps=st.integers(3, 8),
    max_number=st.integers(10, 500),
    max_change=st.integers(3, 40),
    order=st.sampled_from(["chain", "reverse", "shuffled"]),
    distractors=st.integers(0, 3),
    seed=st.integers(0, 10**6),
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(variants)
def test_answers_and_steps_follow_from_the_question(task):
    for _, row in task.rows():
        check_row(row, task)
        assert task.min_steps <= len(row.steps) <= task.max_steps


@pytest.mark.slow
def test_the_default_task():
    task = WordSums()
    by_split = {"train": [], "valid": [], "test": []}
    for split, row in task.rows():
        by_split[split].append(row)
    for split, rows in by_split.items():
        assert len(rows) == getattr(task, split)
    ids = [row.id for rows in by_split.values() for row in rows]
    assert len(set(ids)) == len(ids), "a question occurs twice"
    for rows in by_split.values():
        for row in rows[:500]:
            check_row(row, task)
        shares = Counter(len(row.steps) for row in rows)
        assert max(shares.values()) - min(shares.values()) <= 1
        assert set(shares) == set(range(task.min_steps, task.max_steps + 1))
    signs = Counter(step.split()[1] for row in by_split["train"] for step in row.steps)
    assert min(signs.values()) > 0.05 * sum(signs.values()), signs
    answers = Counter(row.answer for row in by_split["test"])
    assert answers.most_common(1)[0][1] < 0.1 * task.test, "guessing one answer must not pay"


def test_every_relation_and_phrasing_occurs():
    text = " ".join(row.question for _, row in WordSums(**SMALL).rows())
    for words in (
        r"has \d+ more than",
        r"got \d+ more than",
        r"has \d+ fewer than",
        r"got \d+ fewer than",
        "has twice what",
        "got twice what",
        "has thrice what",
        "got thrice what",
        "has half what",
        "got half what",
        r"How many \w+ does \w+ have",
        r"How many does \w+ have",
    ):
        assert re.search(words, text), words
    assert all(name in text for name in PEOPLE)


def test_facts_are_told_in_the_order_that_is_asked_for():
    def in_order(row):
        told = set()
        for fact in re.findall(r"[^.?]+\.", row.question):
            teller, *others = [word for word in re.findall(r"\w+", fact) if word in PEOPLE]
            if not told.issuperset(others):
                return False
            told.add(teller)
        return True

    plain = [row for _, row in WordSums(**SMALL, distractors=3).rows()]
    assert all(in_order(row) for row in plain)
    reverse = [row for _, row in WordSums(**SMALL, distractors=3, order="reverse").rows()]
    assert not any(in_order(row) for row in reverse)
    for row, turned in zip(plain, reverse, strict=True):
        facts = re.findall(r"[^.?]+[.?]", row.question)
        assert [fact.strip() for fact in facts[-2::-1]] == [
            fact.strip() for fact in re.findall(r"[^.?]+[.?]", turned.question)[:-1]
        ]
    shuffled = [row for _, row in WordSums(**SMALL, distractors=3, order="shuffled").rows()]
    assert sum(not in_order(row) for row in shuffled) > len(shuffled) / 2


def test_distractors_are_people_that_no_step_needs():
    task = WordSums(**SMALL, distractors=2)
    extra = Counter(len(solve(row.question)[1]) - 1 - len(row.steps) for _, row in task.rows())
    assert set(extra) == {0, 1, 2}
    assert all(len(solve(row.question)[1]) == 1 + len(row.steps) for _, row in WordSums(**SMALL).rows())


def test_more_training_rows_change_no_other_row():
    small = list(WordSums(**SMALL).rows())
    large = list(WordSums(**{**SMALL, "train": 90}).rows())
    assert large[: len(small)] == small
    assert list(WordSums(**SMALL, seed=1).rows()) != small


def test_rows_are_the_same_in_another_process_whatever_its_hash_seed():
    task = WordSums(**SMALL, order="shuffled", distractors=2)
    code = (
        "from copra.tasks.word_sums import WordSums\n"
        f"for pair in WordSums.model_validate({task.canonical()!r}).rows(): print(pair)"
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
    task = WordSums(
        min_steps=2, max_steps=3, max_number=60, max_change=10, order="shuffled", distractors=1, seed=7
    )
    rows = [row for _, row in itertools.islice(task.rows(), 2)]
    assert [(row.question, row.steps, row.answer) for row in rows] == [
        (
            "Cid got twice what Fay got. Fay got 10 fewer than Kim. Kim got 33 shells. "
            "How many does Cid have?",
            ("33 - 10 = 23", "23 * 2 = 46"),
            "46",
        ),
        (
            "Kim has twice what Cid has. Cid has 6 shells. Lee has 7 fewer than Kim. "
            "Dee got 7 fewer than Fay. Fay has 9 more than Lee. How many shells does Fay have?",
            ("6 * 2 = 12", "12 - 7 = 5", "5 + 9 = 14"),
            "14",
        ),
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"min_steps": 6}, "min_steps 6 is above max_steps 5"),
        ({"max_steps": 12}, "13 people, but there are 12 names"),
        ({"distractors": 7}, "13 people, but there are 12 names"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        WordSums(**wrong)


@pytest.mark.slow
def test_too_many_rows_for_the_settings_is_an_error_that_says_so():
    task = WordSums(min_steps=1, max_steps=1, max_number=2, max_change=1, valid=10, test=10, train=10**6)
    with pytest.raises(CopraError, match=r"no new question with 1 steps .* train split.*Raise max_number"):
        list(task.rows())
