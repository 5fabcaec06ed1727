"""The one exception a user is meant to read."""


class UserError(Exception):
    """A mistake the user can mend: one plain line that says what is wrong and what would be right.

    `cli.py` prints it without a traceback and exits with code 2.
    """


def first_line(error: object) -> str:
    """Return the first line of an error's text that is not empty, or the name of its class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
