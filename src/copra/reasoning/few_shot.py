"""Few-shot chain-of-thought prompting (Wei et al. 2022, arXiv 2201.11903): no training (no torch)."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Annotated, Literal

from pydantic import Field, field_validator

from copra.errors import CopraError
from copra.reasoning.layout import Decoding, Prompting
from copra.settings import MOST_ROWS, Seed, Settings
from copra.tasks.containers import read_text_file
from copra.tasks.task import Row, expand_path


class FewShot(Settings):
    """Ask a model as it is, after worked examples. A step of a recipe that changes no weight.

    With the defaults the prompt is that of lm-evaluation-harness' task `gsm8k_cot`: blocks
    `Q: question`, `A: solution The answer is 24.`, parted by blank lines.
    """

    kind: Literal["few_shot"]
    """Which kind of step this is."""
    exemplars: int = Field(8, ge=1, le=MOST_ROWS)
    """k: worked examples before the question."""
    file: str | None = None
    """JSON lines with `question` and `solution`, of which the first k are the examples. Environment variables
    are filled in. Null: rows drawn from the train split."""
    seed: Seed = 0
    """Draws the rows."""
    question: str = "Q: {question}\nA:"
    """The form of a question."""
    solution: str = " {steps} The answer is {answer}."
    """The form of a drawn row's solution."""
    separator: str = "\n\n"
    """What stands after each example."""
    stops: tuple[Annotated[str, Field(min_length=1)], ...] = ("Q:",)
    """Texts at which the generated answer ends."""
    answer: Literal["flexible", "strict"] = "flexible"
    """How the answer is found: the last number, or what follows the first "The answer is"."""

    @field_validator("question")
    @classmethod
    def _has_its_question(cls, value: str) -> str:
        if "{question}" not in value:
            raise ValueError("needs {question} where the question is to stand")
        return value

    def files(self) -> list[str]:
        """Local files that the examples are read from: the workflow watches them."""
        return [] if self.file is None else [str(expand_path("file", self.file))]

    def decoding(self, rows: Sequence[Row], latent_token: int) -> Decoding:
        """How the model is asked; `rows` are those of the train split.

        Raises:
            CopraError: there are fewer than k rows, or the file cannot be used.
        """
        pairs = self._drawn(rows) if self.file is None else self._read(expand_path("file", self.file))
        if len(pairs) < self.exemplars:
            raise CopraError(
                f"few_shot: {self.exemplars} examples are asked for and there are {len(pairs)}. Lower "
                "'exemplars', or give more."
            )
        texts = [
            self.question.replace("{question}", question) + solution + self.separator
            for question, solution in pairs[: self.exemplars]
        ]
        prompting = Prompting("".join(texts), self.question, self.stops, self.answer)
        return Decoding((), 0, "hidden", latent_token, (), prompting=prompting)

    def _drawn(self, rows: Sequence[Row]) -> list[tuple[str, str]]:
        chosen = Random(f"few_shot {self.seed}").sample(rows, min(self.exemplars, len(rows)))
        return [
            (
                row.question,
                self.solution.replace("{steps}", " ".join(row.steps)).replace("{answer}", row.answer),
            )
            for row in chosen
        ]

    def _read(self, path: Path) -> list[tuple[str, str]]:
        text = read_text_file("few_shot", path).rstrip()
        pairs = []
        # Other line separators, which splitlines() knows too, may stand in JSON text.
        for number, line in enumerate(text.split("\n") if text else [], start=1):
            try:
                record = json.loads(line)
                if not (isinstance(record["question"], str) and isinstance(record["solution"], str)):
                    raise TypeError("not text")
                pairs.append((record["question"], " " + record["solution"].strip()))
            except (json.JSONDecodeError, TypeError, KeyError) as error:
                raise CopraError(
                    f"few_shot: {path}, row {number}: not a JSON object with 'question' and 'solution' "
                    f"({error})."
                ) from None
        return pairs
