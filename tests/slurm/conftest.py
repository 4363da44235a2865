"""A private SLURM: one node with two fake GPUs, on loopback, its files in a temporary folder.

It needs Debian's packages slurmctld, slurmd, slurm-client and munge, and root, who may start jobs. Nothing
is written to /etc, no accounting runs, and all ends with the tests.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from copra.utils.gpu import gpus_of_machine
from helpers.plugins import plugin_folders

LOCK = Path(__file__).parents[2] / "requirements-slurm.lock"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "setpriv")
# Two devices that every machine has. SLURM numbers them 0 and 1, and does not open them.
GPUS = ("/dev/null", "/dev/zero")
SECONDS_TO_START = 60

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/node
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# Finished jobs are asked for after the run.
MinJobAge=3600
# More processors than the machine may have, so that jobs wait for GPUs and not for them.
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=6 RealMemory=6000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=short Nodes={host} Default=YES MaxTime=60 State=UP
PartitionName=other Nodes={host} MaxTime=60 State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """A running SLURM, for programs that are started with its environment."""

    environment: dict[str, str]

    def ask(self, *command: str) -> str:
        """What one of SLURM's programs prints."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    def jobs(self) -> list[dict[str, str]]:
        """All jobs, finished ones too, with all that SLURM knows of them: JobId, Comment, TRES, ..."""
        lines = self.ask("scontrol", "--oneliner", "show", "job").splitlines()
        return [
            dict(field.split("=", 1) for field in line.split() if "=" in field)
            for line in lines
            if line.startswith("JobId=")
        ]


@pytest.fixture(scope="session")
def slurm(request) -> Iterator[Slurm]:
    """A SLURM of its own, with the executor plugin importable."""
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing:
        pytest.skip(f"SLURM is not installed here (no {', '.join(missing)})")
    if os.geteuid() != 0:
        pytest.skip("a SLURM of our own needs root")
    if gpus_of_machine():
        pytest.skip("this machine has GPUs, which the fake ones would be taken for")
    cache = request.config.cache.mkdir("snakemake-plugins")
    plugin = plugin_folders(["snakemake_executor_plugin_slurm"], LOCK, cache)
    # Not pytest's folder: the path of a socket must be short.
    with (
        tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        ExitStack() as daemons,
    ):
        yield _start(Path(folder), plugin, daemons)


def _start(folder: Path, plugin: list[str], daemons: ExitStack) -> Slurm:
    """Start munged, slurmctld and slurmd; `daemons` stops them."""
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    for name in ("controller", "node", "bin"):
        (folder / name).mkdir()
    host = socket.gethostname().split(".")[0]
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(folder=folder, host=host, gpus=len(GPUS), ports=_free_ports(2))
    )
    (folder / "gres.conf").write_text(
        f"NodeName={host} Name=gpu File={','.join(GPUS)} Flags=nvidia_gpu_env\n"
    )
    # Snakemake's plugin takes SLURM's variables from the srun that it starts within a job, SLURM_CONF too.
    srun = folder / "bin" / "srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={configuration} exec {shutil.which("srun")} "$@"\n')
    srun.chmod(0o755)
    others = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "CUDA"))}
    slurm = Slurm(
        others
        | {
            "SLURM_CONF": str(configuration),
            "PATH": f"{folder}/bin:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([*plugin, os.environ.get("PYTHONPATH", "")]),
        }
    )
    munge = ["--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key"]
    munge += [f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munged.seed"]
    for command, ready in (
        (["munged", *munge, f"--log-file={folder}/munged.log"], (folder / "munge.socket").is_socket),
        (["slurmctld", "-D"], lambda: "UP" in _answer(slurm, "scontrol", "ping")),
        (["slurmd", "-D"], lambda: _answer(slurm, "sinfo", "--noheader", "--format=%T").startswith("idle")),
    ):
        daemons.enter_context(_daemon(command, slurm, folder / f"{command[0]}.out", ready))
    daemons.callback(_cancel_jobs, slurm)
    return slurm


@contextmanager
def _daemon(command: list[str], slurm: Slurm, log: Path, ready: Callable[[], bool]) -> Iterator[None]:
    """A daemon in the foreground; it ends with the context, or with this process should that be killed."""
    with log.open("w") as output:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *command],
            env=slurm.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        end = time.monotonic() + SECONDS_TO_START
        while not ready():
            if process.poll() is not None or time.monotonic() > end:
                pytest.fail(f"{command[0]} did not start:\n{log.read_text()}")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answer(slurm: Slurm, *command: str) -> str:
    """What one of SLURM's programs prints, or nothing where it fails."""
    try:
        return slurm.ask(*command)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return ""


def _cancel_jobs(slurm: Slurm) -> None:
    """End what a failed test left running, while there are daemons to end it."""
    end = time.monotonic() + SECONDS_TO_START
    _answer(slurm, "scancel", "--user=root")
    while _answer(slurm, "squeue", "--noheader") and time.monotonic() < end:
        time.sleep(0.5)


def _free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens at."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
