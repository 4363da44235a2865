"""What a run on Kubernetes needs, all of it on loopback: the plugins, an S3, and a cluster."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from object_storage import ObjectStorage, serving

from helpers.copied_code import ROOT, copy_code
from helpers.plugins import fetched, plugin_folders
from helpers.warm import warm_copra

LOCK = ROOT / "requirements-kubernetes.lock"
MODULES = ("snakemake_executor_plugin_kubernetes", "snakemake_storage_plugin_s3")


@pytest.fixture(scope="session")
def cache(request) -> Path:
    return request.config.cache.mkdir("snakemake-plugins")


@pytest.fixture(scope="session")
def plugins(cache) -> list[str]:
    """Folders from which the plugins can be imported."""
    return plugin_folders(MODULES, LOCK, cache)


@pytest.fixture(scope="session")
def code(tmp_path_factory) -> Path:
    """A copy of the code. Snakemake starts in it, since pods get those sources that lie below its folder."""
    return copy_code(tmp_path_factory.mktemp("code"))


@pytest.fixture(scope="module")
def storage():
    """An empty object storage."""
    with serving(ObjectStorage()) as server:
        yield server


@pytest.fixture(scope="session")
def environment(code, plugins) -> Iterator[dict[str, str]]:
    """The variables of a process that finds Python, copra and the plugins, and nothing of this machine's.

    copra starts warm.
    """
    with warm_copra(code / "src") as warm:
        yield warm | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.defpath]),
            "PYTHONPATH": os.pathsep.join([str(code / "src"), *plugins]),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }


@pytest.fixture(scope="module")
def cluster(environment, cache, tmp_path_factory):
    """A cluster whose containers have what the Dockerfile sets: copra, and where pip finds the plugin."""
    wheels = fetched(LOCK, cache, ["download", "--dest"], "snakemake-storage-plugin")
    folder = tmp_path_factory.mktemp("cluster")
    image = environment | _variables_of_image() | {"PIP_FIND_LINKS": str(wheels), "HOME": str(folder)}
    with serving(Cluster(folder, image)) as server:
        yield server
        server.stop()


def _variables_of_image() -> dict[str, str]:
    """What the ENV lines of the Dockerfile say."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    words = [word for line in lines if line.startswith("ENV ") for word in line.split()[1:]]
    return dict(word.split("=", 1) for word in words)
