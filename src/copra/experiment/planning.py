"""Plain error messages for problems of the user's files while Snakemake plans."""

from typing import Any

from snakemake import rules
from snakemake.exceptions import InputFunctionException, WorkflowError

from copra.experiment.config import Experiment
from copra.experiment.file_problems import check_files
from copra.utils.errors import CopraError


def tell_problems_plainly(experiment: Experiment) -> None:
    """Patch Snakemake to print only copra's message if an input function finds a missing file or bad rows.

    Snakemake would print it between a rule, wildcards and a traceback, which do not help. If files are
    missing, the message has one line per missing file of the experiment.
    """

    class Error(InputFunctionException):
        """An input error with a plain message. Snakemake prints the name of this class above it."""

        def __init__(self, error: Any, *arguments: Any, **where: Any):
            if not isinstance(error, CopraError):
                super().__init__(error, *arguments, **where)
                return
            try:
                check_files(experiment)
            except CopraError as missing:
                error = missing
            WorkflowError.__init__(self, str(error))

    rules.InputFunctionException = Error
