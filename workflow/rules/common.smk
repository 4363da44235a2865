# The experiment behind the rules, and what its names look like.

import os
import re

from copra.errors import CopraError
from copra.files import read_yaml
from copra.importance.metrics import SCORINGS
from copra.workflow import Workflow, put_copra_on_path
from snakemake.exceptions import WorkflowError

put_copra_on_path()
try:
    # Snakemake itself keeps the last of two equal keys without a word.
    for file in workflow.configfiles:
        read_yaml(file)
    copra = Workflow(
        config,
        ", ".join(map(os.path.relpath, workflow.overwrite_configfiles)) or "config.yaml",
    )
except CopraError as error:
    raise WorkflowError(str(error))


def growing(amount):
    """A resource that grows with each attempt: a job that ran out of it gets more when it is tried again."""
    return lambda wildcards, attempt: amount * attempt


wildcard_constraints:
    task=r"[^/+]+",
    base=r"[^/+]+",
    node=r"[^/]+",
    objective=r"answer|cot|latent|text",
    scoring="|".join(map(re.escape, SCORINGS)),
    curve=r"[^/]+",
    table=r"accuracy_vs_flops|before_fine_tuning|accuracy_vs_latents|latent_lens|pruning_curves|drop_orders",
