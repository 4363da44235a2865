"""copra run: run an experiment with Snakemake, one line per finished job."""

import shlex
import signal
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from functools import reduce
from pathlib import Path
from typing import Any

from copra.commands.experiment import DEFAULT, merged
from copra.experiment.config import name_of, parse
from copra.experiment.quick import quick, stand_ins
from copra.experiment.shipped import config_file, snakefile
from copra.plan.surroundings import surroundings
from copra.utils.files import read_yaml, write_json


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "configs",
        nargs="*",
        help=f"config files, merged as snakemake --configfile does, or names of presets (none: {DEFAULT})",
    )
    parser.add_argument("--cores", default="all", help="number of cores to use (default: all)")
    parser.add_argument("--dry-run", action="store_true", help="print the jobs without running them")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="shrink the experiment to a minute or two, to see that it works; its numbers mean nothing",
    )
    parser.add_argument(
        "--snakemake",
        default="",
        metavar="OPTIONS",
        help="more options of Snakemake, as in --snakemake='--profile profiles/slurm --keep-going'",
    )


def run(options: Namespace) -> None:
    files = [config_file(name) for name in options.configs or [str(DEFAULT)]]
    if options.quick:
        config, name = reduce(merged, map(read_yaml, files)), name_of(str(files[0]))
        for manifest, made in stand_ins(config, name).items():
            # In a dry run too, which reads them.
            _snakemake(options, [_written(made)], manifest)
        files = [_written(quick(config, name))]
    elif not options.dry_run:
        for note in surroundings(parse(reduce(merged, map(read_yaml, files)))):
            print(f"note: {note}", file=sys.stderr)
    _snakemake(options, files, *(["--dry-run"] if options.dry_run else []))


def _written(config: dict[str, Any]) -> Path:
    """Write a config into the folder of its results, and return its path."""
    path = Path("results") / config["name"] / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, config)
    return path


def _snakemake(options: Namespace, configs: list[Path], *more: str) -> None:
    """Run Snakemake to its end; a failure ends this process with its status."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(snakefile()), *more]
    command += ["--configfile", *map(str, configs), "--cores", options.cores, "--logger", "copra"]
    command += shlex.split(options.snakemake)
    # A Ctrl-C reaches both: Snakemake ends its jobs, and this process waits for that.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(
            command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
        )
        status = process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    if status:
        again = shlex.join(["copra", *sys.argv[1:]])
        print(f"Not finished. What is done is kept. To go on: {again}", file=sys.stderr)
        sys.exit(status if status > 0 else 128 - status)
