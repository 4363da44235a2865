"""Chains of modular arithmetic: generated problems whose state must be carried from step to step.

    5 * 3 + 4 * 2 mod 7
    steps 1, 5, 3; answer 3

Operations apply from left to right. The modulus is prime and no factor is 0, so that every step is invertible
and the answer depends on every operation; addition and multiplication do not commute. A model that reads the
chain once can do one dependent step per layer, unless it learns to compose operations (2210.10749): the task
asks for depth, or for steps, and for little else.
"""

import random
from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from copra.tasks.draws import below, pick
from copra.tasks.generated import DrawnTask
from copra.tasks.task import Row

PRIMES = (5, 7, 11, 13, 17, 19, 23, 29, 31)


class Modular(DrawnTask):
    """Generated chains; the same settings give the same rows on every machine."""

    kind: Literal["modular"] = "modular"
    """Kind of task."""
    modulus: int = 7
    """Prime modulus: numbers are 0 to `modulus` - 1."""
    min_steps: PositiveInt = 4
    """Minimum number of operations."""
    max_steps: int = Field(4, ge=1, le=64)
    """Maximum number of operations."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.modulus not in PRIMES:
            raise ValueError(f"modulus {self.modulus} is none of the primes {', '.join(map(str, PRIMES))}")
        if self.min_steps > self.max_steps:
            raise ValueError(f"min_steps {self.min_steps} is above max_steps {self.max_steps}")
        return self

    @property
    def chance(self) -> float:
        """The accuracy of guessing: every step is invertible, so that all answers are equally likely."""
        return 1 / self.modulus

    def draw(self, rng: random.Random) -> Row:
        """Return a random chain: the first number, operations and operands are uniform."""
        value = below(rng, self.modulus)
        told, steps = str(value), []
        for _ in range(self.min_steps + below(rng, self.max_steps - self.min_steps + 1)):
            if pick(rng, "+*") == "+":
                operand = 1 + below(rng, self.modulus - 1)
                told, value = f"{told} + {operand}", (value + operand) % self.modulus
            else:
                operand = 2 + below(rng, self.modulus - 2)
                told, value = f"{told} * {operand}", value * operand % self.modulus
            steps.append(str(value))
        return Row(f"{told} mod {self.modulus}", tuple(steps), str(value))
