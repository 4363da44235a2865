"""copra check: check config files, and show the recipes that they describe."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from copra.files import read_yaml
from copra.workflow import Workflow


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("configs", type=Path, nargs="+", help="config files")


def run(options: Namespace) -> None:
    for path in options.configs:
        tree = Workflow(read_yaml(path), str(path)).tree
        print(f"{path}: {len(tree.recipes)} recipes, {len(tree.nodes)} models")
        for end in tree.recipes:
            print(f"  {end.recipe}")
