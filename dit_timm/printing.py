"""How commands print."""

import io
import sys


def set_up_printing() -> None:
    """Let a terminal that has no letter for something show a question mark in its place, where Python would end."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='replace')
