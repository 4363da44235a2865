"""Faults of the bases of a config, as far as their local files tell."""

from copra.experiment.config import Experiment
from copra.models.base_files import base_fault
from copra.utils.errors import CopraError


def check_bases(experiment: Experiment) -> None:
    """Check the local folders and files of all bases.

    Raises:
        CopraError: a line for each base that cannot be used.
    """
    faults = [
        f"bases.{name}.{fault}" for name, base in experiment.bases.items() if (fault := base_fault(base))
    ]
    if faults:
        raise CopraError("\n".join(faults))
