"""copra evaluate: answer the questions of a split; write all answers and the metrics."""

from argparse import ArgumentParser, Namespace
from typing import Any

from copra.commands.answering import CompiledAnswering, add_answering, answerer, load_to_answer
from copra.commands.common import folder, rows_of, settings_of
from copra.commands.resources import add_processes
from copra.cost.flops import FLOP_GROUPS, PHASES
from copra.cost.parameters import answering_bytes, answering_parameters, kv_cache_bytes_per_token
from copra.evaluation.accuracy import accuracy_of
from copra.evaluation.answer_cache import AnswerCache
from copra.schema.units import UNIT_NAMES, units_of
from copra.utils import processes
from copra.utils.errors import CopraError
from copra.utils.files import METRICS, PREDICTIONS, write_json, write_parquet
from copra.utils.locking import hold


class EvaluateSettings(CompiledAnswering):
    task: str
    """Name of the task."""


def arguments(parser: ArgumentParser) -> None:
    add_answering(parser, "checkpoint to evaluate", "folder for answers of unfinished evaluations")
    add_processes(parser)
    parser.add_argument(
        "--output", type=folder, required=True, help=f"folder to write {PREDICTIONS} and {METRICS} to"
    )


def run(options: Namespace) -> None:
    settings = settings_of(options, EvaluateSettings)
    checkpoint, origin = load_to_answer(options, settings.precision, settings.split)
    if checkpoint.decoding is None:
        raise CopraError(f"{options.model}: this model was never trained to answer; evaluate one that was.")
    rows = rows_of(options.data, settings.split, settings.limit)
    questions = options.data / f"{settings.split}.parquet"
    answer_cache = AnswerCache(options.state, checkpoint, settings.canonical(), questions, len(rows))
    with hold(answer_cache.state, settings.node, options.output / METRICS) as made:
        if made:
            return
        answer = answerer(checkpoint, settings, checkpoint.decoding, rows, answer_cache)
        table = answer(checkpoint.decoding)
        if processes.rank():
            return
        write_parquet(options.output / PREDICTIONS, table)
        metrics = _metrics(settings, checkpoint, table) | origin
        write_json(options.output / METRICS, metrics)
        answer_cache.delete()


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
