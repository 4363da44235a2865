"""Model cards: what a published checkpoint is, how accurate it is beside its controls, and how to run it."""

import re
from collections.abc import Sequence
from typing import Any

import pandas
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from copra.models.manifest import Manifest
from copra.models.portable import answers_plainly
from copra.report.comparisons import ALL, without_seed
from copra.report.formats import with_interval
from copra.report.sizes import left_labels, pruned_units

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
TAGS = ["copra", "pruning", "latent-reasoning"]
RUN = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{repo}"{trust})
tokenizer = AutoTokenizer.from_pretrained("{repo}"{trust})
prompt = tokenizer("{question}\\n", return_tensors="pt")["input_ids"]
answer = model.generate(prompt, max_new_tokens=256, do_sample=False)
print(tokenizer.decode(answer[0, prompt.shape[1] :], skip_special_tokens=True))"""


def model_card(
    manifest: Manifest,
    repo: str,
    *,
    task: str | None = None,
    metrics: dict[str, Any] | None = None,
    table: pandas.DataFrame | None = None,
    question: str = "A question",
    license: str | None = None,
    commands: Sequence[str] = (),
) -> ModelCard:
    """Return the card of a checkpoint that is published as `repo`, a name on the Hub or of a folder.

    `metrics` are those of its evaluation on `task`, and `table` is `accuracy_vs_flops` of its experiment,
    from which its recipe and the recipes with as much left of the same base are shown. `question` is one
    that it can be asked, `license` the identifier of a license, `commands` make the model again.
    """
    name = repo.rsplit("/", 1)[-1]
    path = manifest.base.get("path")
    # A local path says nothing to others, and is nobody's business.
    base = path if path and HUB_ID.fullmatch(path) else None
    made_of = base or ("a model from scratch" if path is None else "a local model")
    data = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=TAGS,
        base_model=base,
        model_name=name,
        eval_results=_results(task, metrics) if task and metrics else None,
    )
    steps = " > ".join(str(step["step"]) for step in manifest.lineage) or "no step"
    parts = [
        f"# {name}",
        f"`{manifest.node}`: {made_of}, then {steps}. It has {manifest.parameters:,} parameters.",
        _answers(manifest),
    ]
    if table is not None:
        parts += _beside_controls(manifest.node, table)
    elif metrics:
        parts += ["## Accuracy", _sentence(task, metrics)]
    trust = "" if answers_plainly(manifest.decoding) else ", trust_remote_code=True"
    parts += ["## Run it", f"```python\n{RUN.format(repo=repo, trust=trust, question=question)}\n```"]
    if commands:
        lines = "\n".join(commands)
        parts += ["## Make it again", f"```sh\n{lines}\n```"]
    versions = ", ".join(f"{package} {version}" for package, version in manifest.versions.items())
    parts.append(f"`copra.json` has its whole lineage: settings, seeds and checksums. Made with {versions}.")
    if license is None and path is not None:
        parts.append("The license of the base model applies.")
    return ModelCard("---\n" + data.to_yaml() + "\n---\n\n" + "\n\n".join(parts) + "\n")


def _results(task: str, metrics: dict[str, Any]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=task,
            dataset_name=task,
            dataset_split=str(metrics["split"]),
            metric_type="accuracy",
            metric_name=f"accuracy on {metrics['n']} questions, greedy",
            metric_value=round(float(metrics["accuracy"]), 4),
        )
    ]


def _answers(manifest: Manifest) -> str:
    """Return a sentence on how the model answers."""
    spec = manifest.decoding
    if spec is None:
        return "It was never trained to answer."
    if spec.has_recurrent_latents:
        return (
            f"Before it answers it thinks in {spec.latents} latents: hidden states that are fed back as "
            "inputs and never become words. The code for that is in this folder; transformers does not load "
            "the model without it."
        )
    if not answers_plainly(spec):
        return "It answers otherwise than by plain generation; the code for that is in this folder."
    return "It answers by plain greedy generation after a question and a line break."


def _sentence(task: str | None, metrics: dict[str, Any]) -> str:
    low, high = 100 * metrics["low"], 100 * metrics["high"]
    return (
        f"{100 * metrics['accuracy']:.1f}% of {metrics['n']:,} questions of `{task}` ({metrics['split']} "
        f"split), 95% interval {low:.1f} to {high:.1f}, at {metrics['flops']['total']:.3g} FLOPs per answer."
    )


def _beside_controls(node: str, table: pandas.DataFrame) -> list[str]:
    """Return the accuracy of a model's recipe beside those of recipes with as much left of the same base."""
    rows = table[table["seed"] == ALL]
    own = rows["recipe"] == without_seed(node)
    if not own.any():
        return []
    rows = rows.assign(left=left_labels(rows.assign(pruned=pruned_units(rows))))
    mine = rows[own].iloc[0]
    alike = rows[(rows["base"] == mine["base"]) & (rows["left"] == mine["left"])]
    lines = ["| | accuracy (%) | by seed (%) | FLOPs per answer |", "|---|---|---|---|"]
    for _, row in alike.iterrows():
        seeds = table[(table["recipe"] == row["recipe"]) & (table["seed"] != ALL)]["accuracy"]
        accuracy = with_interval(row["accuracy"], row["low"], row["high"])
        by_seed = ", ".join(f"{100 * value:.1f}" for value in seeds) or "one seed"
        name = f"**{row['method']} (this recipe)**" if row["recipe"] == mine["recipe"] else row["method"]
        lines.append(f"| {name} | {accuracy} | {by_seed} | {row['flops']:.3g} |")
    return [
        "## Accuracy",
        f"Recipes that leave as much of the model ({mine['left']}), {int(mine['n']):,} questions each, "
        "greedy, 95% intervals over questions:",
        "\n".join(lines),
    ]
