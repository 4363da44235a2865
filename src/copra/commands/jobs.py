"""copra jobs: list the jobs of an experiment, by the names that other commands take."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from copra.commands.experiment import workflow_of
from copra.experiment.command_lines import RULES


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "configs", type=Path, nargs="+", help="config files, merged as snakemake --configfile merges them"
    )
    parser.add_argument("--of", choices=RULES, metavar="COMMAND", help="list only the names of its jobs")


def run(options: Namespace) -> None:
    flow = workflow_of(options.configs)
    for command, rule in RULES.items():
        for name in rule.names(flow):
            if options.of is None:
                print(f"{command} {name}".strip())
            elif options.of == command:
                print(name)
