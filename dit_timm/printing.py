"""How commands print, and words of messages."""

import difflib
import io
import sys
from typing import Collection, Iterable

# Names that a sentence has room for.
_FEW = 30


def set_up_printing() -> None:
    """Print a question mark for characters that the terminal cannot encode, instead of raising UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='replace')


def counted(count: int, noun: str) -> str:
    """A number of things: '1 run', '2 runs', '3 classes'."""
    return f'{count} {noun}' if count == 1 else f'{count} {noun}{"es" if noun.endswith("s") else "s"}'


def first_of(names: Collection[str], most: int = 10) -> str:
    """The first of some names in a line; dots where there are more."""
    return ', '.join(list(names)[:most]) + ', ...' * (len(names) > most)


def near_names(name: str, names: Iterable[str]) -> str:
    """A sentence with the names that come nearest to one that there is not; with all of a few where none is near."""
    known = sorted(names)
    near = difflib.get_close_matches(name, known, n=3)
    if not near and len(known) <= _FEW:
        return f'Known are {", ".join(known)}.'
    return f'Near names: {", ".join(near) or "none"}.'
