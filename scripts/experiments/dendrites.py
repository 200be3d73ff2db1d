"""What the dendrites of trained networks have learned; see --help."""

import sys

from dit_timm.experiments import command, dendrites

if __name__ == '__main__':
    sys.exit(command.main(dendrites))
