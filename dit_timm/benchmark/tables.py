"""Results on the terminal."""

from itertools import groupby
from typing import Callable, Dict, List, Tuple

from rich import box
from rich.table import Table

from .cells import implementation, milliseconds, peak, percent, significant
from .results import Row

_Columns = List[Tuple[str, Callable[[Row], str]]]

_TIME: _Columns = [
    ('time\n(ms)', milliseconds),
    ('spread', lambda row: percent(row['spread'])),
    ('speedup over\nmaterialised', lambda row: significant(row['speedup'])),
]
_MEMORY: _Columns = [
    ('memory\n(MiB)', peak),
    ('of materi-\nalised', lambda row: percent(row['memory_share'])),
]
_COLUMNS: Dict[str, _Columns] = {
    'op': [*_TIME, ('time /\nroofline', lambda row: significant(row['roofline_ratio'])), *_MEMORY],
    'model': [
        *_TIME,
        ('images\n/ s', lambda row: significant(row['images_per_s'])),
        ('time /\nbase', lambda row: significant(row['base_ratio'])),
        *_MEMORY,
        ('memory\n/ base', lambda row: significant(row['memory_base_ratio'])),
    ],
    'scaling': [*_TIME, *_MEMORY],
}


def table(part: str, title: str, rows: List[Row]) -> Table:
    """A table of the rows of a part; each group of implementations has a line that says what they did."""
    columns = _COLUMNS[part]
    view = Table(title=title, box=box.SIMPLE)
    view.add_column('', no_wrap=True)
    for header, _ in columns:
        view.add_column(header, justify='right')
    for heading, group in groupby(rows, key=_heading):
        view.add_row(f'[bold]{heading}[/bold]')
        members = list(group)
        for row in members:
            cells = (cell(row) for _, cell in columns)
            view.add_row(f'  {implementation(row)}', *cells, end_section=row is members[-1])
    return view


def _heading(row: Row) -> str:
    if row['part'] == 'scaling':
        return f'{row["subject"]}: P = {row["pixels"]:.0f}, C = {row["in_chs"]:.0f}'
    beside = f', beside {row["busy"]:.0f} busy processes' if row.get('busy') else ''
    return f'{row["subject"]}, {row["phase"]}{beside}'
