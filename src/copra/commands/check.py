"""copra check: check a config, and print its recipes and the lengths of their trainings."""

from argparse import ArgumentParser, Namespace
from itertools import chain
from pathlib import Path

from copra.commands.experiment import add_experiment, experiment_of
from copra.experiment.contrast_problems import contrast_notes
from copra.experiment.file_problems import check_files
from copra.experiment.plugins_used import plugin_lines
from copra.experiment.recipes import training_notes
from copra.plan.budgets import budget_warnings
from copra.plan.estimate import Estimate
from copra.plan.lengths import check_lengths, length_warnings, training_lengths
from copra.plan.surroundings import surroundings
from copra.plan.words import check_words
from copra.utils.errors import CopraError


def arguments(parser: ArgumentParser) -> None:
    add_experiment(parser, "config.yaml")


def run(options: Namespace) -> None:
    workflow, source = experiment_of(options)
    try:
        check_files(workflow.experiment)
        estimate = Estimate(workflow, options.results or Path(workflow.folder), cached=set())
        warnings = budget_warnings(estimate)
        lengths = training_lengths(estimate)
        check_lengths(lengths)
        check_words(estimate)
        around = surroundings(workflow.experiment)
    except CopraError as error:
        raise CopraError("\n".join(f"{source}: {line}" for line in str(error).split("\n"))) from None
    tree = workflow.tree
    print(f"{source}: {len(tree.recipes)} recipes, {len(tree.nodes)} models")
    for line in [*(end.recipe for end in tree.recipes), *dict.fromkeys(map(str, lengths))]:
        print(f"  {line}")
    for line in plugin_lines(workflow.experiment, tree):
        print(f"  {line}")
    notes = training_notes(workflow.experiment, tree), contrast_notes(workflow.experiment, tree), around
    for note in chain(*notes):
        print(f"  note: {note}")
    for warning in [*warnings, *length_warnings(lengths)]:
        print(f"  warning: {warning}")
