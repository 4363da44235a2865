"""copra evaluate: answer the questions of a split; write all answers and the metrics."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from copra.commands.common import (
    Answering,
    add_processes,
    add_settings,
    add_threads,
    folder,
    made_by,
    rows_of,
    settings_of,
    summary_of,
    use_threads,
)
from copra.utils import processes
from copra.utils.errors import CopraError
from copra.utils.files import MANIFEST, METRICS, PREDICTIONS, write_json, write_parquet
from copra.utils.locking import hold


class EvaluateSettings(Answering):
    task: str
    """Name of the task."""
    compile: bool = False
    """If true, the forward pass over one token is compiled."""


def arguments(parser: ArgumentParser) -> None:
    add_settings(parser)
    add_threads(parser)
    add_processes(parser)
    parser.add_argument("--model", type=folder, required=True, help="checkpoint to evaluate")
    parser.add_argument("--data", type=folder, required=True, help="folder of a prepared task")
    parser.add_argument(
        "--state", type=Path, required=True, help="folder for answers of unfinished evaluations"
    )
    parser.add_argument(
        "--output", type=folder, required=True, help=f"folder to write {PREDICTIONS} and {METRICS} to"
    )


def run(options: Namespace) -> None:
    settings = settings_of(options, EvaluateSettings)
    use_threads(options, settings.precision)
    from copra.evaluation.accuracy import compiled_for, predictions
    from copra.evaluation.kept import AnswerCache
    from copra.models.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(options.model, settings.precision, to_answer=True)
    origin = made_by(options, options.model / MANIFEST, summary_of(options.data, settings.split))
    if checkpoint.decoding is None:
        raise CopraError(f"{options.model}: this model was never trained to answer; evaluate one that was.")
    rows = rows_of(options.data, settings.split, settings.limit)
    questions = options.data / f"{settings.split}.parquet"
    kept = AnswerCache(options.state, checkpoint, settings.canonical(), questions, len(rows))
    with hold(kept.state, settings.node, options.output / METRICS) as made:
        if made:
            return
        compiled = None
        if settings.compile:
            compiled = compiled_for(
                checkpoint, checkpoint.decoding, rows, settings.max_new_tokens, settings.batch_size
            )
        table = predictions(
            checkpoint,
            checkpoint.decoding,
            rows,
            settings.max_new_tokens,
            settings.answers,
            settings.batch_size,
            kept.keep,
            compiled,
        )
        if processes.rank():
            return
        write_parquet(options.output / PREDICTIONS, table)
        metrics = _metrics(settings, checkpoint, table) | origin
        write_json(options.output / METRICS, metrics)
        kept.delete()


def _metrics(settings: EvaluateSettings, checkpoint: Any, table: Any) -> dict[str, Any]:
    from copra.cost.flops import FLOP_GROUPS, PHASES
    from copra.cost.parameters import answering_bytes, answering_parameters, kv_cache_bytes_per_token
    from copra.evaluation.accuracy import accuracy_of
    from copra.schema.units import UNIT_NAMES, units_of

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
        "units": {kind: len(units_of(kind, checkpoint.shape)) for kind in UNIT_NAMES},
        "kv_cache_bytes_per_token": kv_cache_bytes_per_token(
            checkpoint.shape, checkpoint.model.dtype.itemsize
        ),
        "training_flops": checkpoint.manifest["training_flops"],
        "budget_missed": checkpoint.manifest.get("budget_missed"),
    }
