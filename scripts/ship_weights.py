"""Put the weights of runs into the package: `python scripts/ship_weights.py RUN ... --tag TAG`.

Writes, for each run, dit_timm/weights/<model>.<tag>.safetensors and its line in SHA256SUMS beside it; an input and the
network's outputs to tests/pretrained/golden; and a row of hub/results/shipped.csv: what scripts/validate.py
says of the file as it is shipped, on the test split of the run. Weights with two or more dimensions are rounded to
float16, hence another evaluation than the run's own.

The tag then needs an entry in `default_cfgs` of its model.
"""

import argparse
import sys
from pathlib import Path
from typing import List, Optional

import yaml

from dit_timm.cli.ship import ship
from dit_timm.errors import InvalidInputError, UserError, message_of
from dit_timm.printing import set_up_printing

ROOT = Path(__file__).parent.parent


def main(argv: Optional[List[str]] = None) -> int:
    """Ship runs; returns the exit code."""
    set_up_printing()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN', help='folders that scripts/train.py wrote')
    parser.add_argument('--tag', required=True, help='names the data, such as cifar10')
    parser.add_argument('--data-dir', metavar='DIR', help='where the data are now, if not where the run had them')
    parser.add_argument('--licence', default='apache-2.0', help='of the weights')
    args = parser.parse_args(argv)
    try:
        runs = {run: yaml.safe_load((run / 'args.yaml').read_text()) for run in args.runs}
        names = [options['model'] for options in runs.values()]
        if len({*names}) < len(names):
            raise InvalidInputError(f'Name one run of a model; got {", ".join(names)}.')
        for run, options in runs.items():
            options['data_dir'] = args.data_dir or options['data_dir']
            print(ship(run, options, args.tag, args.licence, ROOT))
    except (UserError, OSError) as error:
        print(f'error: {message_of(error)}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
