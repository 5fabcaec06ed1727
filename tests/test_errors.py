import pytest

from annotator.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one line"), "one line"),
        (ValueError("\n  the cause \nits traceback"), "the cause"),
        (OSError(), "OSError"),
        (KeyError(" \n "), "' \\n '"),
    ],
)
def test_the_first_line_of_an_error_is_never_empty(error, line):
    assert first_line(error) == line
