"""The README's tables of speed and memory, from hub/results/benchmark_*.csv, which scripts/benchmark.py writes.

`python scripts/benchmark_table.py` rewrites the block between the markers; `--check` fails if that would change it.
"""

import sys
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

import readme_block

from dit_timm.benchmark.cells import milliseconds, peak, percent, significant
from dit_timm.benchmark.forms import BASE, MATERIALISED, ROOFLINE
from dit_timm.benchmark.results import Row, read_rows

RESULTS = Path(__file__).parent.parent / 'hub' / 'results'

# A line of the README: a row of ours, and the row of the materialised form that it was timed with.
_Column = Tuple[str, Callable[[Row, Optional[Row]], str]]

_BACKEND: _Column = ('backend', lambda ours, other: ours['backend'])
_COMPARISON: List[_Column] = [
    ('time (ms)', lambda ours, other: milliseconds(ours)),
    ('materialised (ms)', lambda ours, other: milliseconds(other)),
    ('speedup', lambda ours, other: significant(ours['speedup'])),
]
_MEMORY: List[_Column] = [
    ('memory (MiB)', lambda ours, other: peak(ours)),
    ('materialised (MiB)', lambda ours, other: peak(other)),
    ('share', lambda ours, other: percent(ours['memory_share'])),
]
_COLUMNS: Dict[str, List[_Column]] = {
    'op': [
        ('P x C x O', lambda ours, other: ours['subject']),
        ('precision', lambda ours, other: ours['dtype']),
        ('phase', lambda ours, other: f'{ours["phase"]}, {ours["busy"]:.0f} busy' if ours['busy'] else ours['phase']),
        _BACKEND,
        *_COMPARISON,
        ('time / roofline', lambda ours, other: significant(ours['roofline_ratio'])),
        *_MEMORY,
    ],
    'model': [
        ('network', lambda ours, other: ours['subject']),
        ('batch', lambda ours, other: f'{ours["batch_size"]:.0f} x {ours["img_size"]:.0f} px'),
        ('precision', lambda ours, other: ' '.join(filter(None, (ours['dtype'], ours['settings'].replace('_', ' '))))),
        ('phase', lambda ours, other: ours['phase']),
        _BACKEND,
        *_COMPARISON,
        ('images/s', lambda ours, other: significant(ours['images_per_s'])),
        ('time / base network', lambda ours, other: significant(ours['base_ratio'])),
        *_MEMORY,
        ('memory / base network', lambda ours, other: significant(ours['memory_base_ratio'])),
    ],
}


def tables() -> str:
    """Markdown: for each device, a table of the op and one of the networks, each under what it was measured with."""
    rows = [row for path in sorted(RESULTS.glob('benchmark_*.csv')) for row in read_rows(path)]
    blocks = []
    for title, is_of_kind in (('CPU', lambda row: row['device_type'] == 'cpu'),
                              ('GPU', lambda row: row['device_type'] != 'cpu')):
        of_kind = [row for row in rows if is_of_kind(row) and row['part'] in _COLUMNS]
        blocks += _device_tables(title, of_kind) or [f'{title}: not measured yet.']
    return '\n\n'.join(blocks)


def _device_tables(title: str, rows: List[Row]) -> List[str]:
    blocks = []
    for device in dict.fromkeys(row['device'] for row in rows):
        for part in _COLUMNS:
            members = [row for row in rows if (row['device'], row['part']) == (device, part)]
            if members:
                # A line for each run, in the order of the files.
                blocks += dict.fromkeys(f'{title}: {device}, {_caption(row)}' for row in members if row['rounds'])
                blocks.append(_table(part, members))
    return blocks


def _caption(row: Row) -> str:
    return (
        f'cores {row["cores"]}, threads {row["threads"]}, torch {row["torch"]}, timm {row["timm"]}, '
        f'triton {row["triton"]}, Python {row["python"]}, {row["date"]}; medians of {row["rounds"]:.0f} rounds: '
        f'`{row["command"]}`'
    )


def _table(part: str, rows: List[Row]) -> str:
    columns = _COLUMNS[part]
    lines = [f'| {" | ".join(header for header, _ in columns)} |', '|' + '---|' * len(columns)]
    materialised = {_case(row): row for row in rows if row['implementation'] == MATERIALISED}
    for row in rows:
        if row['implementation'] not in (MATERIALISED, ROOFLINE, BASE):
            cells = (cell(row, materialised.get(_case(row))) for _, cell in columns)
            lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def _case(row: Row) -> Tuple:
    """What a row shares with those that it was timed with."""
    return tuple(row[key] for key in ('command', 'date', 'subject', 'dtype', 'phase'))


def main(argv: Optional[List[str]] = None) -> int:
    """Write or check the tables; returns the exit code."""
    return readme_block.main('speed', 'scripts/benchmark_table.py', tables, __doc__, argv)


if __name__ == '__main__':
    sys.exit(main())
