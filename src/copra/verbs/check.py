"""copra check: check config files, and show their recipes and the lengths of their trainings."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from copra.errors import CopraError
from copra.files import read_yaml
from copra.forecast.budgets import budget_warnings
from copra.forecast.estimate import Estimate
from copra.forecast.lengths import length_warnings, training_lengths
from copra.recipes import training_notes
from copra.workflow import Workflow


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("configs", type=Path, nargs="+", help="config files")


def run(options: Namespace) -> None:
    for path in options.configs:
        workflow = Workflow(read_yaml(path), str(path))
        tree = workflow.tree
        estimate = Estimate(workflow, Path(workflow.folder), made=set())
        warnings = _budget_warnings(estimate, str(path))
        lengths = training_lengths(estimate)
        print(f"{path}: {len(tree.recipes)} recipes, {len(tree.nodes)} models")
        for line in [*(end.recipe for end in tree.recipes), *dict.fromkeys(map(str, lengths))]:
            print(f"  {line}")
        for note in training_notes(workflow.experiment, tree):
            print(f"  note: {note}")
        for warning in [*warnings, *length_warnings(lengths)]:
            print(f"  warning: {warning}")


def _budget_warnings(estimate: Estimate, source: str) -> list[str]:
    try:
        return budget_warnings(estimate)
    except CopraError as error:
        raise CopraError("\n".join(f"{source}: {line}" for line in str(error).split("\n"))) from None
