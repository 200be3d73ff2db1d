"""What the commands of this project share: how they print, and which errors they print as one line."""

import io
import sys

from .errors import UserError


def set_up_printing() -> None:
    """Let a terminal that has no letter for something show a question mark in its place, where Python would end."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='replace')


def message_of(error: Exception) -> str:
    """The line that a command prints of an error and ends with; what is a bug is raised again, with its traceback.

    Args:
        error: A `UserError`; or an OSError, of which only the system's own are printed, which have a number: no
            space, no permission, no such file.
    """
    if isinstance(error, OSError) and not isinstance(error, UserError) and error.errno is None:
        raise error
    text = str(error).strip()
    # torch puts a traceback around an error from a process that loads data.
    return text.splitlines()[-1].partition(': ')[2] if text.startswith('Caught ') else text
