"""Markdown of generated pages and blocks."""

from typing import Iterable, Sequence

import pandas as pd

COMMAND = 'python scripts/make_tables.py'


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table. Cells are not padded, so that a new row changes no other line."""
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in (headings, ['---'] * len(headings), *rows))


def markdown_frame(frame: pd.DataFrame) -> str:
    """A table of a frame of strings: its index, then its columns; cells without a value are empty."""
    levels = [str(name) for name in frame.index.names]
    rows = frame.fillna('').reset_index().astype(str).values.tolist()
    return markdown_table([*levels, *map(str, frame.columns)], rows)


def page(title: str, says: str, *parts: str) -> str:
    """A generated file.

    Args:
        title: Its heading.
        says: What it says, as the rest of a sentence.
        parts: What follows.
    """
    head = f'This page says {says}. It is made by `{COMMAND}`; edit nothing here.'
    return '\n\n'.join((f'# {title}', head, *parts)) + '\n'
