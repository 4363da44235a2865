"""A soak: an experiment of more than 30 jobs under SLURM, whose jobs are killed and requeued all the while,
ends with the files of an undisturbed local run; and afterwards a change runs what depends on it.

The jobs start warm: imports are nothing to lose.
"""

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest
from runs import SOON, Run

from copra.plan.submissions import GROUP
from helpers.copied_code import copy_code
from helpers.tiny import DROP, TRAINING, tiny_config
from helpers.warm import warm_copra

LONG = {**TRAINING, "steps": 60, "num_validations": 3}
CONFIG = tiny_config(
    steps={
        **{name: {"kind": name, "training": LONG} for name in ("cot", "no_cot", "pause")},
        "coconut": {"kind": "coconut", "max_latent_stage": 1, "training": {**LONG, "steps": 30}},
        "drop-1": {**DROP, "metric": "greedy_loss"},
        "groups-1": {"kind": "prune", "unit": "kv_groups", "metric": "gradient", "budget": {"fraction": 0.5}},
    },
    recipes=[
        {
            "start": ["cot"],
            "prunings": [[], "drop-1", "groups-1"],
            "methods": ["no_cot", "coconut", "pause"],
        },
        ["cot"],
    ],
    reference="llama+cot",
    importance={"rows": 16, "greedy_removals": 1},
    evaluation={"stages": True, "max_new_tokens": 4, "batch_size": 10},
    compute={"gpu": 1, "memory_mb": 400, "runtime_minutes": 5, "save_every_seconds": 0},
)
KINDS = ("data", "models", "scores", "plans", "evaluations", "tables")
SECONDS = 2400
SECONDS_BETWEEN_BLOWS = 3.0
SECONDS_BETWEEN_LOOKS = 0.3
SECONDS_OF_A_JOB = 1.5
BLOWS = 14
# No job is hit so often that Snakemake gives it up.
RETRIES = 5


class Killer:
    """Hits a random job of a run every few seconds, by a signal to its process of copra, by a
    requeue, or by taking the node away for a moment."""

    def __init__(self, run: Run, slurm):
        self.run = run
        self.slurm = slurm
        self.draw = random.Random(0)
        self.blows: list[str] = []
        self.hits: dict[str, int] = {}

    def work(self) -> None:
        """Until the run ends."""
        end = time.monotonic() + SECONDS
        while self.run.process.poll() is None:
            assert time.monotonic() < end, self.run.printed.read_text()
            time.sleep(SECONDS_BETWEEN_LOOKS)
            if len(self.blows) < BLOWS and self.blow():
                time.sleep(SECONDS_BETWEEN_BLOWS)
            self.hasten()

    def blow(self) -> bool:
        """Whether there was something to hit."""
        processes = self.processes()
        if not processes:
            return False
        process, job, what = self.draw.choice(processes)
        if self.hits.get(what, 0) >= RETRIES - 2:
            return False
        # Anywhere between its start and its end.
        time.sleep(self.draw.random() * SECONDS_OF_A_JOB)
        if not process.is_running():
            return False
        kinds = ("SIGKILL", "SIGTERM", "requeue", "node down")
        kind = kinds[len(self.blows) % len(kinds)]
        # It may be over by now.
        with suppress(psutil.NoSuchProcess, subprocess.CalledProcessError):
            if kind.startswith("SIG"):
                process.send_signal(getattr(signal, kind))
            elif kind == "requeue":
                self.slurm.ask("scontrol", "requeue", job)
            else:
                # All its jobs go back to the queue.
                host, _ = self.node()
                self.slurm.ask("scontrol", "update", f"NodeName={host}", "State=DOWN", "Reason=test")
                time.sleep(1)
                self.slurm.ask("scontrol", "update", f"NodeName={host}", "State=RESUME")
            self.hits[what] = self.hits.get(what, 0) + 1
            self.blows.append(f"{kind} {what}")
            return True
        return False

    def node(self) -> list[str]:
        """The name of the node, and its state."""
        return self.slurm.ask("sinfo", "--noheader", "--format=%n %T").splitlines()[0].split()

    def hasten(self) -> None:
        """Do at once what time and an administrator would do: SLURM lets a job that went back to the queue
        wait for two minutes, and drains a node for good if the first copy of such a job has not ended yet."""
        host, state = self.node()
        if state.startswith("drain"):
            with suppress(subprocess.CalledProcessError):  # it may have been resumed by now
                self.slurm.ask("scontrol", "update", f"NodeName={host}", "State=RESUME")
        for job in self.slurm.jobs():
            if job["JobState"] == "PENDING" and job["Reason"] == "BeginTime":
                with suppress(subprocess.CalledProcessError):  # it may have begun by now
                    self.slurm.ask("scontrol", "update", f"JobId={job['JobId']}", "StartTime=now")

    def processes(self) -> list[tuple[psutil.Process, str, str]]:
        """The run's own processes of copra within SLURM jobs, with the job's number and what they do."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                words, environment = process.cmdline(), process.environ()
                job = environment.get("SLURM_JOB_ID")
                ours = environment.get("COPRA_TEST_NOTES") == str(self.run.notes_folder)
                if job and ours and words[1:] and words[1].endswith("/ask.py"):
                    verb, output = words[2], words[words.index("--output") + 1]
                    found.append((process, job, f"{verb} {output}"))
        return sorted(found, key=lambda entry: entry[0].pid)


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    return copy_code(tmp_path_factory.mktemp("code"))


@pytest.fixture(scope="module")
def environment(slurm, code) -> Iterator[dict[str, str]]:
    with warm_copra(code / "src") as warm:
        yield slurm.environment | warm


@pytest.fixture(scope="module")
def undisturbed(slurm, code, tmp_path_factory) -> Run:
    """The experiment's run on this machine alone, with another seed of hashes."""
    cores = f"--cores={os.cpu_count()}"
    with warm_copra(code / "src") as warm:
        run = Run(tmp_path_factory.mktemp("undisturbed"), code, slurm.environment | warm, CONFIG, cores)
        try:
            run.finish(SECONDS)
        finally:
            run.kill()
    return run


@pytest.fixture(scope="module")
def options(code) -> tuple[str, ...]:
    """Each job is a submission of its own, so that a blow hits one job and nothing else runs again."""
    alone = ("--group-components", f"{GROUP}=1")
    return ("--profile", str(code / "profiles" / "slurm"), *alone, f"--retries={RETRIES}", SOON)


@pytest.fixture(scope="module")
def soaked(slurm, environment, code, options, undisturbed, tmp_path_factory) -> Iterator[tuple[Run, Killer]]:
    """The experiment's run under SLURM and blows."""
    run = Run(tmp_path_factory.mktemp("soaked"), code, environment, CONFIG, *options)
    killer = Killer(run, slurm)
    try:
        killer.work()
        run.finish(1)
        yield run, killer
    finally:
        run.kill()


def submitted(slurm, run: Run) -> list[str]:
    """The rules and wildcards of all jobs that a run has submitted, as SLURM remembers them."""
    return [job["Comment"] for job in slurm.jobs() if str(run.folder) in job["WorkDir"]]


def test_blows_of_every_kind_were_dealt(soaked, slurm):
    run, killer = soaked
    assert len(killer.blows) > BLOWS / 2
    kinds = {blow.split()[0] for blow in killer.blows}
    assert kinds == {"SIGKILL", "SIGTERM", "requeue", "node"}
    assert len(set(submitted(slurm, run))) >= 30


@pytest.mark.parametrize("kind", KINDS)
def test_all_files_are_those_of_an_undisturbed_run(soaked, undisturbed, kind):
    run, _ = soaked
    expected, found = undisturbed.files(kind), run.files(kind)
    assert expected.keys() == found.keys() != set()
    assert [name for name in expected if expected[name] != found[name]] == []


def test_trainings_that_were_hit_went_on_from_their_states(soaked):
    run, killer = soaked
    assert any(blow.split()[-2] == "train" for blow in killer.blows)
    logs = (run.folder / "results" / "config" / "logs" / "train").glob("*.log")
    assert any("going on after step" in log.read_text() for log in logs)
    # What searches have measured is kept; no state of a training or an evaluation is left.
    assert not [
        path for path in (run.folder / "results" / "config" / "state").glob("*/*") if path.suffix != ".jsonl"
    ]


def test_a_change_then_submits_what_depends_on_it_and_nothing_else(soaked, slurm, environment, code, options):
    run, _ = soaked
    before = len(submitted(slurm, run))
    steps = CONFIG["steps"] | {"pause": {"kind": "pause", "training": {**LONG, "learning_rate": 1e-3}}}
    again = Run(run.folder, code, environment, {**CONFIG, "steps": steps}, *options)
    try:
        again.finish(SECONDS)
    finally:
        again.kill()
    new = submitted(slurm, run)[before:]
    nodes = [f"llama@0+cot{pruning}+pause" for pruning in ("", "+drop-1", "+groups-1")]
    assert len(new) == 2 * len(nodes)
    for node in nodes:
        for rule in ("train", "evaluate"):
            assert [job for job in new if re.search(rf"rule_{rule}_.*{re.escape(node)}$", job)], new
