"""copra score: compute importance scores of the units of a model."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from copra.commands.common import (
    Coded,
    add_files,
    add_settings,
    folder,
    located,
    made_by,
    rows_of,
    settings_of,
    summary_of,
)
from copra.commands.resources import add_threads
from copra.commands.torch_setup import set_up_torch
from copra.data.batch import Batch
from copra.data.sequences import GenerationSpec
from copra.models.checkpoint import Checkpoint, answering_modules, load_unquantized
from copra.pruning.scoring.ablation import Ablation, Questions
from copra.pruning.scoring.calibration import calibration_batches, calibration_name
from copra.pruning.scoring.gates import endless_batches, gate_scores
from copra.pruning.scoring.greedy import greedy
from copra.pruning.scoring.leave_one_out import leave_one_out
from copra.pruning.scoring.passes import pass_scores
from copra.pruning.scoring.plugin_scores import plugin_scores
from copra.pruning.scoring.scores import ScoreRow, score_table
from copra.pruning.scoring.text import read_text, text_batches, text_name
from copra.schema.metrics import GREEDY, SCORINGS, counts_answers, reads_passes, searched_by, split_of
from copra.schema.scoring import Importance, Objective
from copra.tasks.answers import AnswerKind
from copra.utils.errors import CopraError
from copra.utils.files import MANIFEST, digest, summary_beside, write_sealed_parquet
from copra.utils.locking import hold


class ScoreSettings(Coded):
    scoring: str
    """Name of the scoring run: "passes", or a run of one metric such as "layers.greedy_loss"."""
    objective: Objective
    """Objective: input and supervised tokens of the loss."""
    importance: Importance
    """Settings of importance scoring."""
    max_new_tokens: int = 256
    """Maximum number of generated tokens per answer, for accuracy."""
    answers: AnswerKind = "number"
    """Comparison of answers: as numbers or as texts."""


def arguments(parser: ArgumentParser) -> None:
    add_settings(parser)
    add_files(parser)
    add_threads(parser)
    parser.add_argument("--model", type=folder, required=True, help="checkpoint to score")
    parser.add_argument("--data", type=folder, required=True, help="folder of a prepared task")
    parser.add_argument("--state", type=Path, required=True, help="folder for states of unfinished searches")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="Parquet table of scores to write, with its summary beside it",
    )


def run(options: Namespace) -> None:
    settings = located(settings_of(options, ScoreSettings), options)
    if settings.scoring not in SCORINGS:
        raise CopraError(
            f"--settings: there is no scoring {settings.scoring!r}; take one of {', '.join(SCORINGS)}."
        )
    set_up_torch(options)
    checkpoint = load_unquantized(options.model)
    summary = summary_of(options.data, split_of(settings.scoring))
    origin = made_by(options, options.model / MANIFEST, summary)
    calibration = _calibration(settings, checkpoint, options.data)
    # Searches and curves share measurements and may run concurrently; only the same job may not run twice.
    job = digest(["score", settings.canonical(), checkpoint.identity, calibration.name])[:16]
    # The summary is written last, so its presence means that the output is complete.
    with hold(options.state / job, checkpoint.manifest.node, summary_beside(options.output)) as made:
        if made:
            return
        if reads_passes(settings.scoring):
            rows = _pass_scores(settings, checkpoint, calibration)
        elif settings.scoring.endswith(".gates"):
            rows = _gate_scores(settings, checkpoint, calibration)
        else:
            rows = _ablation_scores(settings, checkpoint, calibration, options.state)
        table = score_table(rows, calibration.name, calibration.examples)
        write_sealed_parquet(options.output, table, origin)


@dataclass(frozen=True)
class Calibration:
    """Calibration data: rows of the task or passages of a text, and a function that makes batches of them."""

    items: Sequence[Any]
    name: str
    lay_out: Callable[[Sequence[Any], int], Iterator[Batch]]
    decoding: GenerationSpec | None
    examples: int


def _calibration(settings: ScoreSettings, checkpoint: Checkpoint, data: Path) -> Calibration:
    """Return the calibration data of a scoring run.

    Raises:
        CopraError: the objective does not fit the model, or its text is missing.
    """
    importance, objective, tokenizer = settings.importance, settings.objective, checkpoint.tokenizer
    decoding = checkpoint.decoding
    if objective == "text" and not counts_answers(settings.scoring):
        if importance.text is None:
            raise CopraError(
                "importance.text: objective 'text' needs a text. Name a file or a data set there, or take "
                "another objective."
            )
        length = importance.text.max_tokens
        texts = read_text(importance.text, importance.rows)
        examples = sum(map(len, text_batches(tokenizer, texts, importance.batch_size, length)))
        if not examples:
            raise CopraError(
                "importance.text: no passage has two tokens, so there is nothing to score on. Name another "
                "text."
            )
        return Calibration(
            texts,
            text_name(texts, length),
            lambda items, size: text_batches(tokenizer, items, size, length),
            decoding,
            examples,
        )
    if objective == "latent" and decoding is None:
        raise CopraError(
            "objective: 'latent' reads what a model reads when it answers, and this one was never trained to "
            "answer. Take objective 'cot', 'answer' or 'text' for it."
        )
    split = split_of(settings.scoring)
    rows = rows_of(data, split, importance.rows if split == "train" else importance.validation_rows)
    return Calibration(
        rows,
        calibration_name(rows, objective, decoding),
        lambda items, size: calibration_batches(tokenizer, items, objective, size, decoding),
        decoding,
        len(rows),
    )


def _pass_scores(settings: ScoreSettings, checkpoint: Checkpoint, calibration: Calibration) -> list[ScoreRow]:
    batches = calibration.lay_out(calibration.items, settings.importance.batch_size)
    given = (checkpoint.model, answering_modules(checkpoint), batches, calibration.decoding)
    if settings.scoring == "passes":
        return pass_scores(*given)
    return plugin_scores(settings.scoring.removeprefix("passes."), *given)


def _gate_scores(settings: ScoreSettings, checkpoint: Checkpoint, calibration: Calibration) -> list[ScoreRow]:
    gates = settings.importance.gates
    return gate_scores(
        checkpoint.model,
        answering_modules(checkpoint),
        endless_batches(
            calibration.items, lambda items: calibration.lay_out(items, gates.batch_size), gates.seed
        ),
        calibration.decoding,
        searched_by(settings.scoring)[0],
        gates,
    )


def _ablation_scores(
    settings: ScoreSettings, checkpoint: Checkpoint, calibration: Calibration, state: Path
) -> list[ScoreRow]:
    importance = settings.importance
    kind, metric = searched_by(settings.scoring)
    if counts_answers(settings.scoring):
        questions = Questions(calibration.items, settings.max_new_tokens, settings.answers)
        ablation = Ablation(checkpoint, state, questions=questions, code=settings.code)
    else:
        batches = list(calibration.lay_out(calibration.items, importance.batch_size))
        ablation = Ablation(checkpoint, state, batches=batches, code=settings.code)
    measure: Literal["loss", "accuracy"] = "accuracy" if counts_answers(settings.scoring) else "loss"
    if metric in GREEDY:
        return greedy(ablation, measure, importance.greedy_removals, importance.greedy_protect)
    return leave_one_out(ablation, kind, measure)
