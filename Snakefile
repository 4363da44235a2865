# copra: from a data file and a base model to accuracy against FLOPs.
# A table of contents: the experiment is in config.yaml, the rules are in workflow/rules.

import os
import sys
from importlib.util import find_spec

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

min_version("9.27")

if find_spec("copra") is None:
    raise WorkflowError(
        f"copra is not installed for {sys.executable}, which runs this Snakemake. `make setup` makes an environment that has "
        "both: .venv/bin/copra run, or .venv/bin/snakemake."
    )


# Presets stand alone: config.yaml counts only where no --configfile is given.
if not workflow.overwrite_configfiles:

    configfile: "config.yaml"


report: "workflow/report/workflow.rst"


# The image of the rules for runs with --software-deployment-method apptainer (see docs/clusters.md): none is published,
# so it is one that you make of the Dockerfile, beside config.yaml or in a registry.
container: os.environ.get("COPRA_CONTAINER", "copra.sif")


include: "workflow/rules/common.smk"
include: "workflow/rules/forecast.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/importance.smk"
include: "workflow/rules/pruning.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/quantization.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/outputs.smk"


rule all:
    default_target: True
    input:
        tables=table_files(copra),
        figures=figure_files(copra),
        page=report_file(copra),
        artifacts=copra.artifacts(),
    localrule: True
    message:
        f"Tables are in {copra.folder}/tables, figures in {copra.folder}/figures, the report is {report_file(copra)}"
