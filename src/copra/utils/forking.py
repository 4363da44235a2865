"""Jobs of a local Snakemake as forks of a process that has imported torch and transformers.

Those imports take 5 s of CPU time or more per process, longer than the work of many jobs. The first job that
needs them starts the server (`copra.utils.forkserver`), which forks a keeper per requesting command, and the
keeper forks the job:

    Snakemake - bash - copra    the command: requests a job, forwards signals, and exits as the job did
    server - keeper - job       the keeper waits for the job, and kills it when the command is gone

A job has the arguments, streams, working folder and environment of its command. Everything else must be equal
for command and server (see `circumstances`). If it differs, or if anything fails before the job has started,
the command does the work in its own process. The server ends with its Snakemake. It listens at an abstract
address, which leaves no file behind.
"""

import atexit
import contextlib
import hashlib
import json
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
# Suffix of the second address, at which a server listens after its imports.
READY = "-ready"
# Variables that a shell changes while it runs.
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
# Files whose code a server holds from its start on.
SOURCES = tuple(str(Path(__file__).with_name(name)) for name in ("forking.py", "forkserver.py"))
SERVE = "import sys; from copra.utils.forkserver import serve; sys.exit(serve(*sys.argv[1:]))"


# Snakemake's part.


def fork_jobs(workflow: Any) -> None:
    """Make the jobs of a local run of Snakemake forks, unless COPRA_FORKSERVER=off.

    Does nothing if jobs run elsewhere, or in their own images or environments.
    """
    if os.environ.get(VARIABLE) == OFF:
        return
    os.environ.pop(VARIABLE, None)
    elsewhere = workflow.non_local_exec or workflow.deployment_settings.deployment_method
    if workflow.is_main_process and not elsewhere and sys.platform == "linux":
        os.environ[VARIABLE] = token_of(os.getpid())
        _measure_forks()


def _measure_forks() -> None:
    """Patch Snakemake's benchmarks to include forked jobs, which do not descend from the measured shell."""
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
    """Return the processes that a process holds by a descriptor, as a command holds its job."""
    held = []
    with contextlib.suppress(OSError):
        for file in Path(f"/proc/{pid}/fdinfo").iterdir():
            lines = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
            if int(lines.get("Pid", -1)) > 0:
                held.append(int(lines["Pid"]))
    return held


# The command's part.


def run_in_fork(computes: bool) -> int | None:
    """Run the command of this process as a forked job; return its exit status.

    None if no server accepts it: this process then does the work itself. Only a command that computes with
    torch starts a server; the others finish sooner than a server starts.
    """
    token = os.environ.get(VARIABLE, OFF)
    if token == OFF or "WORLD_SIZE" in os.environ:
        return None
    address = f"copra-forkserver-{os.getuid()}-{token}"
    try:
        connection = connect(address + ("" if computes else READY))
        if connection is None and computes:
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
    """Return a hash over all that a fork cannot take over from a command; it must equal the server's."""
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
    """Return a connection to this user's server at an abstract address, or None."""
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
    """Return the user id of the process at the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", credentials)[1]


def accepted(connection: socket.socket, key: str) -> bool:
    """Request a job from the server at the other end; False if it refuses.

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
    # The server may still be importing.
    connection.settimeout(SECONDS_TO_ANSWER)
    socket.send_fds(connection, [len(text).to_bytes(4, "big")], [0, 1, 2])
    connection.sendall(text)
    if connection.recv(1) != b"y":
        return False
    connection.settimeout(None)
    connection.sendall(b"!")
    return True


def follow(connection: socket.socket) -> int:
    """Wait for the accepted job; return its exit status.

    A signal that ended the job ends this process too; SIGKILL if its keeper is gone.
    """
    answer = b""
    with contextlib.suppress(OSError):
        _, jobs, _, _ = socket.recv_fds(connection, 1, 1)
        if jobs:
            _hand_on_signals(jobs[0])
            answer = received(connection, 4)
    code = os.waitstatus_to_exitcode(int.from_bytes(answer, "big") if answer else signal.SIGKILL)
    if code < 0:
        # A core dump of this process would not help to debug the job.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def _hand_on_signals(job: int) -> None:
    """Forward the signals to this process to the job, a process file descriptor."""

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
    """Return `size` bytes, or none if the other end closes before."""
    parts = b""
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            return b""
        parts += part
    return parts


def end_process(status: int) -> NoReturn:
    """End this process gracefully, but without module teardown, which takes 0.4 s of CPU time with torch."""
    threading._shutdown()  # type: ignore[attr-defined]  # private, and so not in the stubs
    atexit._run_exitfuncs()
    # The reader of the output may have closed it.
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    os._exit(status)
