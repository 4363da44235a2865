"""copra evaluate: answer the questions of a split; write all answers and the metrics."""

from argparse import ArgumentParser, Namespace
from typing import Any

from copra.commands.answering import CompiledAnswering, add_answering, answerer, load_to_answer
from copra.commands.common import folder, rows_of, settings_of, summary_of
from copra.commands.resources import add_processes
from copra.cost.flops import FLOP_GROUPS, PHASES
from copra.cost.parameters import answering_bytes, answering_parameters, kv_cache_bytes_per_token
from copra.data.tokenization import check_words
from copra.evaluation.accuracy import accuracy_of
from copra.evaluation.answer_cache import AnswerCache
from copra.schema.units import UNIT_NAMES, units_of
from copra.tasks.leaks import question_keys, without_questions
from copra.tasks.task import Row, Split
from copra.utils import processes
from copra.utils.errors import CopraError
from copra.utils.files import METRICS, PREDICTIONS, write_json, write_parquet
from copra.utils.locking import hold

LEARNED: tuple[Split, ...] = ("train", "valid")
"""The splits that a model learns from: the validation split selects its checkpoints."""


class EvaluateSettings(CompiledAnswering):
    task: str
    """Name of the task."""
    trained_on: str | None = None
    """Name of the task that the model was trained on, if it is another one."""

    @property
    def evaluation(self) -> str:
        """The name of the evaluation: that of the node, after another task than its own."""
        return f"{self.task}/{self.node}" if self.trained_on else self.node


def arguments(parser: ArgumentParser) -> None:
    add_answering(parser, "checkpoint to evaluate", "folder for answers of unfinished evaluations")
    add_processes(parser)
    parser.add_argument(
        "--output", type=folder, required=True, help=f"folder to write {PREDICTIONS} and {METRICS} to"
    )
    parser.add_argument(
        "--trained-on",
        type=folder,
        nargs="*",
        default=[],
        metavar="DATA",
        help="folder of the prepared task that the model was trained on, if it is another one",
    )


def run(options: Namespace) -> None:
    settings = settings_of(options, EvaluateSettings)
    known = [summary_of(data, split) for data in set(options.trained_on) for split in LEARNED]
    checkpoint, origin = load_to_answer(options, settings.precision, settings.split, *known)
    if checkpoint.decoding is None:
        raise CopraError(f"{options.model}: this model was never trained to answer; evaluate one that was.")
    rows, seen = _questions(settings, options)
    if settings.trained_on:
        check_words(checkpoint.tokenizer, rows, settings.task)
    questions = options.data / f"{settings.split}.parquet"
    named = {**settings.canonical(), "node": settings.evaluation}
    answer_cache = AnswerCache(options.state, checkpoint, named, questions, len(rows))
    with hold(answer_cache.state, settings.evaluation, options.output / METRICS) as made:
        if made:
            return
        answer = answerer(checkpoint, settings, checkpoint.decoding, rows, answer_cache)
        table = answer(checkpoint.decoding)
        if processes.rank():
            return
        write_parquet(options.output / PREDICTIONS, table)
        metrics = _metrics(settings, checkpoint, table) | {"seen_in_training": seen} | origin
        write_json(options.output / METRICS, metrics)
        answer_cache.delete()


def _questions(settings: EvaluateSettings, options: Namespace) -> tuple[list[Row], int]:
    """Return the questions to ask, and the number of those left out because the model was trained on them.

    Raises:
        CopraError: no question is left.
    """
    rows = rows_of(options.data, settings.split)
    keys = {
        key
        for data in set(options.trained_on)
        for split in LEARNED
        for key in question_keys(rows_of(data, split))
    }
    unseen = without_questions(rows, keys) if keys else rows
    if not unseen:
        raise CopraError(
            f"{options.data}: task {settings.trained_on!r} trains on all questions of its {settings.split} "
            f"split. Leave {settings.task!r} out of evaluation.tasks."
        )
    return unseen[: settings.limit], len(rows) - len(unseen)


def _metrics(settings: EvaluateSettings, checkpoint: Any, table: Any) -> dict[str, Any]:
    counts = ("prompt", "latent", "marker", "chain", "answer", "generated")
    return {
        "node": settings.node,
        "task": settings.task,
        "split": settings.split,
        "precision": checkpoint.precision,
        "answer_rule": checkpoint.decoding.answer_rule,
        "max_new_tokens": checkpoint.decoding.longest_answer(settings.max_new_tokens),
        **accuracy_of(table),
        "flops": {
            "total": float(table["flops"].mean()),
            "cached_prompt": float(table["flops_cached_prompt"].mean()),
        }
        | {name: float(table[f"flops_{name}"].mean()) for name in (*PHASES, *FLOP_GROUPS)},
        "tokens": {name: float(table[f"n_{name}"].mean()) for name in counts},
        "depth": float(table["depth"].mean()),
        "hit_length_limit": int(table["hit_length_limit"].sum()),
        "parameters": answering_parameters(checkpoint.manifest),
        "checkpoint_bytes": answering_bytes(checkpoint.manifest),
        "units": {kind: len(units_of(kind, checkpoint.manifest.shape)) for kind in UNIT_NAMES},
        "kv_cache_bytes_per_token": kv_cache_bytes_per_token(
            checkpoint.shape, checkpoint.model.dtype.itemsize
        ),
        "training_flops": checkpoint.manifest.training_flops,
        "budget_missed": checkpoint.manifest.budget_missed,
    }
