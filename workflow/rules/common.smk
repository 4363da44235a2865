# The experiment behind the rules, and what its names look like.

import os

from copra.errors import CopraError
from copra.files import read_yaml
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


wildcard_constraints:
    task=r"[^/+]+",
    base=r"[^/+]+",
    node=r"[^/]+",
    unit=r"layers|kv_groups",
    table=r"accuracy_vs_flops|before_fine_tuning|accuracy_vs_latents|latent_lens",
