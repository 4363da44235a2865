"""Reading the evaluation of one model node, and checking that metrics and predictions agree."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas

from copra.utils.errors import CopraError
from copra.utils.files import METRICS, PREDICTIONS, read_json, read_parquet

# The place in metrics.json of the mean of each column of predictions.parquet.
MEANS = {
    "flops": ("flops", "total"),
    "flops_prefill": ("flops", "prefill"),
    "flops_latent": ("flops", "latent"),
    "flops_decode": ("flops", "decode"),
    "flops_attention": ("flops", "attention"),
    "flops_ffn": ("flops", "ffn"),
    "flops_head": ("flops", "head"),
    "flops_method": ("flops", "method"),
    "flops_cached_prompt": ("flops", "cached_prompt"),
    "n_prompt": ("tokens", "prompt"),
    "n_latent": ("tokens", "latent"),
    "n_marker": ("tokens", "marker"),
    "n_chain": ("tokens", "chain"),
    "n_answer": ("tokens", "answer"),
    "n_generated": ("tokens", "generated"),
    "depth": ("depth",),
}
ONCE = (
    "precision",
    "answer_rule",
    "max_new_tokens",
    "parameters",
    "checkpoint_bytes",
    "kv_cache_bytes_per_token",
    "training_flops",
    "seen_in_training",
)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One evaluated node: its metrics and its predictions, one row per question."""

    folder: Path
    metrics: dict[str, Any]
    predictions: pandas.DataFrame
    """Indexed by question id and occurrence (a question may occur twice), sorted."""

    @property
    def correct(self) -> pandas.Series:
        """Right (1.0) or wrong (0.0), one row per question."""
        return self.predictions["correct"].astype(float)

    def mean(self, column: str) -> float:
        """Return the mean per answer of a column of the predictions."""
        return float(self.predictions[column].mean())

    @property
    def flops_per_token(self) -> float:
        """FLOPs per pass that reads a generated token and predicts the next; NaN if answers have one token.

        They depend on the model, and hardly on the prompt and the length of the answer.
        """
        passes = int((self.predictions["n_generated"] - 1).sum())
        return float(self.predictions["flops_decode"].sum()) / passes if passes > 0 else math.nan


def read_evaluation(folder: Path) -> Evaluation:
    """Read `metrics.json` and `predictions.parquet` of one node.

    Raises:
        CopraError: a file is missing or truncated, or the metrics are not those of the predictions.
    """
    folder = Path(folder)
    metrics = read_json(folder / METRICS)
    predictions = read_parquet(folder / PREDICTIONS)
    missing = [name for name in ("id", "correct", "hit_length_limit", *MEANS) if name not in predictions]
    missing += [name for name in (*ONCE, "units") if name not in metrics]
    if missing or predictions.empty:
        problem = f"lacks {', '.join(missing)}" if missing else "has no questions"
        raise CopraError(f"{folder}: the evaluation {problem}. Delete the folder and run snakemake again.")
    predictions = predictions.assign(occurrence=predictions.groupby("id").cumcount())
    evaluation = Evaluation(folder, metrics, predictions.set_index(["id", "occurrence"]).sort_index())
    _check(evaluation)
    return evaluation


def evaluation_of(evaluations: Mapping[str, Path], node: str) -> Evaluation:
    """Read the evaluation of a node; `evaluations` maps nodes to folders.

    Raises:
        CopraError: there is none, or it cannot be used, see `read_evaluation`.
    """
    if node not in evaluations:
        raise CopraError(f"{node}: has no evaluation. Run snakemake, which makes what is missing.")
    return read_evaluation(evaluations[node])


def check_same_questions(first: Evaluation, second: Evaluation) -> None:
    """Check that two evaluations hold the same questions.

    Raises:
        CopraError: they do not; the message names both folders.
    """
    if not first.predictions.index.equals(second.predictions.index):
        raise CopraError(
            f"{first.folder} and {second.folder}: evaluated on different questions, so they cannot be "
            "compared in pairs. Evaluate both on the same split, all of it."
        )


def _check(evaluation: Evaluation) -> None:
    expected = {
        ("n",): len(evaluation.predictions),
        ("correct",): int(evaluation.correct.sum()),
        ("accuracy",): evaluation.mean("correct"),
        ("hit_length_limit",): int(evaluation.predictions["hit_length_limit"].sum()),
    } | {place: evaluation.mean(column) for column, place in MEANS.items()}
    for place, value in expected.items():
        stated: Any = evaluation.metrics
        for key in place:
            stated = stated.get(key) if isinstance(stated, dict) else None
        if not isinstance(stated, int | float) or not math.isclose(stated, value, rel_tol=1e-6):
            raise CopraError(
                f"{evaluation.folder}: metrics.json says {'.'.join(place)} = {stated}, but "
                f"predictions.parquet gives {value}. One of the two was changed by hand: delete the folder "
                "and run snakemake again."
            )
