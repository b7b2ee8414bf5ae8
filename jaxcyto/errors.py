"""The exception raised for mistakes in the user's input."""


class InputError(ValueError):
    """An error in the input. The message names the file, the field and the remedy.

    The command line prints it without a traceback and exits with status 2.
    """
