"""Run Snakemake's command line on a dry run and print, as the last line, the planned jobs as JSON.

Each job has its rule, its shell line, and its inputs by whether their times count.
"""

import json
import sys

from snakemake.cli import main
from snakemake.dag import DAG

init = DAG.init


async def init_and_tell(self, *arguments, **named):
    await init(self, *arguments, **named)
    jobs = [
        {
            "rule": job.rule.name,
            "shell": job.shellcmd,
            "timed": [file for file in job.input if not file.is_ancient],
            "untimed": [file for file in job.input if file.is_ancient],
        }
        for job in self.jobs
    ]
    print(f"\n{json.dumps(jobs)}", flush=True)


DAG.init = init_and_tell
main(sys.argv[1:])
