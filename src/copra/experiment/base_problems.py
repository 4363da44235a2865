"""Check of the bases of a config against their local files."""

from copra.experiment.config import Experiment
from copra.models.base_files import base_problem
from copra.utils.errors import CopraError


def check_bases(experiment: Experiment) -> None:
    """Check the local folders and files of all bases.

    Raises:
        CopraError: one line per base that cannot be used.
    """
    problems = [
        f"bases.{name}.{problem}"
        for name, base in experiment.bases.items()
        if (problem := base_problem(base))
    ]
    if problems:
        raise CopraError("\n".join(problems))
