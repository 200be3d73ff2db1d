"""Write every generated file: docs/models.md, pages in hub/results, a block of README.md.

They are made from the registry of models and from the CSVs in hub/results: runs.csv, which record_run.py writes,
benchmark_*.csv, which benchmark.py writes, experiments/*.csv, which the experiments write, and published.csv, which has
what others report for the plain networks.
"""

import argparse
import sys
from pathlib import Path
from typing import List, Optional

from dit_timm.errors import UserError, message_of
from dit_timm.experiments.page import experiments_page
from dit_timm.printing import set_up_printing
from dit_timm.results.pages import RESULTS, csv_tables, make_pages, pages
from dit_timm.results.rows import read_rows

ROOT = Path(__file__).parent.parent


def main(argv: Optional[List[str]] = None) -> int:
    """Write, check, draw or print; returns the exit code."""
    set_up_printing()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_mutually_exclusive_group()
    group.add_argument('--check', action='store_true', help='write nothing; fail if a file is out of date or missing')
    group.add_argument('--plots', action='store_true', help='draw the pictures of runs.csv too')
    group.add_argument('--csv', type=Path, metavar='FILE', help='print the tables of this CSV, and write nothing')
    args = parser.parse_args(argv)
    try:
        if args.csv is not None:
            print(csv_tables(args.csv))
            return 0
        if args.plots:
            # Only now: all else does without matplotlib.
            from dit_timm.results.plots import draw
            draw(read_rows(ROOT / RESULTS / 'runs.csv'), ROOT / RESULTS)
        experiments = ROOT / RESULTS / 'experiments'
        contents = {**pages(ROOT), experiments / 'README.md': experiments_page(experiments)}
        problems = make_pages(ROOT, contents, args.check)
    except (UserError, OSError) as error:
        print(f'error: {message_of(error)}', file=sys.stderr)
        return 1
    for problem in problems:
        print(f'error: {problem}', file=sys.stderr)
    return bool(problems)


if __name__ == '__main__':
    sys.exit(main())
