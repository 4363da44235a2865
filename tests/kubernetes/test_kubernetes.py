"""A tiny experiment on Kubernetes, as `snakemake --profile profiles/kubernetes` runs it: real plugins, a
cluster and a storage on loopback. No pod shares a file with another one, nor with Snakemake."""

import json
import os
import re
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
import yaml

from helpers.tiny import DROP, TRAINING, tiny_config
from helpers.warm import warm_copra

CONFIG = tiny_config(
    steps={
        "codi": {"kind": "codi", "latents": 1, "training": TRAINING},
        "drop-1": {**DROP, "metric": "deepest"},
    },
    recipes=[["drop-1", "codi"]],
    reference="llama+drop-1+codi",
    evaluation={"max_new_tokens": 4},
    compute={"gpu": 1, "memory_mb": 700},
)
CODI = "llama@0+drop-1+codi"
SUBMITTED = {"data": 3, "base": 1, "prune": 1, "train": 1, "evaluate": 1}
TABLE = "tables/accuracy_vs_flops.csv"
PREFIX = "copra/results/config/"


class Run:
    """Snakemake in the folder of the code, with the profile and a storage."""

    def __init__(self, code: Path, environment: dict[str, str], storage):
        self.code = code
        self.environment = environment | {
            "HOME": str(code),
            "SNAKEMAKE_STORAGE_S3_ENDPOINT_URL": storage.url,
            "SNAKEMAKE_STORAGE_S3_ACCESS_KEY": "anyone",
            "SNAKEMAKE_STORAGE_S3_SECRET_KEY": "may",
        }
        (code / "config.yaml").write_text(yaml.safe_dump(CONFIG))

    def snakemake(self, *arguments: str, **environment: str) -> str:
        """Run Snakemake to a good end; returns what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", "--profile", "profiles/kubernetes", *arguments],
            cwd=self.code,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1800,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def run(code, environment, storage) -> Run:
    return Run(code, environment, storage)


@pytest.fixture(scope="module")
def planned(run, storage) -> str:
    """What a dry run prints while nothing is there and no cluster can be reached."""
    printed = run.snakemake("-n", "-q", "rules", "host", KUBECONFIG=os.devnull)
    assert storage.buckets == {}
    return printed


@pytest.fixture(scope="module")
def done(planned, run, cluster):
    """The cluster after the run; its first pod failed."""
    cluster.fail = 1
    # Pods of seconds are asked after sooner than real ones.
    run.snakemake("--seconds-between-status-checks=1", KUBECONFIG=str(cluster.kubeconfig))
    return cluster


def rule(job) -> str:
    """The rule that a pod runs."""
    return re.search(r"--allowed-rules (\w+)", job["spec"]["template"]["spec"]["containers"][0]["args"][1])[1]


def test_a_dry_run_asks_the_storage_what_is_there_and_needs_no_cluster(planned, storage):
    counts = dict(re.findall(r"^(\w+) +(\d+)$", planned, re.MULTILINE))
    assert {name: int(counts[name]) for name in SUBMITTED} == SUBMITTED
    assert storage.answered > 0


def test_every_job_but_the_local_ones_is_a_pod(done):
    rules = [rule(job) for job in done.jobs.values()]
    assert {name: rules.count(name) for name in set(rules)} == SUBMITTED | {"data": 4}
    assert all(done.state(name) == {"terminated": {"exitCode": 0}} for name in list(done.pods)[1:])


def test_what_the_rules_ask_for_arrives(done):
    for job in done.jobs.values():
        container = done.container(job)
        assert container["image"] == "registry.example.org/copra:0.1"
        asked, limits = container["resources"]["requests"], container["resources"]["limits"]
        # Kubernetes refuses a GPU whose request is no limit.
        assert asked.get("nvidia.com/gpu") == limits.get("nvidia.com/gpu")
        if rule(job) in ("prune", "train", "evaluate"):
            assert limits["nvidia.com/gpu"] == "1"
            assert asked["memory"] == limits["memory"] == "700M"
            assert limits["cpu"] == "1000m"


def test_a_pod_that_fails_is_tried_again(done):
    attempts = [job for job in done.jobs.values() if "--attempt 2" in done.container(job)["args"][1]]
    assert [rule(job) for job in attempts] == [rule(next(iter(done.jobs.values())))] == ["data"]


def test_the_plugin_that_pods_install_is_in_the_image(done):
    """Snakemake has each pod run pip, which the Dockerfile keeps from the network."""
    assert done.image["PIP_NO_INDEX"] == done.image["PIP_NO_DEPS"] == "1"
    assert all("pip install" in done.container(job)["args"][1] for job in done.jobs.values())


def test_all_results_are_in_the_storage_and_none_beside_the_code(done, run, storage):
    names = set(storage.files("my-bucket", PREFIX))
    assert {TABLE, f"models/{CODI}/copra.json", "figures/training_curves.png"} <= names
    assert f"evaluations/{CODI}/predictions.parquet" in names
    # What planning has computed on this machine may be lost at any time.
    beside = {path.name for path in (run.code / "results").rglob("*") if path.is_file()}
    assert beside <= {"digests.json"}
    assert storage.files("my-bucket", PREFIX)[TABLE].decode().count("\n") == 2


def test_a_checkpoint_is_whole_in_the_storage(done, storage, tmp_path):
    """Its parts too, which no rule declares."""
    from copra.models.checkpoint import load_checkpoint

    for name, data in storage.files("my-bucket", f"{PREFIX}models/{CODI}/").items():
        (tmp_path / name).write_bytes(data)
    assert not (tmp_path / "config.json").exists()
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.extra_modules
    assert len(checkpoint.shape.layers) == 1
    assert (tmp_path / "config.json").exists()


def test_a_pack_holds_no_time_and_no_place(done, storage):
    pack = storage.files("my-bucket", PREFIX)[f"models/{CODI}/rest.tar"]
    with tarfile.open(fileobj=BytesIO(pack)) as tar:
        members = tar.getmembers()
    assert {"config.json", "tokenizer.json", "extra_modules.safetensors"} <= {each.name for each in members}
    assert not {"model.safetensors", "copra.json", "training.jsonl"} & {each.name for each in members}
    assert {(each.mtime, each.uid, each.uname, each.mode) for each in members} == {(0, 0, "", 0o644)}


def test_a_second_run_has_nothing_to_do(done, run):
    assert "Nothing to be done" in run.snakemake("-n", KUBECONFIG=os.devnull)


def test_a_run_on_kubernetes_makes_the_same_model_as_a_local_one(done, run, storage, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    target = f"results/config/models/{CODI}/copra.json"
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        run.code / "Snakefile",
        "--cores",
        "2",
        target,
    ]
    # With another seed of hashes than the pods.
    with warm_copra(run.code / "src") as warm:
        environment = run.environment | warm
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=900)
    stored = storage.files("my-bucket", f"{PREFIX}models/{CODI}/")
    folder = tmp_path / "results" / "config" / "models" / CODI
    assert json.loads(stored["copra.json"]) == json.loads((folder / "copra.json").read_text())
    assert stored["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert not (folder / "rest.tar").exists()
