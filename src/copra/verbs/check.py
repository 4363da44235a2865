"""copra check: check a config, and show the recipes that it describes and the lengths of their trainings."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from copra.errors import CopraError
from copra.file_faults import check_files
from copra.forecast.budgets import budget_warnings
from copra.forecast.estimate import Estimate
from copra.forecast.lengths import check_warmups, length_warnings, training_lengths
from copra.recipes import training_notes
from copra.verbs.experiment import add_experiment, experiment_of


def arguments(parser: ArgumentParser) -> None:
    add_experiment(parser, "config.yaml")


def run(options: Namespace) -> None:
    workflow, source = experiment_of(options)
    try:
        check_files(workflow.experiment)
        estimate = Estimate(workflow, options.results or Path(workflow.folder), made=set())
        warnings = budget_warnings(estimate)
        lengths = training_lengths(estimate)
        check_warmups(lengths)
    except CopraError as error:
        raise CopraError("\n".join(f"{source}: {line}" for line in str(error).split("\n"))) from None
    tree = workflow.tree
    print(f"{source}: {len(tree.recipes)} recipes, {len(tree.nodes)} models")
    for line in [*(end.recipe for end in tree.recipes), *dict.fromkeys(map(str, lengths))]:
        print(f"  {line}")
    for note in training_notes(workflow.experiment, tree):
        print(f"  note: {note}")
    for warning in [*warnings, *length_warnings(lengths)]:
        print(f"  warning: {warning}")
