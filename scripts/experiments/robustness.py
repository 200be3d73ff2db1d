"""Trained networks on corrupted images; see --help."""

import sys

from dit_timm.experiments import command, robustness

if __name__ == '__main__':
    sys.exit(command.main(robustness))
