"""copra check: check config files, and show the recipes that they describe."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from copra.errors import CopraError
from copra.files import read_yaml
from copra.forecast.budgets import budget_warnings
from copra.forecast.estimate import Estimate
from copra.workflow import Workflow


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("configs", type=Path, nargs="+", help="config files")


def run(options: Namespace) -> None:
    for path in options.configs:
        workflow = Workflow(read_yaml(path), str(path))
        tree = workflow.tree
        warnings = _budget_warnings(workflow, str(path))
        print(f"{path}: {len(tree.recipes)} recipes, {len(tree.nodes)} models")
        for end in tree.recipes:
            print(f"  {end.recipe}")
        for warning in warnings:
            print(f"  warning: {warning}")


def _budget_warnings(workflow: Workflow, source: str) -> list[str]:
    try:
        return budget_warnings(Estimate(workflow, Path(workflow.folder), made=set()))
    except CopraError as error:
        raise CopraError("\n".join(f"{source}: {line}" for line in str(error).split("\n"))) from None
