"""Seconds and memory of a dry run as the number of recipes grows.

    python benchmarks/scale.py [RECIPES ...]

For each number it writes a config of so many recipes, ten jobs a recipe and nothing built. It has Snakemake
plan that (`snakemake -n -q`, which says nothing), and plan and count it (`snakemake -n -q rules host`), and
prints what it took. Other processes on the machine lengthen wall-clock time and CPU time too: the loop that
is timed first tells how much.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PRUNINGS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipes", type=int, nargs="*", default=[100, 300, 1000])
    print(f"10 million turns of a loop in Python: {_loop():.2f} CPU s\n")
    print("| recipes | jobs | planned: wall s | CPU s | peak MiB | and counted: wall s | CPU s | peak MiB |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    sizes, planned = [], []
    for recipes in parser.parse_args().recipes:
        experiment = config(recipes)
        _, *plan = dry_run(experiment, "-q")
        jobs, *count = dry_run(experiment, "-q", "rules", "host")
        sizes.append(jobs)
        planned.append(plan[1])
        cells = [f"{wall:.1f} | {cpu:.1f} | {peak:.0f}" for wall, cpu, peak in (plan, count)]
        print(f"| {recipes} | {jobs} | {' | '.join(cells)} |", flush=True)
    for index in range(1, len(sizes)):
        more = 1000 * (planned[index] - planned[index - 1]) / (sizes[index] - sizes[index - 1])
        print(f"{sizes[index - 1]} to {sizes[index]} jobs: {more:.2f} CPU ms a job more")


def config(recipes: int) -> dict[str, Any]:
    """Return an experiment of so many recipes.

    It has ten prunings, and after each a tenth as many Coconuts of five stages, each evaluated.
    """
    prunings = {
        f"layers-{count}": {
            "kind": "prune",
            "unit": "layers",
            "metric": "angular",
            "budget": {"count": count},
        }
        for count in range(1, PRUNINGS + 1)
    }
    methods = {
        f"coconut-{number}": {"kind": "coconut", "max_latent_stage": 3, "training": {"steps": number + 1}}
        for number in range(recipes // PRUNINGS)
    }
    sizes = {
        "hidden_size": 16,
        "layers": 12,
        "heads": 4,
        "intermediate_size": 32,
        "max_position_embeddings": 256,
    }
    return {
        "task": "sums",
        "tasks": {"sums": {"kind": "word_sums"}},
        "base": "llama",
        "bases": {"llama": {"from_scratch": sizes}},
        "steps": {"cot": {"kind": "cot", "training": {"steps": 1}}, **prunings, **methods},
        "recipes": [{"start": ["cot"], "prunings": list(prunings), "methods": list(methods)}],
        "evaluation": {"stages": True},
        "latency": None,
    }


def dry_run(experiment: dict[str, Any], *quiet: str) -> tuple[int, float, float, float]:
    """Jobs (0 where they are not told), wall-clock and CPU seconds, and peak memory in MiB."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "-n", *quiet]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.yaml").write_text(yaml.safe_dump(experiment))
        with (Path(folder) / "printed").open("w+") as printed:
            began = time.perf_counter()
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
                stdout=printed,
                stderr=subprocess.STDOUT,
            )
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - began
            printed.seek(0)
            text = printed.read()
    if status:
        sys.exit(text)
    total = re.search(r"^total +(\d+)$", text, re.MULTILINE)
    return int(total[1]) if total else 0, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def _loop() -> float:
    began, total = time.process_time(), 0
    for number in range(10_000_000):
        total += number
    return time.process_time() - began


if __name__ == "__main__":
    main()
