"""Print the jobs of a workflow as JSON: python -m copra.plan.dry_run SNAKEFILE CONFIG. Nothing runs."""

import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

from snakemake.api import SnakemakeApi
from snakemake.settings.types import (
    ConfigSettings,
    DAGSettings,
    OutputSettings,
    Quietness,
    RerunTrigger,
    ResourceSettings,
)


def main(snakefile: str, config: str) -> None:
    """Print a list of (rule, log, benchmark, outputs, logs of the jobs that it needs, is cached) on one line.

    Each job comes after the jobs that it needs. A lock on the folder does not matter, so that this works
    within a job and beside a run.
    """
    output = OutputSettings(dryrun=True, quiet={Quietness.ALL})
    # As in profiles/default.
    triggers = RerunTrigger.all() - {RerunTrigger.SOFTWARE_ENV}
    with SnakemakeApi(output) as api:
        workflow = api.workflow(
            ResourceSettings(cores=1), ConfigSettings(configfiles=[Path(config)]), snakefile=Path(snakefile)
        )
        try:
            # Any function of the API that needs the jobs; it has none that returns them.
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                workflow.dag(DAGSettings(rerun_triggers=triggers)).printrulegraph()
        except Exception as error:
            api.print_exception(error)
            sys.exit(1)
        dag = workflow._workflow.dag
        jobs = [job for level in dag.toposorted() for job in sorted(level, key=str) if job.log]
        found = [
            (
                job.rule.name,
                str(job.log[0]),
                str(job.benchmark),
                list(map(str, job.output)),
                [str(before.log[0]) for before in dag.dependencies[job]],
                not dag.needrun(job),
            )
            for job in jobs
        ]
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
