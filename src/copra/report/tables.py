"""The tables of a run: accuracy against FLOPs, and accuracy right after surgery.

Several seeds of one recipe answer the same questions, so their answers are not independent:
pooling them into one sample would make every interval too narrow. In a row over all seeds

- the accuracy is the mean over seeds, and its interval is Wilson's for that mean and the number of
  questions of one seed. Averaging over seeds never adds variance, so this interval errs on the wide side;
- the spread over seeds is a column of its own, the standard deviation (with n - 1);
- the difference from the reference is that of the two means, and its bootstrap draws questions, each with
  its share of seeds that got it right: an interval over questions, for these seeds;
- the p-value is the median over the seeds' McNemar tests, seed i against the reference's seed i.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from copra.errors import CopraError
from copra.evaluation.statistics import mcnemar_exact, paired_bootstrap, wilson_interval
from copra.files import read_parquet
from copra.pruning.cut import NAMES
from copra.report.evaluations import Evaluation, check_same_questions, read_evaluation
from copra.report.formats import write_formats

if TYPE_CHECKING:
    import numpy
    import pandas

__all__ = ["accuracy_vs_flops", "before_fine_tuning", "pareto_front", "write_formats"]

ALL = "all"


def accuracy_vs_flops(
    evaluations: Mapping[str, Path], latency: Path | None, settings: Mapping[str, Any]
) -> "pandas.DataFrame":
    """One row a recipe (seed "all"), and one a seed below it where there are several.

    `evaluations` maps each node to the folder of its evaluation, `latency` is latency.parquet, and
    `settings` names the reference recipe and lists the recipes, each with its nodes, one a seed.
    Accuracies and differences are shares (0 to 1), FLOPs are means an answer, seconds are medians an
    answer at natural length; seconds_batched is at the largest batch measured. What there is nothing
    to compare or measure for is NaN. `pareto` compares recipes; a seed's row repeats its recipe's.

    Raises:
        CopraError: an evaluation is missing, was changed by hand, or holds other questions than the
            reference's.
    """
    import pandas

    nodes = {recipe["recipe"]: list(dict.fromkeys(recipe["nodes"])) for recipe in settings["recipes"]}
    name = settings.get("reference")
    if name is not None and name not in nodes:
        raise CopraError(f"reference: {name!r} is no recipe of this run. Recipes: {', '.join(nodes)}.")
    loaded = {node: _evaluation(evaluations, node) for nodes_ in nodes.values() for node in nodes_}
    reference = [loaded[node] for node in nodes.get(name, [])]
    times = read_parquet(latency) if latency is not None else None

    rows = []
    for recipe in settings["recipes"]:
        same = recipe["recipe"] == name
        described = {key: recipe[key] for key in ("recipe", "base", "pruning", "method", "order")}
        for seed, chosen, against in _groups(nodes[recipe["recipe"]], reference):
            members = [loaded[node] for node in chosen]
            rows.append(
                {**described, "seed": seed, "reference": same}
                | _accuracy(members, [] if same else against)
                | _cost(members, against)
                | _seconds(times, chosen)
            )
    table = pandas.DataFrame(rows)
    for column in (*NAMES, "parameters", "kv_cache_bytes_per_token", "checkpoint_bytes"):
        table[column] = table[column].round().astype("int64")
    recipes = table[table["seed"] == ALL]
    front = dict(zip(recipes["recipe"], pareto_front(recipes["accuracy"], recipes["flops"]), strict=True))
    return table.assign(pareto=table["recipe"].map(front).astype(bool))


def before_fine_tuning(evaluations: Mapping[str, Path], settings: Mapping[str, Any]) -> "pandas.DataFrame":
    """Each pruned node right after surgery, before any healing, against its unpruned parent.

    `settings["rows"]` lists recipe, pruning, parent_node and node. Units as in `accuracy_vs_flops`;
    differences and ratios are to the parent. `budget_missed` is that of the plan.

    Raises:
        CopraError: an evaluation is missing, was changed by hand, or holds other questions than its
            parent's.
    """
    import pandas

    rows = []
    for row in settings["rows"]:
        pruned, parent = (_evaluation(evaluations, row[key]) for key in ("node", "parent_node"))
        accuracy = _accuracy([pruned], [parent])
        del accuracy["deviation"]
        rows.append(
            {key: row[key] for key in ("recipe", "pruning", "parent_node", "node")}
            | {"seed": _seed(row["node"])}
            | {"parent_accuracy": parent.mean("correct")}
            | accuracy
            | {kind: pruned.metrics["units"][kind] for kind in NAMES}
            | {"budget_missed": pruned.metrics.get("budget_missed", math.nan)}
            | {"precision": pruned.metrics["precision"]}
            | {"flops": pruned.mean("flops"), "flops_ratio": pruned.mean("flops") / parent.mean("flops")}
            | {"attention_flops": pruned.mean("flops_attention")}
            | {"attention_flops_ratio": pruned.mean("flops_attention") / parent.mean("flops_attention")}
            | {"parameters": pruned.metrics["parameters"]}
            | {
                f"{name}_ratio": pruned.metrics[name] / parent.metrics[name]
                for name in ("parameters", "kv_cache_bytes_per_token")
            }
        )
    return pandas.DataFrame(rows)


def pareto_front(accuracy: Sequence[float], flops: Sequence[float]) -> "numpy.ndarray":
    """Which points no other beats: none is at least as accurate with at most the FLOPs, one strictly."""
    import numpy

    accuracy, flops = numpy.asarray(accuracy, float), numpy.asarray(flops, float)
    no_worse = (accuracy >= accuracy[:, None]) & (flops <= flops[:, None])
    better = (accuracy > accuracy[:, None]) | (flops < flops[:, None])
    return ~(no_worse & better).any(axis=1)


def _evaluation(evaluations: Mapping[str, Path], node: str) -> Evaluation:
    if node not in evaluations:
        raise CopraError(f"{node}: has no evaluation. Run snakemake, which makes what is missing.")
    return read_evaluation(evaluations[node])


def _groups(nodes: list[str], reference: list[Evaluation]):
    """(seed, nodes, the reference's evaluations) of each row of one recipe."""
    yield ALL, nodes, reference
    if len(nodes) > 1:
        for position, node in enumerate(nodes):
            partner = _partner(reference, position)
            yield _seed(node) or str(position), [node], [partner] if partner else []


def _seed(node: str) -> str:
    """The seed in a node's name, "llama@0+cot"; empty where it has none."""
    found = re.search(r"@([^+]+)", node)
    return found[1] if found else ""


def _partner(reference: list[Evaluation], position: int) -> Evaluation | None:
    """The reference's run that seed number `position` is compared with: its own, or the only one."""
    if len(reference) == 1:
        return reference[0]
    return reference[position] if position < len(reference) else None


def _accuracy(members: list[Evaluation], reference: list[Evaluation]) -> dict[str, float]:
    """Accuracy over one or several seeds, and its difference from the reference (see the module)."""
    import numpy

    for other in (*members[1:], *reference):
        check_same_questions(members[0], other)
    share = numpy.mean([member.correct for member in members], axis=0)
    low, high = wilson_interval(float(share.sum()), len(share))
    accuracies = [member.mean("correct") for member in members]
    values = {
        "n": len(share),
        "accuracy": float(share.mean()),
        "low": low,
        "high": high,
        "deviation": float(numpy.std(accuracies, ddof=1)) if len(members) > 1 else float("nan"),
    }
    compared = dict.fromkeys(("difference", "difference_low", "difference_high", "p_value"), float("nan"))
    if reference:
        base = numpy.mean([other.correct for other in reference], axis=0)
        pairs = [(member, _partner(reference, index)) for index, member in enumerate(members)]
        p_values = [mcnemar_exact(member.correct, other.correct) for member, other in pairs if other]
        interval = paired_bootstrap(share, base)
        compared = {
            "difference": float(share.mean() - base.mean()),
            "difference_low": interval[0],
            "difference_high": interval[1],
            "p_value": float(numpy.median(p_values)),
        }
    return values | compared


def _cost(members: list[Evaluation], reference: list[Evaluation]) -> dict[str, float]:
    """FLOPs, tokens and sizes: means over the questions, then over the seeds."""
    import numpy

    def mean(column: str, over: list[Evaluation] = members) -> float:
        return float(numpy.mean([one.mean(column) for one in over])) if over else float("nan")

    def once(key: str) -> float:
        return float(numpy.mean([one.metrics[key] for one in members]))

    units = [one.metrics["units"] for one in members]
    return {
        "precision": ", ".join(sorted({one.metrics["precision"] for one in members})),
        **{kind: float(numpy.mean([each[kind] for each in units])) for kind in NAMES},
        "flops": mean("flops"),
        "flops_ratio": mean("flops") / mean("flops", reference),
        "attention_flops": mean("flops_attention"),
        "ffn_flops": mean("flops_ffn"),
        "head_flops": mean("flops_head"),
        "method_flops": mean("flops_method"),
        "cached_prompt_flops": mean("flops_cached_prompt"),
        "latent_flops": mean("flops_latent"),
        "generated_tokens": mean("n_generated"),
        "latents": mean("n_latent"),
        "depth": mean("depth"),
        "parameters": once("parameters"),
        "kv_cache_bytes_per_token": once("kv_cache_bytes_per_token"),
        "checkpoint_bytes": once("checkpoint_bytes"),
        "training_flops": once("training_flops"),
    }


def _seconds(times: "pandas.DataFrame | None", nodes: list[str]) -> dict[str, Any]:
    """Latency at batch 1 and at the largest batch, natural length, with the device that it holds for."""
    values = {"seconds_batch_1": float("nan"), "seconds_batched": float("nan"), "device": None}
    if times is None:
        return values
    rows = times[times["node"].isin(nodes) & (times["length"] == "natural")]
    single, batched = rows[rows["batch"] == 1], rows[rows["batch"] > 1]
    batched = batched[batched["batch"] == batched["batch"].max()]
    return {
        "seconds_batch_1": float(single["seconds_per_answer"].mean()),
        "seconds_batched": float(batched["seconds_per_answer"].mean()),
        "device": ", ".join(sorted(set(rows["device"]))) or None,
    }
