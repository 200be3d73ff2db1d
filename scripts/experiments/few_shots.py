"""Few images a class; see --help."""

import sys

from dit_timm.experiments import command, few_shots

if __name__ == '__main__':
    sys.exit(command.main(few_shots))
