"""Write the results of runs into a CSV, a row for each: `dit-record RUN ... --data NAME`.

A run's result on its test split is taken from its results.csv, not evaluated again. A Dit network is evaluated once on
that split with its quadratic terms at zero: a row of its own, 'removed'. `recipe_sha256` is of the
recipe.yaml in the folder of the run.

The log of each run (a row for each epoch) is kept beside the CSV, in `logs`.
"""

import argparse
import sys
from pathlib import Path
from typing import List, Optional

from ..config.parts import default_device
from ..errors import UserError, message_of
from ..printing import set_up_printing
from ..results.record import record, rows_of


def main(argv: Optional[List[str]] = None) -> int:
    """Record runs; returns the exit code."""
    set_up_printing()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN', help='folders that train.py or sweep.py wrote')
    parser.add_argument('--data', required=True, metavar='NAME', help='what the data are called in tables')
    parser.add_argument('--tag', default='', help='pretrained tag of these weights, if they have one')
    parser.add_argument('--data-dir', metavar='DIR', help='where the data are now, if not where the run had them')
    parser.add_argument(
        '--device', default=default_device(),
        help='to evaluate on (default: cuda where there is a GPU for it)',
    )
    parser.add_argument('--csv', type=Path, metavar='FILE', help='default: runs.csv beside the folder of the first run')
    args = parser.parse_args(argv)
    # Absolute, since a run may be named by `.`.
    csv = args.csv or args.runs[0].absolute().parent / 'runs.csv'
    try:
        for run in args.runs:
            rows = rows_of(run, args.data, args.tag, args.device, args.data_dir)
            record(run, rows, csv)
            for row in rows:
                print(f'{run}: {row["variant"]}, top1 {row["top1"]} on {row["split"]}')
    except (UserError, OSError) as error:
        print(f'error: {message_of(error)}', file=sys.stderr)
        return 1
    print(f'written to {csv}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
