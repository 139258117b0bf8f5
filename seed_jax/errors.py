"""The one exception a user is meant to read."""


class UserError(Exception):
    """Report bad input in one sentence: what, where, what was expected, what to do.

    The commands print the sentence without a traceback and exit with code 2.
    """
