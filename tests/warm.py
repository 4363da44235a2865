"""Jobs of copra that need not import: most of a tiny job's time is the import of torch and transformers.

A server imports all once. A program named copra, which Snakemake's shells find first, has it fork; the fork
runs the verb in the program's folder, with its environment and streams. A signal to the program reaches the
fork, which does not outlive it.
"""

import atexit
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# What takes long: some of it copra imports within functions, or transformers once it is asked for it.
LIBRARIES = (
    "accelerate",
    "datasets",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "matplotlib.pyplot",
    "peft",
    "scipy.stats",
    "torch.distributed.fsdp",
    "torchao.quantization",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
)


@contextmanager
def warm_copra(source: Path, *, libraries_only: bool = False) -> Iterator[dict[str, str]]:
    """Variables for Snakemake, while the server runs; `source` is where that imports copra from.

    With `libraries_only` each job imports for itself what it needs of copra.
    """
    # Not pytest's folder: the path of a socket must be short.
    with (
        tempfile.TemporaryDirectory(prefix="copra-", dir="/tmp") as folder,
        (Path(folder) / "errors").open("w") as errors,
    ):
        address, program = Path(folder) / "socket", Path(folder) / "copra"
        server = subprocess.Popen(
            [sys.executable, __file__, "serve", address, str(libraries_only)],
            env=os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        try:
            assert server.stdout.readline() == b"ready\n", Path(errors.name).read_text()
            program.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {__file__} ask {address} "$@"\n')
            program.chmod(0o755)
            # The workflow itself puts the installed copra first on PATH; bash reads this file after that.
            start = Path(folder) / "start"
            start.write_text(f'PATH="{folder}:$PATH"\n')
            yield {"BASH_ENV": str(start)}
        finally:
            server.kill()
            server.wait()


def ask(address: str, arguments: list[str]) -> int:
    """Have the server run a verb; returns the exit status."""
    what = {"arguments": arguments, "folder": str(Path.cwd()), "environment": dict(os.environ)}
    request = json.dumps(what).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [len(request).to_bytes(4, "big")], [0, 1, 2])
        connection.sendall(request)
        pid = int.from_bytes(connection.recv(4), "big")
        for number in (signal.SIGTERM, signal.SIGINT) if pid else ():
            signal.signal(number, lambda number, _: _tell(pid, number))
        status = connection.recv(1)
    return status[0] if status else 128 + signal.SIGKILL


def _tell(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def serve(address: str, libraries_only: bool) -> None:
    """Import all, then fork for whoever asks, until the tests end and with them standard input."""
    for name in LIBRARIES:
        importlib.import_module(name)
    if not libraries_only:
        import copra

        for module in pkgutil.walk_packages(copra.__path__, "copra."):
            importlib.import_module(module.name)
    # Nobody waits for forks.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([sys.stdin, listener], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                work(connection)
            connection.close()


def work(connection: socket.socket) -> None:
    """Be the process that the connection asks for, to its end."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        size, streams, _, _ = socket.recv_fds(connection, 4, 3)
        request = b""
        while len(request) < int.from_bytes(size, "big"):
            part = connection.recv(1 << 16)
            if not part:  # nobody asks any more
                os._exit(1)
            request += part
        what = json.loads(request)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(what["folder"])
        os.environ.clear()
        os.environ.update(what["environment"])
        sys.argv = ["copra", *what["arguments"]]
        connection.sendall(os.getpid().to_bytes(4, "big"))
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        status = importlib.import_module("copra.cli").main(what["arguments"])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(bytes([status]))
    os._exit(status)


def _end_with(connection: socket.socket) -> None:
    """End as soon as the program that asked is gone."""
    if not connection.recv(1):
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], sys.argv[3] == "True")
    else:
        sys.exit(ask(sys.argv[2], sys.argv[3:]))
