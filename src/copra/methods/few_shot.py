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
    """Prompt a model with worked examples before the question. A step of a recipe that changes no weight.

    With the defaults the prompt has the form of lm-evaluation-harness' task `gsm8k_cot`: blocks
    `Q: question`, `A: solution The answer is 24.`, separated by blank lines; an answer ends at the same
    texts. To reproduce its verdicts too, set `answer` to one of its two filters, and `max_new_tokens: 256`.
    Its own eight examples (those of the paper) are not included in copra: give them as a `file`.
    """

    kind: Literal["few_shot"]
    """Name of the kind of step."""
    num_fewshot: int = Field(8, ge=1, le=MOST_ROWS)
    """k: number of worked examples before the question."""
    examples: Literal["worked", "train"] = "worked"
    """Source of the examples. worked: the first k of the examples that copra includes for the task (GSM8K: 8;
    other tasks: rows of the train split), in sentences whatever steps the training uses. train: rows drawn
    from the train split."""
    file: FilePath | None = None
    """Path of a file of JSON lines with `question` and `solution`, whose first k are the examples instead
    (null: `examples`). Environment variables are expanded."""
    seed: Seed = 0
    """Seed of the draw of rows from the train split."""
    question: str = "Q: {question}\nA:"
    """Template of a question."""
    solution: str = " {steps} The answer is {answer}."
    """Template of a train row's solution."""
    separator: str = "\n\n"
    """Text after each example."""
    stops: tuple[Annotated[str, Field(min_length=1)], ...] = ("Q:", "</s>", "<|im_end|>")
    """Texts at which the generated answer ends."""
    answer: AnswerRule = "flexible"
    """Rule that extracts the answer. flexible: the last number. strict: the text after the first "The answer
    is". Both are parsed as all answers are ("$1,000." is 1000). harness-flexible and harness-strict:
    lm-evaluation-harness' filters `flexible-extract` and `strict-match`, with its comparison of texts
    ("24.0" is not 24) and its verdicts."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Maximum number of tokens per answer (null: `evaluation.max_new_tokens`; lm-evaluation-harness: 256)."""

    @field_validator("question")
    @classmethod
    def _has_its_question(cls, value: str) -> str:
        if "{question}" not in value:
            raise ValueError("needs {question} where the question is to stand")
        return value

    @property
    def path(self) -> Path | None:
        """The path of the local file that the examples are read from, or None.

        Raises:
            CopraError: a variable in it is not set.
        """
        return None if self.file is None else expand_path("file", self.file)

    def worked(self, task: type[Task]) -> Path | None:
        """Return the path of the task's worked examples if the prompt uses them, else None."""
        return task.worked_examples if self.file is None and self.examples == "worked" else None

    def decoding(self, rows: Sequence[Row], latent_token: int, worked: Path | None = None) -> GenerationSpec:
        """Return the generation spec.

        `rows` are those of the train split, `worked` is the file of a task's worked examples.

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
        """Return questions and solutions of rows, the solutions by the template."""
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
        # JSON text may contain other line separators, at which splitlines() would split too.
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
