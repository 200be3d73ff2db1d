"""How commands print."""

import io
import sys


def set_up_printing() -> None:
    """Print a question mark for characters that the terminal cannot encode, instead of raising UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='replace')
