"""Write the results of runs into a CSV: the command dit-record, from a checkout."""

import sys

from dit_timm.cli.record import main

if __name__ == '__main__':
    sys.exit(main())
