"""GSM8K (Cobbe 2021, arXiv 2110.14168), from the Hub or from files in one of its published forms."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from copra.schema.settings import FilePath
from copra.tasks.hub import load_splits
from copra.tasks.numbers import gold_number
from copra.tasks.task import BadRow, Preview, Row, Split, Task, usable
from copra.utils.containers import count_records, decoded, json_object, read_records
from copra.utils.errors import CopraError

ANNOTATION = re.compile(r"<<(.*?)>>", re.DOTALL)
SIZES: dict[str, dict[Split, int]] = {
    "openai/gsm8k": {"train": 7473, "valid": 0, "test": 1319},
    "whynlp/gsm8k-aug": {"train": 385620, "valid": 500, "test": 1319},
    "zen-e/gsm8k-aug": {"train": 385620, "valid": 0, "test": 1319},
}
"""Rows of data sets on the Hub, by lowercase name (arXiv 2110.14168, 2405.14838)."""
TOKENS = {"equations": (54, (9, 9, 9), 3), "sentences": (54, (19, 16, 16, 16), 3)}
"""Tokens of the question, of each step and of the answer of a typical training row of GSM8K, by GPT-2's
tokenizer and others of its kind: rounded means of all 7,473 rows."""
Steps = str | list[str]
"""A chain of thought: one text with annotations, or a list of steps."""


class Gsm8k(Task):
    """Grade-school word problems: 7,473 training and 1,319 test rows, with numbers as answers.

    The suffix of a file selects its format: `.txt` is iCoT text (Deng 2024, arXiv 2405.14838), one
    `question||<<a>> <<b>> #### answer` per line; any other is JSON lines, a JSON array (as in Coconut) or
    Parquet. Files may be gzipped (`.gz`). A row has a `question` and an `answer` that ends in `#### number`
    (OpenAI's format); or the bare number as `answer`, and its steps under `steps` (a list) or `cot` (a text)
    (the formats of GSM8k-Aug).
    """

    kind: Literal["gsm8k"] = "gsm8k"
    """Kind of task."""
    worked_examples: ClassVar[Path | None] = Path(__file__).with_name("gsm8k_examples.jsonl")
    source: Literal["hub", "files"] = "hub"
    """Source of the training and test rows: the Hugging Face Hub (hub), or the files `train` and `test`
    (files)."""
    hub_name: str = "openai/gsm8k"
    """Name of the data set on the Hub. Its splits `train` and `test` are read, and also `validation` if it
    exists and no `valid` file is given."""
    hub_subset: str | None = None
    """Configuration (subset) of the data set on the Hub (null: `main`, or its only one)."""
    hub_revision: str | None = Field(None, exclude_if=lambda value: value is None)
    """Branch, tag or commit of the data set on the Hub. A commit pins the rows."""
    train: FilePath | None = None
    """Path of the file of training rows; environment variables such as ${COPRA_DATA} are expanded."""
    valid: FilePath | None = None
    """Path of the file of validation rows. Without it, and without a validation split on the Hub,
    `validation_rows` training rows are used for validation instead."""
    test: FilePath | None = None
    """Path of the file of test rows."""
    steps: Literal["equations", "sentences"] = "equations"
    """Unit of a step. equations: an annotation such as <<48/2=24>>; sentences: a line of the solution without
    its annotations."""
    validation_rows: NonNegativeInt = 500
    """Number of training rows that become the validation split if the data has none: the rows with the lowest
    question hashes, so that the selection depends on the questions alone."""

    @model_validator(mode="after")
    def _sources_agree(self) -> Self:
        given = [key for key in ("train", "test") if getattr(self, key)]
        if self.source == "files" and len(given) < 2:
            missing = " and ".join(key for key in ("train", "test") if key not in given)
            raise ValueError(f"source: files needs the path of a file under {missing}")
        if self.source == "hub" and given:
            raise ValueError(
                f"{' and '.join(given)} would be ignored with source: hub; "
                "write source: files, or leave the paths out"
            )
        for key, path in self.paths().items():
            if self.steps == "sentences" and _is_icot(os.path.expandvars(path)):
                raise ValueError(
                    f"{key}: {path} is iCoT text, which holds equations only; "
                    "write steps: equations, or give JSON lines"
                )
        return self

    def paths(self) -> dict[Split, str]:
        """Return the configured paths of the local files of splits, not expanded."""
        paths: dict[Split, str | None] = {"train": self.train, "valid": self.valid, "test": self.test}
        return {key: path for key, path in paths.items() if path}

    @property
    def steps_advice(self) -> str:
        if self.steps == "sentences":
            return super().steps_advice
        return "Write steps: sentences if the solutions are text without <<equations>>."

    @property
    def hub(self) -> str | None:
        return self.hub_name if self.source == "hub" else None

    def preview(self, most: int) -> Preview:
        """Return the numbers of rows, with samples of local files and typical lengths of rows on the Hub."""
        if self.is_local:
            return super().preview(most)
        name = self.hub_name.lower()
        sizes = dict(SIZES.get(name, SIZES["openai/gsm8k"]))
        if self.valid:
            sizes["valid"] = count_records(self.files()["valid"])
        elif not sizes["valid"]:
            sizes["valid"] = self.validation_rows
            sizes["train"] = max(1, sizes["train"] - self.validation_rows)
        limited = {split: min(size, self.limit.get(split, size)) for split, size in sizes.items()}
        return Preview(limited, None, TOKENS[self.steps], counted=name in SIZES)

    def concerning(self, split: Split) -> dict[str, Any]:
        """Return the settings that affect a split, as plain JSON values."""
        settings = super().concerning(split)
        if split == "test":
            del settings["validation_rows"]
        return settings

    def rows(self) -> Iterator[tuple[Split, Row | BadRow]]:
        """Yield (split, row) for all rows: train, valid, test, in the order of the files.

        Raises:
            CopraError: a file or the Hub cannot be read, naming the config key and the place.
        """
        sources = self._sources()
        train = list(self._read("train", sources))
        validation: set[str] = set()
        if "valid" not in sources:
            ids = {row.id for row in train if isinstance(row, Row)}
            validation = set(sorted(ids)[: self.validation_rows])
        for row in train:
            yield "valid" if isinstance(row, Row) and row.id in validation else "train", row
        if "valid" in sources:
            for row in self._read("valid", sources):
                yield "valid", row
        for row in self._read("test", sources):
            yield "test", row

    def _sources(self) -> dict[Split, Any]:
        """Return the source of each split: the path of a file, or the rows of the Hub's data set."""
        hub = self._hub() if self.source == "hub" else {}
        return hub | self.files()

    def _hub(self) -> dict[Split, Any]:
        """Return the rows of each split of the data set on the Hub."""
        # Copies of the data set have a single config of another name, which is loaded by default.
        subsets = ["main", None] if self.hub_subset is None else [self.hub_subset]
        advice = "write source: files and the paths train and test"
        found = load_splits(self.hub_name, subsets, self.hub_revision, advice)
        if missing := [split for split in ("train", "test") if split not in found]:
            raise CopraError(
                f"hub_name: {self.hub_name!r} has no split {' and '.join(missing)}, only {', '.join(found)}. "
                "Name another data set, or write source: files."
            )
        names: dict[Split, str] = {"train": "train", "valid": "validation", "test": "test"}
        return {split: found[stored] for split, stored in names.items() if stored in found}

    def _read(self, split: Split, sources: dict[Split, Any]) -> Iterator[Row | BadRow]:
        source = sources[split]
        if isinstance(source, Path):
            place, records = str(source), read_records(split, source, by_line=_is_icot(source))
        else:
            place, records = f"{self.hub_name}, split {split}", source
        fields = _icot_fields if isinstance(source, Path) and _is_icot(source) else _fields
        for number, record in enumerate(records, start=1):
            try:
                yield _row(*fields(record), self.steps)
            except ValueError as error:
                yield BadRow(place, number, str(error))


def _is_icot(path: str | Path) -> bool:
    return Path(str(path).removesuffix(".gz")).suffix == ".txt"


# The readers of one record return (question, steps, answer), and raise ValueError with the reason
# where the record cannot be used.


def _fields(record: Any) -> tuple[str, Steps, str]:
    record = json_object(record)
    for key in ("question", "answer"):
        if key not in record:
            raise ValueError(f"no key {key!r}")
        if not isinstance(record[key], str):
            raise ValueError(f"{key!r} is not a string")
    question, solution = record["question"], record["answer"]
    for key in ("steps", "cot"):
        if key in record:
            return question, _written(key, record[key]), solution.rpartition("####")[2]
    chain, answer = _parted(solution)
    return question, chain, answer


def _written(key: str, steps: Any) -> Steps:
    """Return the steps of a row with a separate field for them: a list, or one text."""
    if isinstance(steps, str):
        return [steps] if steps.strip() else []
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise ValueError(f"{key!r} is neither a text nor a list of texts")
    return steps


def _parted(solution: str) -> tuple[str, str]:
    """Return the chain of thought of a solution, and its answer."""
    chain, mark, answer = solution.rpartition("####")
    if not mark:
        raise ValueError("no '####' before the answer")
    return chain, answer


def _icot_fields(line: bytes) -> tuple[str, Steps, str]:
    question, bars, solution = decoded(line).partition("||")
    if not bars:
        raise ValueError("no '||' between question and steps")
    return question, *_parted(solution)


def _row(question: str, chain: Steps, answer: str, kind_of_steps: Literal["equations", "sentences"]) -> Row:
    return usable(Row(question.strip(), tuple(_steps(chain, kind_of_steps)), gold_number(answer)))


def _steps(chain: Steps, kind: Literal["equations", "sentences"]) -> list[str]:
    """Return the steps in a chain of thought, as equations or as sentences.

    Raises:
        ValueError: the chain is a list with steps of the other kind only.
    """
    text = chain if isinstance(chain, str) else "\n".join(chain)
    if kind == "equations":
        steps = [f"<<{' '.join(inside.split())}>>" for inside in ANNOTATION.findall(text)]
    else:
        steps = [line.strip() for line in ANNOTATION.sub("", text).splitlines() if line.strip()]
    if isinstance(chain, list) and chain and not steps:
        there, right = (
            ("no <<equation>>", "sentences") if kind == "equations" else ("equations only", "equations")
        )
        raise ValueError(f"{there} in its steps; write steps: {right}")
    return steps
