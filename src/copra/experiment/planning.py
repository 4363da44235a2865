"""What Snakemake says of the user's files while it plans."""

from typing import Any

from copra.experiment.config import Experiment
from copra.experiment.file_problems import check_files
from copra.utils.errors import CopraError


def tell_problems_plainly(experiment: Experiment) -> None:
    """Let Snakemake print copra's words alone where a function of a rule finds a file missing or bad rows.

    Snakemake would set them between a rule, wildcards and a traceback, which say nothing of the problem. If
    files are missing, all of the experiment that are get a line each.
    """
    from snakemake import rules
    from snakemake.exceptions import InputFunctionException, WorkflowError

    class Error(InputFunctionException):
        """Snakemake prints the name of the class above the message."""

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
