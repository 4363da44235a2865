"""copra run: run an experiment with Snakemake, one line per finished job."""

import shlex
import signal
import subprocess
import sys
from argparse import ArgumentParser, Namespace

from copra.commands.experiment import DEFAULT
from copra.experiment.shipped import config_file, snakefile


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "configs",
        nargs="*",
        help=f"config files, merged as snakemake --configfile does, or names of presets (none: {DEFAULT})",
    )
    parser.add_argument("--cores", default="all", help="number of cores to use (default: all)")
    parser.add_argument("--dry-run", action="store_true", help="print the jobs without running them")
    parser.add_argument(
        "--snakemake",
        default="",
        metavar="OPTIONS",
        help="more options of Snakemake, as in --snakemake='--profile profiles/slurm --keep-going'",
    )


def run(options: Namespace) -> None:
    configs = [str(config_file(name)) for name in options.configs or [str(DEFAULT)]]
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(snakefile()), "--configfile", *configs]
    command += ["--cores", options.cores, "--logger", "copra", *(["--dry-run"] if options.dry_run else [])]
    # A Ctrl-C reaches both: Snakemake ends its jobs, and this process waits for that.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(
            [*command, *shlex.split(options.snakemake)],
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        status = process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    if status:
        again = shlex.join(["copra", *sys.argv[1:]])
        print(f"Not finished. What is done is kept. To go on: {again}", file=sys.stderr)
        sys.exit(status if status > 0 else 128 - status)
