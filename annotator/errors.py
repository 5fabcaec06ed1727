"""The one exception a user is meant to read, and text for its one line."""

from collections.abc import Sequence


class UserError(Exception):
    """A mistake that the user can fix: one plain line with the mistake and the correct form.

    `cli.py` prints it without a traceback and exits with code 2.
    """


def first_line(error: object) -> str:
    """Return the first line of an error's text that is not empty, or the name of its class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def printable(text: str) -> str:
    """Return text for a one-line message: unprintable characters escaped, and cut after 200 characters."""
    printable = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text[:200])
    return printable + " ..." * (len(text) > 200)


def quoted(names: Sequence[str]) -> str:
    """Return names for a one-line message: each in quotes, at most twenty."""
    first = ", ".join(f"'{printable(name)}'" for name in names[:20])
    return first + ", ..." * (len(names) > 20) or "none"
