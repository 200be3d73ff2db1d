"""What a quadratic neuron has learned; see --help."""

import sys

from dit_timm.experiments import command, neuron

if __name__ == '__main__':
    sys.exit(command.main(neuron))
