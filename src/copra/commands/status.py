"""copra status: print the progress of a run."""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import JustifyMethod

from copra.commands.experiment import add_experiment, experiment_of
from copra.experiment.workflow import Workflow
from copra.plan.progress import failed_jobs, finished_results, lines_of
from copra.utils.errors import CopraError
from copra.utils.heartbeat import JobStatus, in_words, running
from copra.utils.quantities import duration
from copra.utils.terminal import console, table

HEADS = ["model", "done", "", "loss", "learning rate", "speed"]


def arguments(parser: ArgumentParser) -> None:
    add_experiment(parser, "whatever runs below results, and nothing is counted")
    parser.add_argument(
        "--watch", type=float, metavar="SECONDS", help="refresh at this interval until Ctrl-C"
    )


def run(options: Namespace) -> None:
    if options.watch is not None and not options.watch > 0:
        raise CopraError(f"--watch: {options.watch} is not above 0 seconds.")
    workflow, source = None, None
    if options.configs or options.merged is not None:
        workflow, source = experiment_of(options)
    while True:
        folders = [options.results] if options.results else _folders(workflow)
        page = "\n\n".join(part for folder in folders for part in _page(folder, workflow, source))
        if options.watch is None:
            print(page)
            return
        console().clear()
        print(page, flush=True)
        try:
            time.sleep(options.watch)
        except KeyboardInterrupt:
            return


def _folders(workflow: Workflow | None) -> list[Path]:
    """Return the results folder of an experiment, or those of all experiments that have run here."""
    if workflow is not None:
        return [Path(workflow.folder)]
    return sorted({path.parent for path in Path("results").glob("*/logs")}) or [Path("results")]


def _page(results: Path, workflow: Workflow | None, source: str | None) -> Iterator[str]:
    """Yield the parts of the page that are not empty."""
    if workflow is not None:
        counts = finished_results(workflow, results)
        done, total = (sum(numbers) for numbers in zip(*counts.values(), strict=True))
        by_folder = ", ".join(f"{folder} {there} of {of}" for folder, (there, of) in counts.items())
        yield f"{source}: {done} of {total} files are there\n{by_folder}"
    seen = running(results)
    now = [job for job in seen if not job.stopped]
    if now:
        yield f"Running in {results}:\n" + _table(now, "left", [_left(job) for job in now])
    else:
        yield f"Nothing that tells its progress runs in {results}."
    if stopped := [job for job in seen if job.stopped]:
        words = [f"{duration(job.silent)} ago; {_going_on(job)} ({job.state})" for job in stopped]
        yield "Stopped: these have not said anything for minutes, or their process is gone.\n" + _table(
            stopped, "last sign", words
        )
    if errors := failed_jobs(results, workflow):
        lines = [f"{each.key}: {each.reason}\n  {each.log}" for each in errors]
        yield "Failed:\n" + "\n".join(lines)


def _table(jobs: Sequence[JobStatus], head: str, words: Sequence[str]) -> str:
    rows = [[*line, word] for line, word in zip(lines_of(jobs), words, strict=True)]
    numbers: list[JustifyMethod] = ["right"] * (len(HEADS) - 1)
    return table([*HEADS, head], rows, ["left", *numbers, "left"])


def _left(job: JobStatus) -> str:
    left = "" if job.seconds_left is None else duration(job.seconds_left)
    left = ", ".join(filter(None, (left, in_words(job.rates))))
    return left if job.silent <= 60 else f"{left} (silent for {duration(job.silent)})".strip()


def _going_on(job: JobStatus) -> str:
    """Return text for the effect of rerunning a stopped job with the same settings."""
    if job.unit != "steps":
        return "run it again"
    return f"run again, it goes on after step {job.saved:,}" if job.saved else "run again, it starts anew"
