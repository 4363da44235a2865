"""Jobs of copra that need not import, in whichever environment tests run them.

A program named copra, which Snakemake's shells find first, asks copra's own server for a job. That takes over
what the server of a run would refuse: tests know that it makes no difference.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from copra.utils.forking import SERVE
from copra.utils.processes import token_of

KEY = "tests"
PROGRAM = """\
import sys
from copra.utils.forking import accepted, connect, follow

sys.argv[0] = "copra"
connection = connect({address!r})
assert connection is not None
assert accepted(connection, {key!r})
sys.exit(follow(connection))
"""


@contextmanager
def warm_copra(source: Path) -> Iterator[dict[str, str]]:
    """Variables for Snakemake, while the server runs; `source` is where it and the jobs import copra from."""
    with tempfile.TemporaryDirectory(prefix="copra-") as folder:
        address, program = Path(folder).name, Path(folder) / "copra"
        # The server ends with this process, which ends with the tests.
        owner = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        try:
            subprocess.run(
                [sys.executable, "-c", SERVE, address, token_of(owner.pid), KEY],
                env=os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=True,
            )
            (Path(folder) / "ask.py").write_text(PROGRAM.format(address=address, key=KEY))
            program.write_text(f'#!/bin/sh\nexec {sys.executable} {folder}/ask.py "$@"\n')
            program.chmod(0o755)
            # The workflow itself puts the installed copra first on PATH; bash reads this file after that.
            start = Path(folder) / "start"
            start.write_text(f'PATH="{folder}:$PATH"\n')
            yield {"BASH_ENV": str(start)}
        finally:
            owner.kill()
            owner.wait()
