"""Few-shot chain-of-thought prompting (Wei et al. 2022, arXiv 2201.11903): no training."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Annotated, Literal

from pydantic import Field, field_validator

from copra.data.sequences import AnswerRule, GenerationSpec, Prompting
from copra.schema.settings import MOST_ROWS, FilePath, Seed, Settings
from copra.tasks.task import Row, Task, expand_path, read_worked_examples
from copra.utils.containers import read_text_file
from copra.utils.errors import CopraError


class FewShot(Settings):
    """Ask a model as it is, after worked examples. A step of a recipe that changes no weight.

    With the defaults the prompt has the form of lm-evaluation-harness' task `gsm8k_cot`: blocks
    `Q: question`, `A: solution The answer is 24.`, parted by blank lines; an answer ends at the same texts.
    For its verdicts too, set `answer` to one of its two filters, and `max_new_tokens: 256`. Its own eight
    examples (those of the paper) are not copra's: give them as a `file`.
    """

    kind: Literal["few_shot"]
    """Which kind of step this is."""
    num_fewshot: int = Field(8, ge=1, le=MOST_ROWS)
    """k: worked examples before the question."""
    examples: Literal["worked", "train"] = "worked"
    """Where the examples come from: the first k of those that copra has for the task, in sentences (GSM8K: 8;
    for other tasks the train split), whatever steps the training uses; or rows drawn from the train split."""
    file: FilePath | None = None
    """JSON lines with `question` and `solution`, of which the first k are the examples instead. Environment
    variables are filled in."""
    seed: Seed = 0
    """Draws the rows."""
    question: str = "Q: {question}\nA:"
    """The form of a question."""
    solution: str = " {steps} The answer is {answer}."
    """The form of a row's solution."""
    separator: str = "\n\n"
    """What stands after each example."""
    stops: tuple[Annotated[str, Field(min_length=1)], ...] = ("Q:", "</s>", "<|im_end|>")
    """Texts at which the generated answer ends."""
    answer: AnswerRule = "flexible"
    """How the answer is found: the last number, or what follows the first "The answer is", read as all
    answers are ("$1,000." is 1000); or by lm-evaluation-harness' filters `flexible-extract` and
    `strict-match`, with its comparison of texts ("24.0" is not 24), verdict by verdict."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Longest answer in tokens (null: `evaluation.max_new_tokens`; lm-evaluation-harness: 256)."""

    @field_validator("question")
    @classmethod
    def _has_its_question(cls, value: str) -> str:
        if "{question}" not in value:
            raise ValueError("needs {question} where the question is to stand")
        return value

    @property
    def path(self) -> Path | None:
        """The local file that the examples are read from.

        Raises:
            CopraError: a variable in it is not set.
        """
        return None if self.file is None else expand_path("file", self.file)

    def worked(self, task: type[Task]) -> Path | None:
        """The file of copra's own examples that the prompt shows for a task, if it does."""
        return task.worked_examples if self.file is None and self.examples == "worked" else None

    def decoding(self, rows: Sequence[Row], latent_token: int, worked: Path | None = None) -> GenerationSpec:
        """How the model is asked; `rows` are those of the train split, `worked` is a task's own examples.

        Raises:
            CopraError: there are fewer than k rows, or the file cannot be used.
        """
        if self.path is not None:
            pairs = self._read(self.path)
        else:
            pairs = self._written(self._drawn(rows) if worked is None else read_worked_examples(worked))
        if len(pairs) < self.num_fewshot:
            raise CopraError(
                f"few_shot: {self.num_fewshot} examples are asked for and there are {len(pairs)}. Lower "
                "'num_fewshot', or give more."
            )
        texts = [
            self.question.replace("{question}", question) + solution + self.separator
            for question, solution in pairs[: self.num_fewshot]
        ]
        prompting = Prompting("".join(texts), self.question, self.stops, self.answer, self.max_new_tokens)
        return GenerationSpec((), 0, "hidden", latent_token, (), prompting=prompting)

    def _drawn(self, rows: Sequence[Row]) -> list[Row]:
        return Random(f"few_shot {self.seed}").sample(rows, min(self.num_fewshot, len(rows)))

    def _written(self, rows: Sequence[Row]) -> list[tuple[str, str]]:
        """Questions and solutions in their form."""
        return [
            (
                row.question,
                self.solution.replace("{steps}", " ".join(row.steps)).replace("{answer}", row.answer),
            )
            for row in rows
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
