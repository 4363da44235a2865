"""The first config of an experiment on a user's own rows: their columns are found, the rest is a template."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from copra.tasks.numbers import gold_number
from copra.utils.containers import json_object, read_rows_of_any
from copra.utils.errors import CopraError

NAMES = {
    "question": ("question", "problem", "query", "prompt", "instruction", "input"),
    "steps": ("steps", "solution", "rationale", "reasoning", "chain_of_thought", "cot", "explanation"),
    "answer": ("answer", "final_answer", "target", "label", "output", "response"),
}
"""Usual names of columns, in any case, the likeliest first."""
MARK = "####"
"""The mark before the answer in rows in GSM8K's form."""
SAMPLE = 200
SHARE = 0.1
"""Share of the rows for validation, and again for the test."""
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Found:
    """The columns of a file of rows."""

    rows: int
    question: str
    steps: str | None
    answer: str
    answer_after: str | None
    numbers: bool
    """True if answers are numbers."""

    @property
    def training_rows(self) -> int:
        return round(self.rows * (1 - 2 * SHARE))


def find_columns(path: Path, given: Mapping[str, str | None]) -> Found:
    """Return the columns of a file by their names and contents; `given` names those that the user chose.

    Raises:
        CopraError: the file cannot be read or has too few rows, or a column is not found.
    """
    records = read_rows_of_any("file", path)
    sample = []
    for number, record in enumerate(records[:SAMPLE], start=1):
        try:
            sample.append(json_object(record))
        except ValueError as error:
            raise CopraError(f"{path}: row {number}: {error}. Give CSV, TSV, JSON or Parquet.") from None
    if len(records) < 10:
        raise CopraError(
            f"{path}: has {len(records)} rows. Give at least 10: some are for validation and test."
        )
    names = list(dict.fromkeys(str(name) for record in sample for name in record))
    question = _column(path, names, "question", given)
    answer = _column(path, names, "answer", given)
    steps = given.get("steps") or next((name for name in _usual(names, "steps") if name != answer), None)
    texts = [str(record.get(answer, "")) for record in sample]
    mark = MARK if texts and all(MARK in text for text in texts) else None
    if mark:
        texts = [text.rpartition(mark)[2] for text in texts]
        steps = steps or answer
    return Found(len(records), question, steps, answer, mark, all(map(_is_number, texts)))


def starter_config(file: str, found: Found, base: str, *, has_gpu: bool) -> str:
    """Return the text of a commented config: a model and one with fewer layers, with and without latents.

    `file` is the path of the rows, `base` a model on the Hub or in a folder, as the config names them.
    """
    epoch = -(-found.training_rows // BATCH)
    # A stage of fewer than 300 steps learns little; more than a thousand are for a second look.
    steps = min(max(300, 3 * epoch), 1000)
    method = COT if found.steps else NO_COT
    return TEMPLATE.format(
        file=json.dumps(file, ensure_ascii=False),
        columns=_columns(found),
        answers="number" if found.numbers else "text",
        answer_after=f"\n    answer_after: {json.dumps(found.answer_after)}" if found.answer_after else "",
        share=SHARE,
        base=json.dumps(base, ensure_ascii=False),
        gpu=int(has_gpu),
        precision="bfloat16" if has_gpu else "float32",
        methods=method["steps"].format(
            steps=steps, batch=BATCH, warmup=steps // 20, stage=max(300, steps // 2)
        ),
        recipes=method["recipes"],
        reference=method["reference"],
    )


def _columns(found: Found) -> str:
    named = {"question": found.question, "steps": found.steps, "answer": found.answer}
    return ", ".join(f"{key}: {json.dumps(name, ensure_ascii=False)}" for key, name in named.items() if name)


def _column(path: Path, names: Sequence[str], part: str, given: Mapping[str, str | None]) -> str:
    if chosen := given.get(part):
        if chosen not in names:
            raise CopraError(f"{path}: has no column {chosen!r}. It has: {', '.join(names)}.")
        return chosen
    usual = _usual(names, part)
    if not usual:
        raise CopraError(
            f"{path}: no column looks like the {part}. Name it with --{part}; there are: {', '.join(names)}."
        )
    return usual[0]


def _usual(names: Sequence[str], part: str) -> list[str]:
    """Return the columns with a usual name for a part, the likeliest first."""
    return [name for usual in NAMES[part] for name in names if name.lower().replace(" ", "_") == usual]


def _is_number(text: str) -> bool:
    try:
        gold_number(text)
    except ValueError:
        return False
    return True


BATCH = 32
COT: dict[str, Any] = {
    "steps": """\
  # The answer after the written steps; a cut model learns them here, which heals it.
  cot:
    kind: cot
    training: &training
      steps: {steps}
      batch_size: {batch}
      learning_rate: 3.0e-4
      warmup_steps: {warmup}
      max_tokens: 512
  # The steps in latents (Coconut): hidden states that are fed back instead of words.
  coconut: &coconut
    kind: coconut
    first_stage: 1
    max_latent_stage: 3
    training: {{<<: *training, learning_rate: 1.0e-4, steps: {stage}}}
  # Coconut's control: as many positions, with nothing fed back. A gain of latents is one over this.
  pause: {{<<: *coconut, thought: embedding}}
""",
    "recipes": """\
  - prunings: [[], drop-quarter]
    methods: [cot, [cot, coconut], [cot, pause]]
""",
    "reference": "base+cot",
}
NO_COT: dict[str, Any] = {
    "steps": """\
  # The answer at once: these rows have no steps, which written and latent reasoning are trained on.
  no-cot:
    kind: no_cot
    training:
      steps: {steps}
      batch_size: {batch}
      learning_rate: 3.0e-4
      warmup_steps: {warmup}
      max_tokens: 512
""",
    "recipes": """\
  - prunings: [[], drop-quarter]
    methods: [no-cot]
""",
    "reference": "base+no-cot",
}
TEMPLATE = """\
# An experiment on your own rows. docs/recipes.md explains the parts, docs/configuration.md every key.
#
#   copra check FILE     is it legal, and are the trainings long enough?
#   copra plan FILE      hours, disk and memory
#   copra run FILE       tables, figures and report.html in results/

task: rows
tasks:
  rows:
    kind: rows
    train: {file}
    # Rows drawn by the hash of their question. Give valid and test files instead where there are some.
    validation_share: {share}
    test_share: {share}
    columns: {{{columns}}}
    answer_type: {answers}{answer_after}

# A model on the Hub, or the path of a folder.
base: base
bases:
  base: {{path: {base}}}

steps:
  # A pruning: a quarter of the layers, those that change hidden states the least.
  drop-quarter: {{kind: prune, unit: layers, metric: cosine, budget: {{fraction: 0.25}}}}
{methods}
# Every pruning with every method; a name is the base and its steps, as in base+drop-quarter+cot.
recipes:
{recipes}reference: {reference}
# One seed supports no claim about a method: [0, 1, 2] trains all of it three times.
seeds: [0]

compute: {{gpu: {gpu}, precision: {precision}, threads: 2}}
evaluation: {{max_new_tokens: 128, batch_size: 64, starts: true}}
"""
