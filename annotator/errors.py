"""The one exception a user is meant to read."""


class UserError(Exception):
    """A mistake that the user can fix: one plain line with the mistake and the correct form.

    `cli.py` prints it without a traceback and exits with code 2.
    """


def first_line(error: object) -> str:
    """Return the first line of an error's text that is not empty, or the name of its class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
