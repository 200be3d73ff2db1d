"""Measurements as rows: with their ratios, to a CSV and back."""

from pathlib import Path
from typing import Any, Dict, Hashable, List, Mapping, Optional

import pandas as pd
import torch

from ..errors import InvalidInputError
from .compare import Result
from .forms import BASE, MATERIALISED, ROOFLINE, backend_of
from .memory import MIB

Row = Dict[str, Any]

OUT_OF_MEMORY = 'out of memory'

_TEXT = (
    'date', 'device', 'device_type', 'cores', 'threads', 'python', 'torch', 'timm', 'triton', 'command',
    'part', 'subject', 'dtype', 'settings', 'phase', 'implementation', 'backend', 'status',
)
_NUMBERS = (
    'busy', 'pixels', 'in_chs', 'out_chs', 'batch_size', 'img_size', 'rounds', 'median_s', 'spread', 'images_per_s',
    'speedup', 'roofline_ratio', 'base_ratio', 'peak_mib', 'memory_share', 'memory_base_ratio',
)
# Of less memory the measure knows too little for a ratio.
_MIN_MIB = 1.


def to_rows(
        results: Mapping[str, Result], device: str, dtype: torch.dtype, facts: Mapping[str, Any],
) -> List[Row]:
    """Rows of the implementations of one phase.

    `speedup` and `memory_share` refer to the materialised form, `roofline_ratio` to the roofline, `base_ratio` and
    `memory_base_ratio` to the base network; None where there is none, or no number of it.

    Args:
        results: Results by implementation.
        device: Where they ran.
        dtype: What the quadratic form computed on; under autocast, that of autocast.
        facts: Columns that the rows share.

    Returns:
        A row for each implementation.
    """
    medians = {name: result.timing.median for name, result in results.items() if result.timing is not None}
    peaks = {name: result.peak_bytes / MIB for name, result in results.items() if result.peak_bytes is not None}
    comparable_peaks = {name: peak for name, peak in peaks.items() if peak >= _MIN_MIB}
    shape = (facts['pixels'], facts['in_chs'], facts['out_chs']) if 'pixels' in facts else None
    rows = []
    for name, result in results.items():
        median, peak = medians.get(name), peaks.get(name)
        batch_size = facts.get('batch_size')
        rows.append({
            **facts,
            'implementation': name,
            'backend': backend_of(name, device, dtype, shape),
            'status': OUT_OF_MEMORY if result.timing is None else 'ok',
            'rounds': result.timing.rounds if result.timing else None,
            'median_s': median,
            'spread': result.timing.spread if result.timing else None,
            'images_per_s': _ratio(batch_size, median),
            'speedup': _ratio(medians.get(MATERIALISED), median),
            'roofline_ratio': _ratio(median, medians.get(ROOFLINE)),
            'base_ratio': _ratio(median, medians.get(BASE)),
            'peak_mib': peak,
            'memory_share': _ratio(peak, comparable_peaks.get(MATERIALISED)),
            'memory_base_ratio': _ratio(peak, comparable_peaks.get(BASE)),
        })
    return rows


def _ratio(value: Optional[float], reference: Optional[float]) -> Optional[float]:
    return None if value is None or reference is None else value / reference


def write_rows(rows: List[Row], path: Path) -> None:
    """Write a CSV, in place of what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).reindex(columns=[*_TEXT, *_NUMBERS]).to_csv(path, index=False, float_format='%.6g')


def read_rows(path: Path) -> pd.DataFrame:
    """Read a CSV that `write_rows` wrote; empty numbers are NaN, but no busy processes are 0.

    Raises:
        InvalidInputError: It is no such CSV.
        OSError: There is no such file.
    """
    types: Dict[Hashable, type] = {**dict.fromkeys(_TEXT, str), **dict.fromkeys(_NUMBERS, float)}
    try:
        rows = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=dict.fromkeys(_NUMBERS, ''))
        # Older files have no column of busy processes.
        return rows.assign(busy=rows.get('busy', 0.)).fillna({'busy': 0.})[list(types)]
    except (ValueError, KeyError) as error:
        raise InvalidInputError(f'{path} is no CSV of measurements: {error}') from error
