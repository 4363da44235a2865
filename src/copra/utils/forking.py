"""Jobs of a local Snakemake as forks of a process that has imported torch and transformers.

Those imports take 5 s of a CPU and more a process, longer than the work of many jobs. The first job that
needs them starts the server (`copra.utils.forkserver`), which forks a keeper for each command that asks, and
the keeper forks the job:

    Snakemake - bash - copra    the command: asks, hands signals on, and ends as the job ended
    server - keeper - job       the keeper waits for the job, and kills it when the command is gone

A job has the arguments, the streams, the folder and the environment of its command. All else must be the
same for command and server (see `circumstances`): where it is not, or where anything fails before the job has
begun, the command does the work in its own process. The server ends with its Snakemake. It listens at an
abstract address, which leaves no file behind.
"""

import atexit
import contextlib
import hashlib
import json
import logging
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from copra.utils.processes import token_of

VARIABLE = "COPRA_FORKSERVER"
OFF = "off"
# Verbs that import torch and transformers. The others are quicker alone than a server is to start.
HEAVY = frozenset(
    ("base", "score", "curve", "prune", "train", "quantize", "evaluate", "sweep", "lens", "latency")
)
# Added to its address: where a server listens once it need not import any more.
READY = "-ready"
# What a shell changes as it goes.
UNLIKE = frozenset(("_", "SHLVL", "PWD", "OLDPWD"))
HANDED_ON = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
SECONDS_TO_ANSWER = 120
# Servers hold these as they were when they started.
SOURCES = tuple(str(Path(__file__).with_name(name)) for name in ("forking.py", "forkserver.py"))
SERVE = "import sys; from copra.utils.forkserver import serve; sys.exit(serve(*sys.argv[1:]))"


# Snakemake's part.


def fork_jobs(workflow: Any) -> None:
    """Let the jobs of a local run of Snakemake be forks, unless the user said no (COPRA_FORKSERVER=off).

    Not where jobs run elsewhere, or here in images or environments of their own.
    """
    if os.environ.get(VARIABLE) == OFF:
        return
    os.environ.pop(VARIABLE, None)
    elsewhere = workflow.non_local_exec or workflow.deployment_settings.deployment_method
    if workflow.is_main_process and not elsewhere and sys.platform == "linux":
        os.environ[VARIABLE] = token_of(os.getpid())
        _measure_forks()


def _measure_forks() -> None:
    """Let benchmarks count jobs that are forks, which are no descendants of the shell that is measured."""
    from psutil import Process
    from snakemake import benchmark

    class WithForks(Process):
        def children(self, recursive: bool = False) -> list[Process]:
            found = super().children(recursive)
            jobs = [Process(pid) for each in (self, *found) for pid in _held_by(each.pid)]
            jobs += [child for job in jobs for child in job.children(recursive)]
            return list({each.pid: each for each in (*found, *jobs)}.values())

    class Timer(benchmark.BenchmarkTimer):
        def __init__(self, pid: int, *arguments: Any, **options: Any):
            super().__init__(pid, *arguments, **options)
            self.main = WithForks(pid)

    benchmark.BenchmarkTimer = Timer


def _held_by(pid: int) -> list[int]:
    """The processes that a process holds by a descriptor, as a command holds its job."""
    held = []
    with contextlib.suppress(OSError):
        for file in Path(f"/proc/{pid}/fdinfo").iterdir():
            lines = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
            if int(lines.get("Pid", -1)) > 0:
                held.append(int(lines["Pid"]))
    return held


# The command's part.


def run_in_fork(verb: str) -> int | None:
    """Have a job do what this process was started for; returns its exit status.

    None where there is no server for it: this process then does the work itself.
    """
    token = os.environ.get(VARIABLE, OFF)
    if token == OFF or "WORLD_SIZE" in os.environ:
        return None
    address = f"copra-forkserver-{os.getuid()}-{token}"
    try:
        connection = connect(address + ("" if verb in HEAVY else READY))
        if connection is None and verb in HEAVY:
            null = subprocess.DEVNULL
            command = [sys.executable, "-c", SERVE, address, token]
            subprocess.run(command, cwd="/", stdin=null, stdout=null, stderr=null)
            connection = connect(address)
        if connection is None:
            return None
        if not accepted(connection, circumstances()):
            return None
    except OSError:
        return None
    return follow(connection)


def circumstances() -> str:
    """A hash over all that a fork cannot take over from a command: the server's must be the same."""
    status = Path("/proc/self/status").read_text().splitlines()
    named = ("Umask", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "CapEff", "Seccomp", "Cpus_allowed_list")
    # The first is the folder of the program, which a job takes over.
    folders = sys.path if sys.flags.safe_path else sys.path[1:]
    found = [
        [[each, _changed(each)] for each in (*SOURCES, *folders)],
        [sys.executable, sys.version, sys.prefix, list(sys.flags), sys.warnoptions, sorted(sys._xoptions)],
        {name: value for name, value in os.environ.items() if name not in UNLIKE},
        [line for line in status if line.split(":")[0] in named],
        Path("/proc/self/limits").read_text(),
        Path("/proc/self/cgroup").read_text(),
        sorted(str(each.readlink()) for each in Path("/proc/self/ns").iterdir()),
        [Path("/").stat().st_dev, Path("/").stat().st_ino],
        [os.getsid(0), os.getpriority(os.PRIO_PROCESS, 0)],
    ]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _changed(path: str) -> int | None:
    return Path(path).stat().st_mtime_ns if Path(path).exists() else None


def connect(address: str) -> socket.socket | None:
    """A connection to the server of this user at an abstract address, if there is one."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(f"\0{address}")
    except OSError:
        connection.close()
        return None
    if user_of(connection) != os.getuid():
        connection.close()
        return None
    return connection


def user_of(connection: socket.socket) -> int:
    """Whose process is at the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", credentials)[1]


def accepted(connection: socket.socket, key: str) -> bool:
    """Ask the server at the other end for a job; False where it will not start one.

    Raises:
        OSError: the server did not answer, and will not start a job either.
    """
    request = {
        "key": key,
        "arguments": sys.argv,
        "path": sys.path,
        "folder": str(Path.cwd()),
        "environment": dict(os.environ),
    }
    text = json.dumps(request).encode()
    # It may be importing still.
    connection.settimeout(SECONDS_TO_ANSWER)
    socket.send_fds(connection, [len(text).to_bytes(4, "big")], [0, 1, 2])
    connection.sendall(text)
    if connection.recv(1) != b"y":
        return False
    connection.settimeout(None)
    connection.sendall(b"!")
    return True


def follow(connection: socket.socket) -> int:
    """Wait for the job that was accepted; returns its exit status.

    A signal that ended the job ends this process too: SIGKILL where its keeper is gone.
    """
    answer = b""
    with contextlib.suppress(OSError):
        _, jobs, _, _ = socket.recv_fds(connection, 1, 1)
        if jobs:
            _hand_on_signals(jobs[0])
            answer = received(connection, 4)
    code = os.waitstatus_to_exitcode(int.from_bytes(answer, "big") if answer else signal.SIGKILL)
    if code < 0:
        # A second core would be of this process, which has nothing to show.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def _hand_on_signals(job: int) -> None:
    """From now on give the signals that this process gets to the job, a file descriptor."""

    def tell(number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(job, number)

    def pause(number: int, frame: FrameType | None) -> None:
        tell(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        tell(signal.SIGCONT)

    for number in HANDED_ON:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: tell(number))
    signal.signal(signal.SIGTSTP, pause)


def received(connection: socket.socket, size: int) -> bytes:
    """So many bytes, or none if the other end is gone before."""
    parts = b""
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            return b""
        parts += part
    return parts


def end_process(status: int) -> NoReturn:
    """End this process in order, but do not take its modules apart: with torch that takes 0.4 s of a CPU."""
    threading._shutdown()
    atexit._run_exitfuncs()
    # Whoever read it may have seen enough.
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    os._exit(status)


def quiet_libraries() -> None:
    """Settings that count when libraries are imported."""
    # The tokenizers library warns when it meets a fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # transformers loads torchao where it is there, which then warns of kernels for GPUs that are not.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
