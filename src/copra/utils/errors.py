"""The exception for errors that users can fix."""


class CopraError(Exception):
    """An error that a user can fix. The message contains the place, the problem and the remedy.

    The command line prints its message without a traceback and exits with `status`.
    """

    status = 1
