"""A tiny experiment through SLURM, as `snakemake --profile profiles/slurm` runs it, beside a local run."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from runs import SOON, Run

from copra.plan.submissions import GROUP, LEAST_MINUTES
from helpers.copied_code import copy_code
from helpers.tiny import TRAINING, tiny_config

CONFIG = tiny_config(
    steps={name: {"kind": name, "training": TRAINING} for name in ("cot", "no_cot", "pause")},
    recipes=[["cot"], ["no_cot"], ["pause"]],
    reference="llama+cot",
    evaluation={"max_new_tokens": 4},
    latency={"questions": 1, "batch_size": 2, "repetitions": 1, "forced_tokens": 2},
    compute={"gpu": 1, "memory_mb": 700, "runtime_minutes": 50},
)
SUBMITTED = {"data": 3, "base": 1, "train": 3, "evaluate": 3, "latency": 1}
# By the rules of their jobs, as SLURM's comments name them.
SUBMISSIONS = {"base_data": 1, "evaluate_train": 3, "latency": 1}
LOCAL = {"table": 1, "export": 1}
ON_GPU = ("train", "evaluate", "latency")
FAILS_ONCE = "evaluate"
WHY = "no luck today"
SECONDS = 1200  # Most of them are never needed: it took 260 on two busy cores.

# At the end of each of copra's processes: what it was, when, and where. One of SLURM's jobs fails.
NOTES = f"""
import atexit, json, os, pathlib, sys, time

FOLDER = pathlib.Path(os.environ.get("COPRA_TEST_NOTES", "."))
BEGAN = time.time()

def note():
    note = {{"verb": sys.argv[1], "began": BEGAN, "ended": time.time()}}
    note |= {{name: os.environ.get(name) for name in ("SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES")}}
    (FOLDER / f"{{os.getpid()}}.json").write_text(json.dumps(note))

words = [pathlib.Path(word).name for word in sys.orig_argv]
if "copra" in words:
    if {FAILS_ONCE!r} in words and "SLURM_JOB_ID" in os.environ:
        try:
            (FOLDER / "failed").touch(exist_ok=False)
        except FileExistsError:
            pass
        else:
            print({WHY!r}, flush=True)
            os._exit(1)
    atexit.register(note)
"""


def notes(run: Run, *verbs: str) -> list[dict]:
    """What copra's processes noted, of these verbs or of all."""
    found = [json.loads(file.read_text()) for file in run.notes_folder.glob("*.json")]
    return [note for note in found if not verbs or note["verb"] in verbs]


@pytest.fixture(scope="module")
def code(tmp_path_factory) -> Path:
    """A copy of the code, whose processes take notes."""
    return copy_code(tmp_path_factory.mktemp("code"), NOTES)


@pytest.fixture(scope="module")
def runs(slurm, code, tmp_path_factory) -> Iterator[tuple[Run, Run]]:
    """The experiment's run through SLURM, and one on this machine alone beside it."""
    profile = str(code / "profiles" / "slurm")
    folder = tmp_path_factory.mktemp("submitted")
    submitted = Run(folder, code, slurm.environment, CONFIG, "--profile", profile, SOON)
    local = Run(tmp_path_factory.mktemp("local"), code, slurm.environment, CONFIG, "--cores=1")
    try:
        submitted.finish(SECONDS)
        local.finish(SECONDS)
        yield submitted, local
    finally:
        submitted.kill()
        local.kill()


@pytest.fixture
def submitted(runs) -> Run:
    return runs[0]


@pytest.fixture
def local(runs) -> Run:
    return runs[1]


@pytest.fixture
def jobs(slurm, submitted) -> list[dict[str, str]]:
    """SLURM's own records of the run's jobs."""
    return slurm.jobs()


def rules_of(job) -> str:
    """The rules of a submission: `rule_latency` or `rule_short-3_evaluate_train` in its comment."""
    return re.fullmatch(r"rule_(?:short-\d+_)?(\w+)", job["Comment"])[1]


def test_short_jobs_share_submissions_and_local_ones_have_none(submitted, jobs):
    assert Counter(map(rules_of, jobs)) == Counter(SUBMISSIONS) + Counter(["evaluate_train"])
    states = Counter(job["JobState"] for job in jobs)
    assert states == {"COMPLETED": sum(SUBMISSIONS.values()), "FAILED": 1}
    completed = {job["JobId"] for job in jobs if job["JobState"] == "COMPLETED"}
    ran = notes(submitted, *SUBMITTED)
    assert Counter(note["verb"] for note in ran if note["SLURM_JOB_ID"] in completed) == SUBMITTED
    # The training of the submission that failed runs again with it.
    assert Counter(note["verb"] for note in ran if note["SLURM_JOB_ID"] not in completed) == {"train": 1}
    here = notes(submitted, *LOCAL)
    assert Counter(note["verb"] for note in here) == LOCAL
    assert {note["SLURM_JOB_ID"] for note in here} == {None}


def test_a_submission_asks_for_what_its_largest_job_needs(jobs):
    for rules in SUBMISSIONS:
        job = min((job for job in jobs if rules_of(job) == rules), key=lambda job: int(job["JobId"]))
        wanted = dict(amount.split("=") for amount in job["TRES"].split(","))
        assert wanted["mem"] == ("2000M" if rules == "base_data" else "700M")
        # Seconds are expected of all.
        assert job["TimeLimit"] == f"00:{LEAST_MINUTES}:00"
        assert job.get("TresPerJob") == (None if rules == "base_data" else "gres:gpu:1")
        # Latency has the node to itself.
        assert wanted["cpu"] == ("6" if rules == "latency" else "1")
        assert job["Partition"] == "short"


def test_a_submission_that_failed_is_tried_again_with_more_memory_and_time(jobs):
    failed = next(job for job in jobs if job["JobState"] == "FAILED")
    again = next(job for job in jobs if job["Comment"] == failed["Comment"] and job is not failed)
    assert (failed["TimeLimit"], again["TimeLimit"]) == ("00:10:00", "00:40:00")
    assert "mem=700M," in failed["TRES"]
    assert "mem=1400M," in again["TRES"]


def test_a_failed_submission_shows_the_message_and_the_log_of_its_job(submitted, jobs):
    failed = next(job for job in jobs if job["JobState"] == "FAILED")
    printed = submitted.printed.read_text()
    assert f"/{failed['JobId']}.log:" in printed
    assert re.search(rf"Logfile \S+/{FAILS_ONCE}/\S+:\s+=+\s+{WHY}", printed)


def test_jobs_never_share_a_gpu_and_use_all(submitted):
    spans = {"0": [], "1": []}
    for note in notes(submitted, *ON_GPU):
        spans[note["CUDA_VISIBLE_DEVICES"]].append((note["began"], note["ended"]))
    for used in spans.values():
        assert all(one[1] < other[0] for one, other in pairwise(sorted(used)))
    together = [one for one in spans["0"] for other in spans["1"] if one[0] < other[1] and other[0] < one[1]]
    assert together, "no two jobs ran beside each other: nothing was tested"
    assert {note["CUDA_VISIBLE_DEVICES"] for note in notes(submitted, "data", "base")} <= {None, ""}


@pytest.mark.parametrize("kind", ["data", "models", "evaluations"])
def test_a_run_through_slurm_makes_the_same_files_as_a_local_one(submitted, local, kind):
    expected, found = local.files(kind), submitted.files(kind)
    assert expected.keys() == found.keys() != set()
    assert [name for name in expected if expected[name] != found[name]] == []


def test_a_run_through_slurm_makes_the_same_table_as_a_local_one(submitted, local):
    assert submitted.table() == local.table() != []


TABLE = {"table": 1, "export": 1}
CHANGES = {
    "nothing": ({}, {}),
    "the data": (
        {"tasks": {"sums": {**CONFIG["tasks"]["sums"], "train": 99}}},
        {"data": 1, "base": 1, "train": 3, "evaluate": 3, "latency": 1, **TABLE},
    ),
    "another seed": ({"seeds": [1]}, {"base": 1, "train": 3, "evaluate": 3, "latency": 1, **TABLE}),
    "one training": (
        {"steps": CONFIG["steps"] | {"pause": {"kind": "pause", "training": {**TRAINING, "steps": 5}}}},
        {"train": 1, "evaluate": 1, "latency": 1, **TABLE},
    ),
    "how answers are decoded": (
        {"evaluation": {"max_new_tokens": 5}},
        {"evaluate": 3, "latency": 1, **TABLE},
    ),
    "how time is measured": ({"latency": {**CONFIG["latency"], "repetitions": 2}}, {"latency": 1, **TABLE}),
    "a recipe taken away": ({"recipes": [["cot"], ["no_cot"]]}, {"latency": 1, **TABLE}),
    "what jobs ask for": ({"compute": {"gpu": 2, "memory_mb": 800, "save_every_steps": 1}}, {}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_would_submit_what_depends_on_it_and_nothing_else(slurm, code, submitted, change):
    """By what the jobs themselves, somewhere else, have told Snakemake of their making."""
    changed, expected = CHANGES[change]
    options = ["--profile", str(code / "profiles" / "slurm"), "--dry-run", "--quiet", "rules", "host"]
    # Needs no forecast: groups are not what is looked at.
    options += ["--group-components", f"{GROUP}=1"]
    run = Run(submitted.folder, code, slurm.environment, CONFIG | changed, *options)
    try:
        run.finish(SECONDS)
    finally:
        run.kill()
    found = re.findall(r"^(\w+) +(\d+)$", run.printed.read_text(), re.MULTILINE)
    assert {rule: int(number) for rule, number in found if rule != "total"} == expected
