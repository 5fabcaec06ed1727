"""The one exception a user is meant to read."""


class UserError(Exception):
    """A mistake the user can mend: one plain line that says what is wrong and what would be right.

    `cli.py` prints it without a traceback and exits with code 2.
    """
