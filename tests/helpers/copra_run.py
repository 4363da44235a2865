"""`copra run` in the folder of a run."""

import subprocess
import sys


def copra_run(run, *arguments, status=0, seconds=600):
    """Run `copra run` in the folder of a run with its code and environment; return what it printed."""
    environment = run.command()["env"]
    done = subprocess.run(
        [sys.executable, "-m", "copra.cli", "run", "--cores", "2", *arguments],
        cwd=run.folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout, done.stderr
