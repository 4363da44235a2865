"""Detection of cached results, from the settings that they record.

Snakemake decides: it also detects changes of copra's code, of input files, and of settings that no result
records, such as `compute.precision` or how answers are decoded. `snakemake -n` shows its decision.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from copra.experiment.config import Experiment
from copra.experiment.workflow import Workflow
from copra.plan.jobs import Job
from copra.tasks.task import Split
from copra.utils.errors import CopraError
from copra.utils.files import MANIFEST, canonical_json

TRAINING = ("method", "stage", "training", "seed")
"""The settings of a training that a manifest records."""


def made_jobs(jobs: Mapping[str, Job], workflow: Workflow, results: Path) -> set[str]:
    """Return the keys of jobs whose results are up to date.

    Such a result exists, records the present settings, and needs only results that are up to date. In `jobs`
    each job comes after the jobs that it needs.
    """
    found: set[str] = set()
    for key, job in jobs.items():
        there = all(need in found for need in job.needs) and job.output(results).is_file()
        if there and _agrees(job, workflow, results):
            found.add(key)
    return found


def _agrees(job: Job, workflow: Workflow, results: Path) -> bool:
    """True if the settings that a result records are those of the config."""
    experiment = workflow.experiment
    if job.verb == "data":
        return _same_split(_read(job.output(results)), workflow, *job.name.split("/"))
    if job.verb == "choose":
        return _same_choice(_read(job.output(results)), experiment, workflow.node(job.name).step)
    if job.verb == "evaluate":
        return _read(job.output(results)).get("split") == experiment.evaluation.split
    if job.verb not in ("base", "train", "prompt", "quantize", "prune"):
        return True
    node, manifest = workflow.node(job.name), _read(job.output(results))
    if job.verb == "base":
        return all(_same(manifest.get(key), value) for key, value in workflow.recorded(job.name).items())
    lineage = manifest.get("lineage") or [{}]
    parent = _read(results / "models" / node.parent / MANIFEST)
    if lineage[-1].get("parent") != parent.get("weights", {}).get("sha256"):
        return False
    if job.verb == "prune":
        return True
    if job.verb == "train" and (lineage[-1].get("teacher") or {}).get("node") != node.teacher:
        return False
    settings = workflow.recorded(job.name)
    keys = TRAINING if job.verb == "train" else settings
    return all(_same(lineage[-1].get(key), settings.get(key)) for key in keys)


def _same_choice(plan: Mapping[str, Any], experiment: Experiment, step: str) -> bool:
    """True if a plan was made for a pruning's units, metric, scope, normalization and budget."""
    prune = experiment.steps[step]
    wanted = {"units": list(prune.units), "metric": prune.scored_as, "scope": prune.scope}
    wanted["normalize"] = prune.normalize
    wanted["budget"] = prune.budget.model_dump(exclude_none=True)
    return all(_same(plan.get(key), value) for key, value in wanted.items())


def _same_split(summary: Mapping[str, Any], workflow: Workflow, task: str, split: Split) -> bool:
    """True if a prepared split has the rows that its present settings give, as far as these are known."""
    try:
        wanted = workflow.split_settings(task, split)
    except CopraError:
        return False
    return all(_same(summary.get(key), wanted[key]) for key in ("rows_sha256", "settings") if key in wanted)


def _read(file: Path) -> dict[str, Any]:
    """Return the contents of a JSON file; empty if it is missing or truncated."""
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _same(one: Any, other: Any) -> bool:
    return canonical_json(one) == canonical_json(other)
