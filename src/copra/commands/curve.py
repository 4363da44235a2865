"""copra curve: measure accuracy and loss of a model as units are removed, without fine-tuning."""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
from tqdm import tqdm

from copra.commands.answering import Answering, add_answering, load_to_answer
from copra.commands.common import rows_of, settings_of
from copra.cost.flops import of_typical_answer
from copra.cost.parameters import kv_cache_bytes_per_token
from copra.evaluation.statistics import proportion
from copra.models.checkpoint import Checkpoint, refuse_quantized
from copra.models.manifest import Provenance
from copra.pruning.cut import KeptUnits
from copra.pruning.plan import make_plan
from copra.pruning.scoring.ablation import Ablation, Questions
from copra.pruning.scoring.calibration import calibration_batches
from copra.pruning.surgery import cut_model
from copra.schema.curve import Curve, Line
from copra.schema.scoring import Objective
from copra.schema.shape import ModelShape
from copra.schema.units import units_of
from copra.tasks.task import Row
from copra.utils.errors import CopraError
from copra.utils.files import (
    digest,
    file_sha256,
    read_sealed_parquet,
    summary_beside,
    write_parquet,
)
from copra.utils.locking import hold


class CurveSettings(Answering):
    name: str
    """Name of the curve."""
    curve: Curve
    """Resolved settings of the curve."""
    loss_batch_size: int = 16
    """Number of rows per forward pass for the loss."""


def arguments(parser: ArgumentParser) -> None:
    add_answering(parser, "checkpoint to prune in memory", "folder for measurements of unfinished jobs")
    parser.add_argument("--scores", type=Path, required=True, help="folder of the checkpoint's scores")
    parser.add_argument(
        "--output", type=Path, required=True, help="Parquet table to write, one row per point"
    )


def run(options: Namespace) -> None:
    settings = settings_of(options, CurveSettings)
    refuse_quantized(options.model)
    scores = [summary_beside(options.scores / table) for table in settings.curve.tables()]
    checkpoint, origin = load_to_answer(options, settings.precision, settings.split, *scores)
    points = _points(settings, checkpoint, options.scores)
    rows = rows_of(options.data, settings.split, settings.limit)
    # Searches and curves share measurements and may run concurrently; only the same job may not run twice.
    cuts = [[point.words, point.cut.to_json()] for point in points]
    data = file_sha256(options.data / f"{settings.split}.parquet")
    job = digest(["curve", settings.canonical(), checkpoint.identity, data, cuts])[:16]
    with hold(options.state / job, settings.node, options.output) as made:
        if not made:
            table = _table(settings, checkpoint, points, rows, options.state)
            write_parquet(options.output, table, origin)


def _table(
    settings: CurveSettings, checkpoint: Checkpoint, points: "list[Point]", rows: list[Row], state: Path
) -> pandas.DataFrame:
    """Measure all points; return the table of a curve, one row per point."""
    objective = answering_objective(checkpoint.manifest)
    ablation = _ablation(settings, checkpoint, rows, objective, state)
    known = {"curve": settings.name, "recipe": settings.curve.model, "node": settings.node}
    seed = checkpoint.manifest.seed
    known |= {"seed": "" if seed is None else str(seed), "unit": settings.curve.unit}
    table = [
        known
        | {"metric": point.line.metric, "objective": point.line.objective, "random_seed": point.line.seed}
        | {"removed": point.removed, "left": point.left}
        | {"precision": checkpoint.precision, "n": len(rows)}
        | _accuracy(ablation, point.cut)
        | {"loss": ablation.loss(point.cut), "loss_on": objective, **point.costs, "cut": point.words}
        for point in tqdm(points, unit="point", mininterval=5, dynamic_ncols=True)
    ]
    return pandas.DataFrame(table).astype({"random_seed": "float64"})


@dataclass(frozen=True)
class Point:
    """One point of a line: units removed and left, the cut, and its costs relative to the whole model's."""

    line: Line
    removed: int
    left: int
    cut: KeptUnits
    words: str
    costs: dict[str, float]


def answering_objective(manifest: Provenance) -> Objective:
    """Return the objective whose sequences are closest to those of a checkpoint when it answers.

    "cot" (steps and answer) if it writes its steps or was never trained to answer; "answer" (given the steps)
    if latents are not fed one by one; otherwise "latent", the answer after its own latents, of which there
    may be none.
    """
    if manifest.decoding is None or manifest.method in ("cot", "scratchpad", "few_shot"):
        return "cot"
    decoding = manifest.decoding
    return "answer" if decoding.emulated or decoding.jacobi_iterations else "latent"


def in_words(removed: list[dict[str, Any]]) -> str:
    """Return text for the removed units: layers, layer:index of heads and groups, or neurons per layer."""
    words = []
    for gone in removed:
        if gone["unit"] == "layers":
            words.append(str(gone["layer"]))
        elif gone["unit"] == "neurons":
            words.append(f"{gone['count']} of layer {gone['layer']}")
        else:
            words += [f"{gone['layer']}:{index}" for index in gone["indices"]]
    return ", ".join(words) or "nothing"


def _points(settings: CurveSettings, checkpoint: Checkpoint, scores: Path) -> list[Point]:
    """Return all points; each line begins with the whole model.

    Raises:
        CopraError: some points cannot be reached; the message has one line with the reason per point.
    """
    curve, shape = settings.curve, checkpoint.shape
    typical = checkpoint.manifest.typical_answer
    costs: dict[KeptUnits, dict[str, float]] = {}

    def flops_of(left: ModelShape) -> int:
        return of_typical_answer(left, typical).total

    def point(line: Line, number: int, cut: KeptUnits, removed: list[dict[str, Any]]) -> Point:
        if cut not in costs:
            costs[cut] = _costs(checkpoint, cut)
        return Point(line, number, total - number, cut, in_words(removed), costs[cut])

    total, points, problems = len(units_of(curve.unit, shape)), [], []
    for line in curve.lines():
        table = read_sealed_parquet(scores / line.table) if line.table else None
        points.append(point(line, 0, KeptUnits.whole(shape), []))
        for number in sorted(curve.remove):
            try:
                plan = make_plan(curve.step(line, number), shape, shape, table, flops_of, line.seed)
                points.append(point(line, number, KeptUnits.from_json(plan["kept"]), plan["removed"]))
            except CopraError as error:
                problems.append(f"curves.{settings.name}, {number} removed by {line.metric}: {error}")
    if problems:
        lines = "\n".join(dict.fromkeys(problems))
        raise CopraError(f"{lines}\nChange remove or metrics of this curve. Nothing has been measured yet.")
    return points


def _costs(checkpoint: Checkpoint, cut: KeptUnits) -> dict[str, float]:
    """Return the ratios of FLOPs per typical answer, parameters and KV cache after a cut to those before.

    Raises:
        CopraError: no model class can represent the result.
    """
    manifest, left = checkpoint.manifest, cut.shape(checkpoint.shape)
    flops, whole = (of_typical_answer(shape, manifest.typical_answer) for shape in (left, checkpoint.shape))
    parameters = sum(each.numel() for each in cut_model(checkpoint.model, cut).parameters())
    return {
        "flops_ratio": flops.total / whole.total,
        "attention_flops_ratio": flops.of("attention") / whole.of("attention"),
        "parameters_ratio": parameters / manifest.parameters,
        "kv_cache_ratio": kv_cache_bytes_per_token(left) / kv_cache_bytes_per_token(checkpoint.shape),
    }


def _ablation(
    settings: CurveSettings, checkpoint: Checkpoint, rows: list[Row], objective: Objective, state: Path
) -> Ablation:
    """Return the ablation that measures points, each cut once."""
    batches = calibration_batches(
        checkpoint.tokenizer, rows, objective, settings.loss_batch_size, checkpoint.decoding
    )
    questions = Questions(rows, settings.max_new_tokens, settings.answers, settings.batch_size)
    return Ablation(checkpoint, state, batches=list(batches), questions=questions, code=settings.code)


def _accuracy(ablation: Ablation, cut: KeptUnits) -> dict[str, float]:
    """Return accuracy with its 95% Wilson interval; NaN if the model cannot answer."""
    if ablation.decoding is None:
        return dict.fromkeys(("correct", "accuracy", "low", "high"), float("nan"))
    return proportion(*ablation.answers(cut))
