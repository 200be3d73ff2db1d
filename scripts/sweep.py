"""Train many networks, variants and seeds: the command dit-sweep, from a checkout."""

import sys

from dit_timm.cli.sweep import main

if __name__ == '__main__':
    sys.exit(main())
