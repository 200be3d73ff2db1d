"""How numbers are written in tables."""

import math
from typing import Optional

from .results import OUT_OF_MEMORY, Row


def significant(value: Optional[float], digits: int = 3) -> str:
    """Write a number with so many significant digits and no exponent; empty for None and NaN."""
    if value is None or math.isnan(value):
        return ''
    places = digits - 1 - math.floor(math.log10(abs(value))) if value else 0
    return f'{round(value, places):,.{max(places, 0)}f}'


def percent(share: Optional[float]) -> str:
    """Write a share as a percentage; empty for None and NaN."""
    return '' if share is None or math.isnan(share) else f'{significant(100 * share, 2)} %'


def milliseconds(row: Row) -> str:
    """The median time of a row; empty where there is none."""
    return OUT_OF_MEMORY if row['status'] == OUT_OF_MEMORY else significant(1000 * row['median_s'])


def peak(row: Row) -> str:
    """The peak extra memory of a row, in MiB; empty where there is none."""
    if row['status'] == OUT_OF_MEMORY:
        return OUT_OF_MEMORY
    # The measure counts pages of memory.
    return '< 1' if row['peak_mib'] is not None and row['peak_mib'] < 1 else significant(row['peak_mib'])


def implementation(row: Row) -> str:
    """The implementation of a row, and the backend if that is not its name."""
    name, backend = row['implementation'], row['backend']
    return f'{name} ({backend})' if backend not in ('', name) else name
