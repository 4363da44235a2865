"""The server process that jobs are forked from (see `copra.utils.forking`).

It imports libraries, but only the code of copra that it needs itself, so that each job imports the current
code.
"""

import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import select
import signal
import socket
import sys
from typing import Any

from copra.utils.forking import (
    HANDED_ON,
    READY,
    circumstances,
    end_process,
    received,
    user_of,
)
from copra.utils.processes import token_of
from copra.utils.quiet import quiet_libraries

# Slowest imports first. transformers imports its submodules lazily, so they are listed too.
LIBRARIES = (
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
    "accelerate",
    "pandas",
    "pyarrow.parquet",
    "safetensors.torch",
    "transformers.optimization",
    "pydantic.fields",
    "pydantic.main",
    "pydantic.types",
    "pydantic.functional_validators",
    "pyarrow.dataset",
    "pyarrow.pandas_compat",
    "tqdm",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "scipy.stats",
)
PR_SET_PDEATHSIG = 1


def serve(address: str, token: str, key: str | None = None) -> int:
    """Serve at an abstract address until the process of the token is gone; return the exit status.

    The call returns at once in the caller, and the server continues as a process that nobody waits for. It
    also returns in a job that does not exit by itself. Commands with another key get no job; tests set the
    key.
    """
    key = key or circumstances()
    listener = _listen(address)
    if listener is None:
        return 0  # another command was quicker
    pid = int(token.split(".")[0])
    owner = os.pidfd_open(pid)
    if token_of(pid) != token or os.fork():
        return 0
    # Ctrl-C reaches all processes of a terminal. Keepers are never waited for.
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    poll = select.poll()
    poll.register(owner, select.POLLIN)
    _import_libraries(poll)
    listeners = [each for each in (listener, _listen(address + READY)) if each is not None]
    for each in listeners:
        poll.register(each, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if owner in ready:
            os._exit(0)
        for each in listeners:
            if each.fileno() in ready:
                connection, _ = each.accept()
                if user_of(connection) == os.getuid() and os.fork() == 0:
                    for other in listeners:
                        other.close()
                    os.close(owner)
                    return _keep(connection, key, interrupted)
                connection.close()


def _listen(address: str) -> socket.socket | None:
    """Return a socket that listens at an abstract address; None if another one does."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(f"\0{address}")
    except OSError:
        listener.close()
        return None
    listener.listen(socket.SOMAXCONN)
    return listener


def _import_libraries(poll: select.poll) -> None:
    """Import all libraries; end this process if the run ends meanwhile."""
    # With this, torch counts GPUs without CUDA, which must not be initialized before a fork.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    quiet_libraries()
    for name in LIBRARIES:
        importlib.import_module(name)
        if poll.poll(0):
            os._exit(0)
    # Garbage collection of these objects in a job would copy their memory pages.
    gc.collect()
    gc.freeze()


def _keep(connection: socket.socket, key: str, interrupted: Any) -> int:
    """Start a job, send its exit status to the command, and exit."""
    # Ignored here: a signal to the whole process group reaches the job through its command.
    before: dict[int, Any] = {number: signal.signal(number, signal.SIG_IGN) for number in HANDED_ON}
    before[signal.SIGINT] = interrupted
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        size, streams, _, _ = socket.recv_fds(connection, 4, 3)
        request = json.loads(received(connection, int.from_bytes(size, "big")) or "{}")
        if request.get("key") != key or importlib.import_module("torch").cuda._is_in_bad_fork():
            connection.sendall(b"n")
            os._exit(0)
        connection.sendall(b"y")
        if connection.recv(1) != b"!":
            os._exit(0)
    except OSError:
        os._exit(0)
    keeper = os.getpid()
    pid = os.fork()
    if pid == 0:
        connection.close()
        return _work(request, streams, keeper, before)
    job = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(job, select.POLLIN)
    poll.register(connection, select.POLLIN)
    with contextlib.suppress(OSError):
        socket.send_fds(connection, [b"j"], [job])
    if job not in {descriptor for descriptor, _ in poll.poll()}:
        # Only the connection is ready: the command is gone.
        signal.pidfd_send_signal(job, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):
        connection.sendall(status.to_bytes(4, "big"))
    os._exit(0)


def _work(request: dict[str, Any], streams: list[int], keeper: int, handlers: dict[int, Any]) -> int:
    """Run as the job that a command requests; return the exit status."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != keeper:
        os._exit(1)
    os.setpgid(0, 0)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv, sys.path[:] = request["arguments"], request["path"]
    # Python reseeds its random numbers in a fork; numpy does not.
    importlib.import_module("numpy").random.seed()
    for name in [name for name in sys.modules if name.split(".")[0] == "copra"]:
        del sys.modules[name]
    return end_process(importlib.import_module("copra.cli").main(sys.argv[1:]))
