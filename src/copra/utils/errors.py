"""The one exception that a user is meant to read."""


class CopraError(Exception):
    """Something that a person can act on: what is wrong, where, and what to do about it.

    The command line prints its message without a traceback and exits with `status`.
    """

    status = 1
