"""The one exception that a user's mistake raises."""


class InputError(ValueError):
    """Bad input: the message names the file, the field and the remedy.

    Command lines print it without a traceback and exit with status 2.
    """
