"""The exception that reports bad input to the user."""


class UserError(Exception):
    """Report bad input in one sentence: what was wrong, where, what was expected, what to do.

    Commands print the sentence without a traceback and exit with code 2.
    """
