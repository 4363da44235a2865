"""copra check: check a config, and show the recipes that it describes."""

from argparse import ArgumentParser, Namespace

from copra.errors import CopraError
from copra.file_faults import check_files
from copra.forecast.budgets import budget_warnings
from copra.forecast.estimate import Estimate
from copra.verbs.experiment import add_experiment, experiment_of


def arguments(parser: ArgumentParser) -> None:
    add_experiment(parser, "config.yaml")


def run(options: Namespace) -> None:
    workflow, source = experiment_of(options)
    try:
        check_files(workflow.experiment)
        warnings = budget_warnings(Estimate(workflow, options.results, made=set()))
    except CopraError as error:
        raise CopraError("\n".join(f"{source}: {line}" for line in str(error).split("\n"))) from None
    tree = workflow.tree
    print(f"{source}: {len(tree.recipes)} recipes, {len(tree.nodes)} models")
    for end in tree.recipes:
        print(f"  {end.recipe}")
    for warning in warnings:
        print(f"  warning: {warning}")
