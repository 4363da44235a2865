"""copra clean on a finished run: it knows all that the rules make, and nothing else goes."""

import os
import subprocess
import sys

from test_invalidation import NO_COT

RECIPES = [["cot"], ["cot", "drop-1", "groups-1", "coconut"]]
NO_LONGER = {
    f"models/{NO_COT}",
    f"evaluations/{NO_COT}",
    *(f"logs/{verb}/{NO_COT}.log" for verb in ("train", "evaluate")),
    *(f"benchmarks/{verb}/{NO_COT}.tsv" for verb in ("train", "evaluate")),
}


def clean(run, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "copra.cli", "clean", run.folder / "config.yaml", *arguments],
        cwd=run.folder,
        env=os.environ | {"PYTHONPATH": str(run.code / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_clean_keeps_all_that_the_rules_make_and_takes_what_they_no_longer_do(run):
    assert clean(run) == "results/config: nothing is left over.\n"
    run.configure(recipes=RECIPES)
    printed = clean(run)
    listed = {line.split()[-1] for line in printed.splitlines() if "  results/config/" in line}
    assert listed == {f"results/config/{path}" for path in NO_LONGER}
    would_run = run.would_run()
    clean(run, "--delete")
    assert not (run.results / "models" / NO_COT).exists()
    assert run.would_run() == would_run
    assert clean(run) == "results/config: nothing is left over.\n"
