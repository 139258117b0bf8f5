"""The exceptions that report to the user in one sentence."""

from typing import ClassVar


class UserError(Exception):
    """Report bad input in one sentence: what was wrong, where, what was expected, what to do.

    Commands print the sentence without a traceback and exit with `exit_code`.
    """

    exit_code: ClassVar[int] = 2


class TemporaryError(UserError):
    """Report in one sentence what may have passed when the same command is run again; launchers then do so."""

    exit_code: ClassVar[int] = 76
