"""Errors that a person can act on. The cellar of the house: every floor may import it, it imports nothing."""


class InputError(ValueError):
    """Bad input: the message names the argument, what was given, what was expected, and the remedy.

    The command line prints the message as one line and exits with code 2.
    """
