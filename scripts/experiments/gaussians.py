"""One neuron and two Gaussian classes; see --help."""

import sys

from dit_timm.experiments import command, gaussians

if __name__ == '__main__':
    sys.exit(command.main(gaussians))
