"""Submissions to a cluster, by the forecast: which short jobs share one, and the minutes they ask for."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

from copra.experiment.workflow import Workflow
from copra.plan.forecast import Line, forecast
from copra.plan.machine import COMPUTING

GROUP = "short"
"""The name of all groups in `group-components` of a profile: how many unconnected parts a group may have."""
SHORT_SECONDS = 600.0
"""Most expected seconds of the jobs of a submission together: what a failed job of a submission can cost."""
LEAST_MINUTES = 10
"""Least minutes that a submission asks for: imports from a cold network file system, small downloads."""
FACTOR = 4
"""Minutes asked for per expected minute, and by the second attempt per minute of the first; the third asks
for the limit. Forecasts are for an A100, of whose FLOPs per second a V100 has 0.4 and a T4 0.2."""
PREPARING = ("data", "base")
"""Rules whose jobs may wait for a download, which should occupy no GPU: they join only each other."""
GROUPED = {*PREPARING, "prompt", *COMPUTING} - {"latency"}
"""Rules whose jobs may share a submission. `latency` and `convert` have a node to themselves; any
other rule is a local one."""


@dataclass
class Submission:
    """Jobs that run one after another in one job of the cluster; `seconds` are the expected ones by key.

    `waits_for` are the numbers of all submissions that it depends on, also through others.
    """

    number: int
    waits_for: frozenset[int]
    is_short: bool
    prepares: bool
    seconds: dict[str, float] = field(default_factory=dict)

    def has_room(self, rule: str, seconds: float, most_jobs: int) -> bool:
        """Return True if a job may join."""
        return (
            self.is_short
            and self.prepares == (rule in PREPARING)
            and sum(self.seconds.values()) + seconds <= SHORT_SECONDS
            and len(self.seconds) < most_jobs
        )

    def minutes(self, key: str, attempt: int, limit: int) -> int:
        """Return the share of a job in the minutes that its submission asks for, `limit` at most.

        Snakemake sums the shares up, in whole minutes of which each job has at least one.
        """
        total, jobs = sum(self.seconds.values()), len(self.seconds)
        wanted = max(LEAST_MINUTES, FACTOR * total / 60) * FACTOR ** (attempt - 1)
        rest = max(0.0, (limit if attempt > 2 else min(limit, wanted)) - jobs)
        until = dict(zip(self.seconds, accumulate(self.seconds.values()), strict=True))[key]
        return 1 + int(rest * until / total) - int(rest * (until - self.seconds[key]) / total)


def plan_submissions(lines: Mapping[str, Line], most_jobs: int) -> dict[str, Submission]:
    """Return the submission of each job that is to run and whose seconds are known; short jobs share some.

    A short job joins the submission of something that it needs if that waits for all else that it needs.
    Unless it is a training, it may also join one that waits for the same as it does. So no job waits for more
    than it needs and its own submission, and no two submissions wait for each other. `lines` are those of a
    forecast, each after those of the jobs that it needs.
    """
    of_job: dict[str, Submission] = {}
    newest: dict[frozenset[int], Submission] = {}
    for key, line in lines.items():
        rule, seconds = line.job.rule, 0.0 if line.job.cached or line.seconds is None else line.seconds[1]
        is_short = rule in GROUPED and 0 < seconds <= SHORT_SECONDS
        needed = {of_job[need].number: of_job[need] for need in line.job.needs}
        waits_for = frozenset(needed).union(*(each.waits_for for each in needed.values()))
        candidates = [each for each in needed.values() if needed.keys() - {each.number} <= each.waits_for]
        if rule != "train" and waits_for in newest:
            candidates.append(newest[waits_for])
        room = (each for each in candidates if is_short and each.has_room(rule, seconds, most_jobs))
        if (chosen := next(room, None)) is None:
            chosen = Submission(len(of_job), waits_for, is_short, rule in PREPARING)
            if is_short:
                newest[waits_for] = chosen
        of_job[key] = chosen
        if seconds:
            chosen.seconds[key] = seconds
    return {key: each for key, each in of_job.items() if key in each.seconds}


class Submissions:
    """The submissions of a run of Snakemake, as the rules ask for them.

    The forecast takes seconds, and is made when the first job that goes to a cluster asks. Local runs and the
    processes of jobs on a cluster do without.
    """

    def __init__(self, snakemake: Any, copra: Workflow):
        self._snakemake, self._copra = snakemake, copra

    def minutes(self, key: str, limit: int | None = None) -> Callable[..., int]:
        """Return a function of wildcards and attempt: the minutes that a job asks for.

        They are at most `limit` or `compute.runtime_minutes`, and just that without a forecast. `key` is the
        key of the job in the forecast, with names of wildcards in braces.
        """
        most = self._copra.experiment.compute.runtime_minutes

        def asked(wildcards: Any, attempt: int) -> int:
            name = key.format(**dict(wildcards.items()))
            if not self._leads_to_a_cluster or name not in self._of_job:
                return limit or most
            return min(limit or most, self._of_job[name].minutes(name, attempt, most))

        return asked

    def group(self, key: str) -> Callable[..., str | None]:
        """Return a function of wildcards: the group of a job, None if it is alone; `key` as in `minutes`."""

        def group(wildcards: Any) -> str | None:
            if self._snakemake.remote_exec:
                return self._group_of_targets()
            if self._most_parts <= 1:
                return None
            found = self._of_job.get(key.format(**dict(wildcards.items())))
            if found is None or len(found.seconds) == 1:
                return None
            self._declare(name := f"{GROUP}-{found.number}")
            return name

        return group

    def _declare(self, name: str) -> None:
        """Tell Snakemake the limits of a group: its parts, one job at a time, and the GPUs of one job.

        A profile cannot set the latter two, since profiles/default, which limits the GPUs of local runs,
        replaces its `resources`.
        """
        self._snakemake.parent_groupids[name] = GROUP
        self._snakemake.global_resources["slot"] = 1
        self._snakemake.global_resources["gpu"] = max(1, self._copra.experiment.compute.gpu)

    def _group_of_targets(self) -> str | None:
        """Set how many parts the group of this submission may have, and return it; None for a single job."""
        jobs = len(self._snakemake.dag_settings.target_jobs)
        self._snakemake.group_settings.group_components[GROUP] = jobs
        return GROUP if jobs > 1 else None

    @property
    def _most_parts(self) -> int:
        settings = self._snakemake.group_settings
        return settings.group_components.get(GROUP, 1) if settings else 1

    @property
    def _leads_to_a_cluster(self) -> bool:
        """True in the process that submits jobs, and in a dry run of that.

        False with object storage: a forecast would look for results on this machine.
        """
        found = self._snakemake
        is_remote = found.non_local_exec and not found.storage_settings.default_storage_provider
        return found.is_main_process and (is_remote or self._most_parts > 1)

    @cached_property
    def _of_job(self) -> Mapping[str, Submission]:
        most_jobs = self._copra.experiment.compute.runtime_minutes if self._most_parts > 1 else 1
        try:
            return plan_submissions(forecast(self._copra).lines, most_jobs)
        except Exception as error:  # a run must not fail for want of an estimate
            print(f"No forecast, so that jobs ask for their time limits: {error}", file=sys.stderr)
            return {}
