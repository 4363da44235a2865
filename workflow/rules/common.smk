# The experiment behind the rules, and what its names look like.

import os
import sys

from copra.errors import CopraError
from copra.workflow import Workflow
from snakemake.exceptions import WorkflowError

# `copra` stands beside the Python that runs Snakemake, also where that is not on the PATH.
os.environ["PATH"] = os.pathsep.join(
    [os.path.dirname(sys.executable), os.environ["PATH"]]
)

try:
    copra = Workflow(
        config,
        ", ".join(map(os.path.relpath, workflow.overwrite_configfiles))
        or "config.yaml",
    )
except CopraError as error:
    raise WorkflowError(str(error))


wildcard_constraints:
    task=r"[^/+]+",
    base=r"[^/+]+",
    node=r"[^/]+",
    unit=r"layers|kv_groups",
    table=r"accuracy_vs_flops|before_fine_tuning",
