"""Word sums: generated grade-school problems, in which each step depends on the previous one.

    Ann has 7 apples. Bob has twice what Ann has. Cid got 5 fewer than Bob. How many does Cid have?
    steps 7 * 2 = 14, 14 - 5 = 9; answer 9

Every fact needs the one before it, and multiplication and addition do not commute, so a chain has no
shortcut. No download is needed, which makes this the task of the default experiment.
"""

import itertools
import operator
import random
from collections.abc import Iterator
from typing import Literal, NamedTuple, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from copra.schema.settings import Seed
from copra.tasks.draws import below, pick, shuffled
from copra.tasks.task import Row, Size, Split, Task
from copra.utils.errors import CopraError

PEOPLE = ("Ann", "Bob", "Cid", "Dee", "Eli", "Fay", "Gus", "Hal", "Ivy", "Jon", "Kim", "Lee")
THINGS = ("apples", "pens", "coins", "books", "shells", "cards")
STARTS = ("{a} has {n} {things}.", "{a} got {n} {things}.")
QUESTIONS = ("How many {things} does {a} have?", "How many does {a} have?")
ATTEMPTS = 1000


class Relation(NamedTuple):
    """An operation by which one person's number follows from another's, and its wordings."""

    sign: Literal["+", "-", "*", "/"]
    factor: int | None
    """Fixed second operand; None if the sentence states the operand."""
    sentences: tuple[str, ...]


# Every relation is seven tokens long, so that facts stand at fixed distances.
RELATIONS = (
    Relation("+", None, ("{b} has {n} more than {a}.", "{b} got {n} more than {a}.")),
    Relation("-", None, ("{b} has {n} fewer than {a}.", "{b} got {n} fewer than {a}.")),
    Relation("*", 2, ("{b} has twice what {a} has.", "{b} got twice what {a} got.")),
    Relation("*", 3, ("{b} has thrice what {a} has.", "{b} got thrice what {a} got.")),
    Relation("/", 2, ("{b} has half what {a} has.", "{b} got half what {a} got.")),
)
OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}


class WordSums(Task):
    """Generated word sums; the same settings give the same rows on every machine.

    In each split, all numbers of steps occur equally often, and no question occurs twice.
    """

    kind: Literal["word_sums"] = "word_sums"
    """Kind of task."""
    train: Size = 20000
    """Number of training rows. More rows never change the validation and test rows."""
    valid: Size = 500
    """Number of validation rows."""
    test: Size = 1000
    """Number of test rows."""
    min_steps: PositiveInt = 2
    """Minimum number of steps from the first number to the answer."""
    max_steps: PositiveInt = 5
    """Maximum number of steps from the first number to the answer."""
    max_number: int = Field(default=99, ge=2)
    """Maximum of all numbers in a row, which are whole and not negative."""
    max_change: PositiveInt = 20
    """Maximum N in "N more than" and "N fewer than"."""
    order: Literal["chain", "reverse", "shuffled"] = "chain"
    """Order of the facts. chain: each fact after the one that it needs; reverse: before it, so that nothing
    can be computed while reading; shuffled: random order."""
    distractors: NonNegativeInt = 0
    """Maximum number of additional people per row, drawn at random, whose numbers the answer does not
    need."""
    seed: Seed = 0
    """Seed of the generated rows."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.min_steps > self.max_steps:
            raise ValueError(f"min_steps {self.min_steps} is above max_steps {self.max_steps}")
        people = self.max_steps + 1 + self.distractors
        if people > len(PEOPLE):
            raise ValueError(
                f"max_steps + 1 + distractors is {people} people, but there are {len(PEOPLE)} "
                "names; lower one"
            )
        return self

    def rows(self) -> Iterator[tuple[Split, Row]]:
        """Yield all rows in the order test, valid, train, so that no split depends on a larger one's size.

        Raises:
            CopraError: the settings allow too few different questions for the sizes.
        """
        seen: set[str] = set()
        sizes: dict[Split, int] = {"test": self.test, "valid": self.valid, "train": self.train}
        for split, size in sizes.items():
            rng = random.Random(f"word_sums {self.seed} {split}")
            for index in range(size):
                n_steps = self.min_steps + index % (self.max_steps - self.min_steps + 1)
                row = self._new_row(rng, n_steps, seen)
                if row is None:
                    raise CopraError(
                        f"word_sums: no new question with {n_steps} steps was found in {ATTEMPTS} attempts "
                        f"for row {index + 1} of {size} of the {split} split. "
                        "Raise max_number, max_change or min_steps, or ask for fewer rows."
                    )
                seen.add(row.question)
                yield split, row

    def _new_row(self, rng: random.Random, n_steps: int, seen: set[str]) -> Row | None:
        for _ in range(ATTEMPTS):
            row = self._row(rng, n_steps)
            if row.question not in seen:
                return row
        return None

    def _row(self, rng: random.Random, n_steps: int) -> Row:
        things = pick(rng, THINGS)
        people = shuffled(rng, PEOPLE)[: n_steps + 1 + below(rng, self.distractors + 1)]
        chain, others = people[: n_steps + 1], people[n_steps + 1 :]
        start = 1 + below(rng, self.max_number)
        numbers = {chain[0]: start}
        facts = {chain[0]: pick(rng, STARTS).format(a=chain[0], n=start, things=things)}
        steps = []
        for known, new in itertools.pairwise(chain):
            facts[new], step, numbers[new] = self._relate(rng, known, numbers[known], new)
            steps.append(step)
        told = list(chain)
        for other in others:
            known = pick(rng, chain)
            facts[other], _, _ = self._relate(rng, known, numbers[known], other)
            earliest = told.index(known) + 1
            told.insert(earliest + below(rng, len(told) - earliest + 1), other)
        if self.order == "reverse":
            told.reverse()
        elif self.order == "shuffled":
            told = shuffled(rng, told)
        question = pick(rng, QUESTIONS).format(a=chain[-1], things=things)
        return Row(
            " ".join([*(facts[name] for name in told), question]), tuple(steps), str(numbers[chain[-1]])
        )

    def _relate(self, rng: random.Random, known: str, value: int, new: str) -> tuple[str, str, int]:
        """Return a fact that derives the number of `new` from `known`'s, its equation, and the number."""
        legal = [(relation, self._operands(relation, value)) for relation in RELATIONS]
        relation, operands = pick(rng, [choice for choice in legal if choice[1]])
        operand = pick(rng, operands)
        result = OPERATORS[relation.sign](value, operand)
        fact = pick(rng, relation.sentences).format(a=known, b=new, n=operand)
        return fact, f"{value} {relation.sign} {operand} = {result}", result

    def _operands(self, relation: Relation, value: int) -> range:
        """Return the second operands for `value` whose result is whole and within 0..max_number."""
        if relation.sign == "+":
            return range(1, min(self.max_change, self.max_number - value) + 1)
        if relation.sign == "-":
            return range(1, min(self.max_change, value) + 1)
        factor = relation.factor
        assert factor is not None  # only sentences of sums and differences state the operand
        fits = value * factor <= self.max_number if relation.sign == "*" else value % factor == 0
        return range(factor, factor + 1) if value > 0 and fits else range(0)
