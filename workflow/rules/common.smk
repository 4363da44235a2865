# The experiment behind the rules, and what its names look like.

import gc
import os
import re
import sys
from pathlib import Path

from copra.utils.digests import files_below
from copra.utils.ending import name_snakemake
from copra.utils.errors import CopraError
from copra.utils.files import canonical_json, read_yaml, tables_beside
from copra.utils.forking import fork_jobs
from copra.utils.run_lock import free_locks, note_locks
from copra.schema.metrics import SCORINGS, split_of
from copra.models.pack import PACK, enable_packs
from copra.experiment.planning import tell_problems_plainly
from copra.experiment.provenance import compare_records
from copra.tasks.task import SPLITS
from copra.experiment.outputs import (
    FIGURES,
    TABLES,
    above,
    export_settings,
    figure_files,
    figure_settings,
    report_file,
    report_settings,
    report_sources,
    table_files,
    table_settings,
)
from copra.experiment.workflow import Workflow, put_copra_on_path
from copra.plan.submissions import Submissions
from copra.report.texts import CAPTIONS
from snakemake.exceptions import WorkflowError

# Planning makes millions of objects that stay. To look for garbage among them as often as ever takes a sixth of the time.
gc.set_threshold(5_000_000)

put_copra_on_path()
# A Snakemake that another one starts for a job of its own is no more than a part of that.
if not workflow.subprocess_exec:
    name_snakemake()
    if free_locks():
        print("The lock of a run that was killed is removed.", file=sys.stderr)
try:
    # Snakemake itself keeps the last of two equal keys without a word.
    for file in workflow.configfiles:
        read_yaml(file)
    # A workflow that uses this one as a module may have its config from elsewhere than files.
    copra = Workflow(config, *map(os.path.relpath, workflow.configfiles or ["config"]))
except CopraError as error:
    raise WorkflowError(str(error))


# Each experiment has a folder of its own, so that none overwrites another's results.
pathvars:
    results=copra.folder,
    logs=f"{copra.folder}/logs",
    benchmarks=f"{copra.folder}/benchmarks",


# The limit of GPUs (profiles/default, --resources gpu=N) counts GPUs, and jobs that share one count as one each.
if (limit := workflow.global_resources.get("gpu").value) is not None:
    workflow.global_resources["gpu"] = limit * copra.experiment.compute.jobs_per_gpu


# What a cluster gets: short jobs as groups (group-components in its profile), each with the time that the plan expects.
submissions = Submissions(workflow, copra)


# Jobs of a group take turns, so that it asks for what its largest job needs, and for the sum of their times.
resource_scopes:
    slot="local",


if workflow.remote_exec:
    workflow.global_resources["slot"] = 1


# Words among the resources must be the same in all jobs of a group, whether they use them or not. They are no params,
# since they must not make anything run again.
SHARED = {
    "slot": 1,
    "folder": copra.folder,
    "sharding": "full" if copra.experiment.compute.sharding else "none",
    "tracking": copra.experiment.tracking or "",
}


# What makes a checkpoint whole beside its manifest. Its small files need not be declared as long as they stay
# beside it, but object storage keeps only what is: copra packs them up then.
WEIGHTS = ["model.safetensors"]
if workflow.storage_settings.default_storage_provider:
    enable_packs()
    WEIGHTS.append(PACK)


def weights(model):
    """The weights in the folder of a model, whose time does not matter: its manifest tells what they are."""
    return ancient([f"{model}/{name}" for name in WEIGHTS])


def tables(summaries):
    """The large tables of splits and scores, whose times do not matter: the small files beside them tell what they are."""
    return ancient(tables_beside(summaries))


def evaluation(wildcards):
    """The name of an evaluation: its node, after that task, if it is not the node's own, which it is asked."""
    return wildcards.other_task + wildcards.node


def here(*sources):
    """Local files that a job reads, where they are its inputs: with object storage alone, to keep the job on this
    machine. Its settings hold their content, and to neither times nor places does a job owe anything."""
    if not workflow.storage_settings.default_storage_provider:
        return []
    found = [files_below(source) if source.is_dir() else [source] for source in sources if source]
    return ancient(local([str(file) for files in found for file in files]))


def growing(amount):
    """A resource that grows with each attempt: a job that ran out of it gets more when it is tried again."""
    return lambda wildcards, attempt: amount * attempt


tell_problems_plainly(copra.experiment)
# Results that came without Snakemake's records, or in place of others, say themselves how they were made.
compare_records()


onstart:
    note_locks(getattr(workflow.persistence, "_lockfile", {}).values())
    fork_jobs(workflow)


onsuccess:
    # Here, since planning does not wait for pandas.
    from copra.report.summary import summary_of

    if summary := summary_of(Path(copra.folder)):
        print(summary)


wildcard_constraints:
    task=r"[^/+]+",
    base=r"[^/+]+",
    node=r"[^/]+",
    # The task of an evaluation on another one than the node's own, with a slash.
    other_task=r"([^/+]+/)?",
    objective=r"answer|cot|latent|text",
    split="|".join(SPLITS),
    scoring="|".join(map(re.escape, SCORINGS)),
    curve=r"[^/]+",
    table="|".join(TABLES),
    figure="|".join(FIGURES),
    subject=r"(/.+)?",
