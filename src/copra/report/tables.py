"""The tables of a run: accuracy against FLOPs, on each task, and right after surgery.

In a recipe's row over all seeds

- the accuracy is the mean over seeds, and its interval is Wilson's for that mean and the number of questions
  of one seed: an interval over questions, for these checkpoints. Several seeds answer the same questions, so
  pooling them into one sample would make it too narrow. Averaging over seeds never adds variance, so the
  interval is rather too wide;
- the spread over seeds has its own column, the standard deviation (with n - 1);
- the difference from the reference is that of the two means, with an interval and a p-value for each of the
  two questions of `copra.report.comparisons`: these checkpoints, and this recipe. With one seed the second
  has no answer: NaN in data, "one seed" for people.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pandas

from copra.report.comparisons import (
    ALL,
    accuracy_over_seeds,
    compare,
    correct_by_seed,
    seed_of,
    with_holm,
    without_seed,
)
from copra.report.evaluations import Evaluation, evaluation_of
from copra.report.formats import write_formats
from copra.report.sizes import pruned_units
from copra.report.starts import start_columns
from copra.schema.units import UNIT_NAMES
from copra.utils.errors import CopraError
from copra.utils.files import read_parquet

__all__ = ["accuracy_by_task", "accuracy_vs_flops", "before_fine_tuning", "pareto_front", "write_formats"]

PROMPTS = {"": "whole", "cached_prompt_": "cached"}
"""Prefixes of columns, and the value of `prompt` in latency.parquet that each comes from."""
RATIOS = ("flops", "flops_per_token", "attention_flops")
"""Columns that the table before fine-tuning also holds as a ratio to the parent's."""


def accuracy_vs_flops(
    evaluations: Mapping[str, Path],
    latency: Path | None,
    settings: Mapping[str, Any],
    healing: Mapping[str, int] | None = None,
) -> pandas.DataFrame:
    """Return one row per recipe (seed "all"), and one per seed below it if there are several.

    `evaluations` maps each node to the folder of its evaluation, `latency` is latency.parquet, and `settings`
    names the reference recipe, the primary one if there is one, and lists the recipes, each with its nodes,
    one per seed. Accuracies and differences are shares (0 to 1), FLOPs are means per answer, seconds are
    medians per answer at natural length; seconds_batched is at the largest batch measured. `cached_prompt_*`
    columns hold values with the common prefix of all prompts cached; the other columns include reading it for
    each answer, so each latency has FLOPs of its kind. Values without a comparison or a measurement are NaN.
    `pareto` compares recipes; a seed's row repeats its recipe's. `share_above_90` is the share of seeds whose
    accuracy is above 0.9. If the recipes name the models that their last training steps started from, there
    are the columns of `copra.report.starts.start_columns`, by the `healing` steps of those models.
    `kind` is the kind of the method, `pruned` lists the kinds of unit of which fewer are left than in the
    base, `chance` is the accuracy of guessing.

    Raises:
        CopraError: an evaluation is missing, was changed by hand, or holds other questions than the
            reference's.
    """
    nodes = {recipe["recipe"]: list(dict.fromkeys(recipe["nodes"])) for recipe in settings["recipes"]}
    name, primary = settings.get("reference"), settings.get("primary")
    if name is not None and name not in nodes:
        raise CopraError(f"reference: {name!r} is no recipe of this run. Recipes: {', '.join(nodes)}.")
    answered = [node for nodes_ in nodes.values() for node in nodes_]
    for recipe in settings["recipes"]:
        if (start := recipe.get("start")) and start["answers"]:
            answered += start["nodes"]
    loaded = {node: evaluation_of(evaluations, node) for node in answered}
    times = read_parquet(latency) if latency is not None else None

    rows = []
    for recipe in settings["recipes"]:
        described = {key: recipe[key] for key in ("recipe", "base", "pruning", "method", "order", "kind")}
        described |= {"chance": recipe.get("chance", math.nan)}
        flags = {"reference": recipe["recipe"] == name, "primary": recipe["recipe"] == primary}
        for seed, chosen, others in _groups(nodes[recipe["recipe"]], nodes.get(name, [])):
            members = [loaded[node] for node in chosen]
            against = [loaded[node] for node in others]
            compared = ((), ()) if flags["reference"] else (others, against)
            rows.append(
                {**described, "seed": seed, **flags}
                | accuracy_over_seeds(correct_by_seed(members))
                | {"share_above_90": float((correct_by_seed(members).mean(axis=1) > 0.9).mean())}
                | compare(chosen, members, *compared, anew=seed == ALL)
                | _cost(members, against)
                | _seconds(times, chosen)
                | start_columns(recipe, chosen, loaded, healing or {})
            )
    table = with_holm(_in_whole_numbers(pandas.DataFrame(rows)), primary)
    table = table.assign(pruned=pruned_units(table))
    recipes = table[table["seed"] == ALL]
    front = dict(zip(recipes["recipe"], pareto_front(recipes["accuracy"], recipes["flops"]), strict=True))
    return table.assign(pareto=table["recipe"].map(front).astype(bool))


def before_fine_tuning(evaluations: Mapping[str, Path], settings: Mapping[str, Any]) -> pandas.DataFrame:
    """Return a comparison of each pruned recipe right after surgery, before fine-tuning, with its parent.

    One row per recipe (seed "all"), and one per seed below it if there are several. `settings["pruned"]`
    lists recipe, pruning, parent_node and node, one line per seed; a row over several seeds names node and
    parent without seeds. Units are as in `accuracy_vs_flops`; differences and ratios are to the parent.
    `budget_missed` is that of the plan.

    A pruned model may write up to the length limit, so FLOPs per answer reflect more than the surgery:
    `flops_per_token` are those of the passes that write one token, and `length_limit` is the share of answers
    that were truncated.

    Raises:
        CopraError: an evaluation is missing, was changed by hand, or holds other questions than its
            parent's.
    """
    pairs: dict[tuple[str, str], dict[str, str]] = {}
    for row in settings["pruned"]:
        pairs.setdefault((row["recipe"], row["pruning"]), {})[row["node"]] = row["parent_node"]
    loaded = {node: evaluation_of(evaluations, node) for row in settings["pruned"] for node in _both(row)}
    rows = []
    for (recipe, pruning), parents in pairs.items():
        for seed, chosen, others in _groups(list(parents), list(dict.fromkeys(parents.values()))):
            members, before = ([loaded[node] for node in nodes] for nodes in (chosen, others))
            cost, whole = _cost(members, before), _cost(before, before)
            one = len(chosen) == 1
            rows.append(
                {"recipe": recipe, "pruning": pruning}
                | {"parent_node": others[0] if one else without_seed(others[0])}
                | {"node": chosen[0] if one else recipe, "seed": seed}
                | {"parent_accuracy": float(correct_by_seed(before).mean())}
                | accuracy_over_seeds(correct_by_seed(members))
                | compare(chosen, members, others, before, anew=seed == ALL)
                | {kind: cost[kind] for kind in UNIT_NAMES}
                | {"budget_missed": _mean([each.metrics.get("budget_missed") for each in members])}
                | {"precision": cost["precision"]}
                | {name: value for key in RATIOS for name, value in _with_ratio(key, cost, whole).items()}
                | {"parent_length_limit": whole["length_limit"], "length_limit": cost["length_limit"]}
                | {"parameters": cost["parameters"]}
                | {
                    f"{key}_ratio": cost[key] / whole[key]
                    for key in ("parameters", "kv_cache_bytes_per_token")
                }
            )
    return with_holm(_in_whole_numbers(pandas.DataFrame(rows)))


def accuracy_by_task(evaluations: Mapping[str, Path], settings: Mapping[str, Any]) -> pandas.DataFrame:
    """Return one row per task and recipe (seed "all"), and one per seed below it if there are several.

    `evaluations` maps the name of each evaluation (NODE on its own task, TASK/NODE on another) to its folder.
    `settings["asked"]` lists tasks with a recipe and its evaluations on the task, one per seed, and
    `settings["reference"]` names the recipe to whose FLOPs on the same task `flops_ratio` is. Units are as in
    `accuracy_vs_flops`. `seen_in_training` is the number of questions that were left out because the model
    was trained on them.

    Raises:
        CopraError: an evaluation is missing or was changed by hand.
    """
    names = {
        (each["task"], each["recipe"]): list(dict.fromkeys(each["evaluations"])) for each in settings["asked"]
    }
    loaded = {name: evaluation_of(evaluations, name) for group in names.values() for name in group}
    rows = []
    for asked in settings["asked"]:
        task, recipe = asked["task"], asked["recipe"]
        described = {key: asked[key] for key in ("recipe", "base", "pruning", "method", "task")}
        against = names.get((task, settings.get("reference")), [])
        for seed, chosen, others in _groups(names[task, recipe], against):
            members = [loaded[name] for name in chosen]
            cost = _cost(members, [loaded[name] for name in others])
            rows.append(
                {**described, "seed": seed}
                | accuracy_over_seeds(correct_by_seed(members))
                | {key: cost[key] for key in ("flops", "flops_ratio", "length_limit")}
                | {"seen_in_training": members[0].metrics["seen_in_training"]}
            )
    return pandas.DataFrame(rows)


def pareto_front(accuracy: Sequence[float], flops: Sequence[float]) -> "numpy.ndarray":
    """Return a mask of the Pareto front: no other point is at least as good in both, and better in one."""
    gain, cost = numpy.asarray(accuracy, float), numpy.asarray(flops, float)
    no_worse = (gain >= gain[:, None]) & (cost <= cost[:, None])
    better = (gain > gain[:, None]) | (cost < cost[:, None])
    return ~numpy.any(no_worse & better, axis=1)


def _in_whole_numbers(table: pandas.DataFrame) -> pandas.DataFrame:
    """Return the table with sizes rounded: they are means over seeds, whose cuts may differ."""
    sizes = (*UNIT_NAMES, "parameters", "kv_cache_bytes_per_token", "checkpoint_bytes")
    return table.assign(**{name: table[name].round().astype("int64") for name in sizes if name in table})


def _both(row: Mapping[str, str]) -> tuple[str, str]:
    return row["node"], row["parent_node"]


def _groups(nodes: list[str], reference: list[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield (seed, nodes, the reference's nodes) of each row of one recipe."""
    yield ALL, nodes, reference
    if len(nodes) > 1:
        for position, node in enumerate(nodes):
            partner = _partner(reference, position)
            yield seed_of(node) or str(position), [node], [partner] if partner else []


def _partner(reference: list[str], position: int) -> str | None:
    """Return the reference's node that seed number `position` is compared with: its own, or the only one."""
    if len(reference) == 1:
        return reference[0]
    return reference[position] if position < len(reference) else None


def _cost(members: list[Evaluation], reference: list[Evaluation]) -> dict[str, Any]:
    """Return FLOPs, tokens and sizes: means over the questions, then over the seeds."""
    mean = partial(_mean_of, members)

    def once(key: str) -> float:
        return _mean([one.metrics[key] for one in members])

    return {
        "precision": ", ".join(sorted({one.metrics["precision"] for one in members})),
        "answer_rule": ", ".join(sorted({one.metrics["answer_rule"] for one in members})),
        "max_new_tokens": max(one.metrics["max_new_tokens"] for one in members),
        **{kind: _mean([one.metrics["units"][kind] for one in members]) for kind in UNIT_NAMES},
        "flops": mean("flops"),
        "flops_ratio": mean("flops") / _mean_of(reference, "flops"),
        "attention_flops": mean("flops_attention"),
        "ffn_flops": mean("flops_ffn"),
        "head_flops": mean("flops_head"),
        "method_flops": mean("flops_method"),
        "cached_prompt_flops": mean("flops_cached_prompt"),
        "latent_flops": mean("flops_latent"),
        "flops_per_token": _mean([one.flops_per_token for one in members]),
        "generated_tokens": mean("n_generated"),
        "length_limit": mean("hit_length_limit"),
        "latents": mean("n_latent"),
        "depth": mean("depth"),
        "parameters": once("parameters"),
        "kv_cache_bytes_per_token": once("kv_cache_bytes_per_token"),
        "checkpoint_bytes": once("checkpoint_bytes"),
        "training_flops": once("training_flops"),
    }


def _with_ratio(key: str, cost: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, float]:
    return {key: cost[key], f"{key}_ratio": cost[key] / whole[key]}


def _mean_of(evaluations: list[Evaluation], column: str) -> float:
    return _mean([one.mean(column) for one in evaluations])


def _mean(values: Sequence[float | None]) -> float:
    """Return the mean, or NaN if there are no values or one of them is missing."""
    numbers = [math.nan if value is None else float(value) for value in values]
    return math.fsum(numbers) / len(numbers) if numbers else math.nan


def _seconds(times: pandas.DataFrame | None, nodes: list[str]) -> dict[str, Any]:
    """Return the device and the latency at natural length, at batch 1 and at the largest batch.

    Each is given with the prompt read anew for each answer, and with the common prefix of all prompts read
    before; the two are equal if there is no such prefix.
    """
    values = {f"{kind}seconds_{batch}": math.nan for kind in PROMPTS for batch in ("batch_1", "batched")}
    if times is None:
        return {**values, "device": None}
    rows = times[times["node"].isin(nodes) & (times["length"] == "natural")]
    for kind, prompt in PROMPTS.items():
        asked = rows[rows["prompt"] == prompt] if prompt in set(rows["prompt"]) else rows
        single, batched = asked[asked["batch"] == 1], asked[asked["batch"] > 1]
        batched = batched[batched["batch"] == batched["batch"].max()]
        values[f"{kind}seconds_batch_1"] = float(single["seconds_per_answer"].mean())
        values[f"{kind}seconds_batched"] = float(batched["seconds_per_answer"].mean())
    return {**values, "device": ", ".join(sorted(set(rows["device"]))) or None}
