"""hub/results/benchmarks.md: speed and memory, from what benchmark.py has written."""

from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple, cast

import pandas as pd

from ..benchmark.cells import implementation, milliseconds, peak, percent, significant
from ..benchmark.forms import BASE, MATERIALISED, ROOFLINE
from ..benchmark.results import read_rows
from .markdown import markdown_table, page

# What a row shares with the others that it was timed with, and with the same measurement beside busy processes.
_CASE = ['command', 'date', 'subject', 'dtype', 'phase']
_MEASUREMENT = ['subject', 'dtype', 'phase', 'implementation']
# A row of ours; names that end in `_other` are of the row that it is compared with.
_Row = Dict[str, Any]
_Column = Tuple[str, Callable[[_Row], str]]


def _other(row: _Row) -> _Row:
    return {name.removesuffix('_other'): value for name, value in row.items() if name.endswith('_other')}


_COMPARISON: List[_Column] = [
    ('implementation', implementation),
    ('time (ms)', milliseconds),
    ('materialised (ms)', lambda row: milliseconds(_other(row))),
    ('speedup', lambda row: significant(row['speedup'])),
]
_MEMORY: List[_Column] = [
    ('memory (MiB)', peak),
    ('materialised (MiB)', lambda row: peak(_other(row))),
    ('share', lambda row: percent(row['memory_share'])),
]
_OP: List[_Column] = [
    ('P x C x O', lambda row: row['subject']),
    ('precision', lambda row: row['dtype']),
    ('phase', lambda row: row['phase']),
]
_BUSY = 'busy'
_COLUMNS: Dict[str, List[_Column]] = {
    'op': [*_OP, *_COMPARISON, ('time / roofline', lambda row: significant(row['roofline_ratio'])), *_MEMORY],
    'model': [
        ('network', lambda row: row['subject']),
        ('batch', lambda row: f'{row["batch_size"]:.0f} x {row["img_size"]:.0f} px'),
        ('precision', lambda row: ' '.join(filter(None, (row['dtype'], row['settings'].replace('_', ' '))))),
        ('phase', lambda row: row['phase']),
        *_COMPARISON,
        ('images/s', lambda row: significant(row['images_per_s'])),
        ('time / base network', lambda row: significant(row['base_ratio'])),
        *_MEMORY,
        ('memory / base network', lambda row: significant(row['memory_base_ratio'])),
    ],
    _BUSY: [
        *_OP,
        ('backend', lambda row: row['backend'] or row['implementation']),
        ('time, quiet (ms)', lambda row: milliseconds(_other(row))),
        ('time, busy (ms)', milliseconds),
        ('busy / quiet', lambda row: significant(row['median_s'] / row['median_s_other'])),
        ('speedup, quiet', lambda row: significant(row['speedup_other'])),
        ('speedup, busy', lambda row: significant(row['speedup'])),
    ],
}
_HEADINGS = {
    'op': 'The quadratic form', 'model': 'Networks',
    _BUSY: 'The quadratic form beside processes that keep the CPU busy',
}
_NOTES = '''\
The materialised form is the authors' formula in plain torch, which forms all products at once; speedup is its time over
ours, share our memory over its. The roofline is the same FLOPs as plain matrix products, the base network is the same
network without the quadratic term. Memory is what a call takes beyond its inputs. Compare only what one command
measured: its implementations took turns.

The kernels for CPUs have changed since the rows of 2026-11-24 were measured.

The kernels for GPUs have changed since the rows of 2026-11-26 were measured, and have not been measured again.
Expected from reading and compiling them: a forward pass without its transposes and in two launches; a backward pass
in four, without zero-filled copies of x and without atomic additions; no registers spilled to memory, as the old
forward kernel and the old gradient of the weights did; small forms materialised where the rows say that it is
faster. Not expected to be faster: the gradient of x, whose registers leave one program on a multiprocessor.'''


def benchmark_page(results: Path) -> str:
    """The page: tables of every `benchmark_*.csv` in a folder, and the pictures beside them."""
    tables = benchmark_tables([read_rows(path) for path in sorted(results.glob('benchmark_*.csv'))])
    pictures = [f'![{path.stem}]({path.name})' for path in sorted(results.glob('benchmark_*.png'))]
    says = 'how fast the quadratic term is and how much memory it takes, from the rows of `benchmark_*.csv`'
    if pictures:
        pictures.insert(0, '## As pixels and channels grow')
    return page('Benchmarks', says, _NOTES, *tables, *pictures)


def benchmark_tables(files: Sequence[pd.DataFrame]) -> List[str]:
    """Markdown: for each device a table of each part, under the commands that measured it.

    Args:
        files: What `read_rows` reads. One with busy processes becomes a table of quiet against busy.
    """
    if not files:
        return []
    rows = pd.concat([
        rows.assign(table=_BUSY if (rows['busy'] > 0).any() else rows['part']) for rows in files
    ])
    found = []
    for (_, device), of_device in rows.groupby(['device_type', 'device']):
        found.append(f'## {device}')
        for table, columns in _COLUMNS.items():
            members = of_device[of_device['table'] == table]
            if len(members):
                captions = [_caption(row) for row in _records(members.drop_duplicates(['command', 'date']))]
                found += [f'### {_HEADINGS[table]}', *captions, _table(columns, _compared(table, members))]
    return found


def _compared(table: str, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table, each beside the one that it is compared with."""
    ours = rows[~rows['implementation'].isin([ROOFLINE, BASE])]
    if table == _BUSY:
        ours, others, shared = ours[ours['busy'] > 0], ours[ours['busy'] == 0], _MEASUREMENT
    else:
        is_other = ours['implementation'] == MATERIALISED
        ours, others, shared = ours[~is_other], ours[is_other], _CASE
    return ours.merge(others, on=shared, how='left', suffixes=('', '_other'), validate='many_to_one')


def _records(rows: pd.DataFrame) -> List[_Row]:
    # Columns may be anything, say the annotations; these are text.
    return cast(List[_Row], rows.to_dict('records'))


def _caption(row: _Row) -> str:
    return (
        f'Cores {row["cores"]}, threads {row["threads"]}, torch {row["torch"]}, timm {row["timm"]}, triton '
        f'{row["triton"]}, Python {row["python"]}, {row["date"]}; medians of {row["rounds"]:.0f} rounds: '
        f'`{row["command"]}`'
    )


def _table(columns: List[_Column], rows: pd.DataFrame) -> str:
    lines = ([cell(row) for _, cell in columns] for row in _records(rows))
    return markdown_table([heading for heading, _ in columns], lines)
