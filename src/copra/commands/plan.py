"""copra plan: estimate the cost of a run before it is started."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from copra.commands.experiment import add_experiment, experiment_of
from copra.plan.forecast import forecast
from copra.plan.page import page
from copra.utils.errors import CopraError
from copra.utils.files import write_json


def arguments(parser: ArgumentParser) -> None:
    add_experiment(parser, "config.yaml", results=False)
    parser.add_argument(
        "--flops-per-second",
        type=float,
        help="peak of a CPU thread or a GPU, if no run was measured (default: an AVX2 core's, or an A100's)",
    )
    parser.add_argument(
        "--utilization", type=float, help="fraction of the peak that is reached (default: 0.2, on a GPU 0.3)"
    )
    parser.add_argument(
        "--jobs",
        type=Path,
        metavar="FILE",
        help="also write the seconds of jobs to this JSON file",
    )


def run(options: Namespace) -> None:
    for name in ("flops_per_second", "utilization"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise CopraError(f"--{name.replace('_', '-')}: {value} is not above 0.")
    workflow, source = experiment_of(options)
    found = forecast(workflow, options.flops_per_second, options.utilization)
    print(page(found, workflow, source))
    if options.jobs:
        jobs = {key: line for key, line in found.lines.items() if not line.job.cached}
        write_json(options.jobs, {key: line.seconds[1] for key, line in jobs.items() if line.seconds})
