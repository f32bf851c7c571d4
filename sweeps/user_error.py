"""Defines the base of all errors that end a command with a message instead of a stack trace."""


class UserError(RuntimeError):
    """Reports what keeps a command from its work; the message gives the reason and the remedy.

    `launch.py` prints the message and ends with the class's `exit_code`.
    """

    exit_code = 2  # faults in a file, or in what an argument was given
