"""GSM8K (Cobbe 2021, arXiv 2110.14168), from the Hub or from files in one of its published forms."""

import codecs
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import NonNegativeInt, model_validator

from copra.errors import CopraError
from copra.tasks.task import BadRow, Row, Split, Task, expand_path

ANNOTATION = re.compile(r"<<(.*?)>>", re.DOTALL)
THOUSANDS_COMMA = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
NUMBER = re.compile(r"-?[0-9]*\.?[0-9]+(/[0-9]+)?")


class Gsm8k(Task):
    """Grade-school word problems: 7,473 training and 1,319 test rows, answers are numbers.

    A file is read by its suffix: `.txt` holds iCoT text (Deng 2024, arXiv 2405.14838), one
    `question||<<a>> <<b>> #### answer` a line; any other holds JSON lines with `question` and
    `answer`, OpenAI's form.
    """

    kind: Literal["gsm8k"] = "gsm8k"
    """Which task this is."""
    source: Literal["hub", "files"] = "hub"
    """Where the training and test rows come from: the Hugging Face Hub, or `train` and `test`."""
    hub_name: str = "openai/gsm8k"
    """The data set's name on the Hub; its config `main` with splits `train` and `test` is read."""
    train: str | None = None
    """File of the training rows. Environment variables such as ${COPRA_DATA} are filled in."""
    valid: str | None = None
    """File of the validation rows; without it, training rows are set aside (`validation_rows`)."""
    test: str | None = None
    """File of the test rows."""
    steps: Literal["equations", "sentences"] = "equations"
    """What a step is: an annotation such as <<48/2=24>>, or a line of the solution without them."""
    validation_rows: NonNegativeInt = 500
    """Without a `valid` file, as many training rows become the validation split: those whose
    question's hash sorts lowest, so that the choice depends on nothing but the questions."""

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
        for key, path in self._paths().items():
            if self.steps == "sentences" and _is_icot(os.path.expandvars(path)):
                raise ValueError(
                    f"{key}: {path} is iCoT text, which holds equations only; "
                    "write steps: equations, or give JSON lines"
                )
        return self

    def files(self) -> list[str]:
        """Local files that the rows are read from, variables filled in."""
        return [str(expand_path(key, path)) for key, path in self._paths().items()]

    def rows(self) -> Iterator[tuple[Split, Row | BadRow]]:
        """Every row with the split that it belongs to: train, valid, test, in the files' order.

        Raises:
            CopraError: a file or the Hub cannot be read, naming the config key and the place.
        """
        train = list(self._read("train"))
        validation: set[str] = set()
        if self.valid is None:
            ids = {row.id for row in train if isinstance(row, Row)}
            validation = set(sorted(ids)[: self.validation_rows])
        for row in train:
            yield "valid" if isinstance(row, Row) and row.id in validation else "train", row
        if self.valid is not None:
            for row in self._read("valid"):
                yield "valid", row
        for row in self._read("test"):
            yield "test", row

    def _paths(self) -> dict[Split, str]:
        paths = {"train": self.train, "valid": self.valid, "test": self.test}
        return {key: path for key, path in paths.items() if path}

    def _read(self, split: Split) -> Iterator[Row | BadRow]:
        path = self._paths().get(split)
        if path is None:
            place, records = f"{self.hub_name}, split {split}", _hub(self.hub_name, split)
            fields = _fields
        else:
            file = expand_path(split, path)
            place, records = str(file), _lines(split, file)
            fields = _icot_fields if _is_icot(file) else _json_fields
        for number, record in enumerate(records, start=1):
            try:
                yield _row(*fields(record), self.steps)
            except ValueError as error:
                yield BadRow(place, number, str(error))


def _is_icot(path: str | Path) -> bool:
    return Path(path).suffix == ".txt"


def _hub(name: str, split: Split) -> Iterator[Any]:
    import datasets

    try:
        return iter(datasets.load_dataset(name, "main", split=split))
    except Exception as error:  # the Hub's client raises a dozen unrelated kinds
        raise CopraError(
            f"hub_name: the {split} split of {name!r} could not be loaded from the Hub ({error}). "
            "Check the name and the network, or write source: files and the paths train and test."
        ) from error


def _lines(key: str, path: Path) -> list[bytes]:
    try:
        text = path.read_bytes().removeprefix(codecs.BOM_UTF8).rstrip()
    except OSError as error:
        raise CopraError(f"{key}: {path} cannot be read ({error.strerror}). Correct the path.") from None
    return text.split(b"\n") if text else []


# The readers of one record return (question, solution), and raise ValueError with the reason
# where the record cannot be used.


def _json_fields(line: bytes) -> tuple[str, str]:
    try:
        record = json.loads(_decoded(line))
    except json.JSONDecodeError as error:
        raise ValueError(f"invalid JSON ({error})") from None
    return _fields(record)


def _fields(record: Any) -> tuple[str, str]:
    if not isinstance(record, dict):
        raise ValueError("not a JSON object with the keys question and answer")
    for key in ("question", "answer"):
        if key not in record:
            raise ValueError(f"no key {key!r}")
        if not isinstance(record[key], str):
            raise ValueError(f"{key!r} is not a string")
    return record["question"], record["answer"]


def _icot_fields(line: bytes) -> tuple[str, str]:
    question, bars, solution = _decoded(line).partition("||")
    if not bars:
        raise ValueError("no '||' between question and steps")
    return question, solution


def _decoded(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text ({error.reason} at byte {error.start})") from None


def _row(question: str, solution: str, kind_of_steps: Literal["equations", "sentences"]) -> Row:
    if not question.strip():
        raise ValueError("empty question")
    chain, mark, answer = solution.rpartition("####")
    if not mark:
        raise ValueError("no '####' before the answer")
    number = THOUSANDS_COMMA.sub("", answer.strip())
    if not NUMBER.fullmatch(number):
        raise ValueError(f"the answer {answer.strip()!r} is not a number")
    if kind_of_steps == "equations":
        steps = [f"<<{' '.join(inside.split())}>>" for inside in ANNOTATION.findall(chain)]
    else:
        steps = [line.strip() for line in ANNOTATION.sub("", chain).splitlines() if line.strip()]
    row = Row(question.strip(), tuple(steps), number)
    try:
        "\n".join((row.question, *row.steps)).encode()
    except UnicodeEncodeError:
        raise ValueError("text with half of a surrogate pair, which is no character") from None
    return row
