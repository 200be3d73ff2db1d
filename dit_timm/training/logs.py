"""Logging of a run: CSV, curves, TensorBoard, Weights & Biases."""

import csv
import importlib
import io
from pathlib import Path
from typing import Any, Dict, List

from ..config.training import TrainingConfig
from ..errors import MissingPackageError
from ..files import write_file
from .curves import plot_curves


def write_csv(rows: List[Dict[str, Any]], path: Path) -> None:
    """Write rows, the keys of the first as header, in place of what was there."""
    text = io.StringIO(newline='')
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue().encode())


def read_csv(path: Path) -> List[Dict[str, str]]:
    """Read the rows of a CSV; none if there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


class Logs:
    """Where the numbers of each epoch go.

    Args:
        folder: The folder of the run.
        args: Options.

    Raises:
        MissingPackageError: `--log-tensorboard` or `--log-wandb` without the package.
    """

    def __init__(self, folder: Path, args: TrainingConfig) -> None:
        self.folder = folder
        self.tensorboard = self.wandb = None
        if args.log_tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise MissingPackageError('--log-tensorboard needs the package: pip install tensorboard') from error
            self.tensorboard = SummaryWriter(str(folder / 'tensorboard'))
        if args.log_wandb:
            try:
                # Not needed by anything else, and so not there for type checkers.
                wandb = importlib.import_module('wandb')
            except ImportError as error:
                raise MissingPackageError('--log-wandb needs the package: pip install wandb') from error
            self.wandb = wandb
            wandb.init(project='dit_timm', id=folder.name, name=folder.name, resume='allow', config=vars(args))

    def epoch(self, rows: List[Dict[str, Any]]) -> None:
        """Take the rows of all epochs so far; the last is new."""
        write_csv(rows, self.folder / 'summary.csv')
        numbers = {key: value for key, value in rows[-1].items() if key != 'epoch'}
        if self.tensorboard is not None:
            for key, value in numbers.items():
                self.tensorboard.add_scalar(key, value, rows[-1]['epoch'])
            self.tensorboard.flush()
        if self.wandb is not None:
            self.wandb.log(numbers, step=rows[-1]['epoch'])

    def finish(self, rows: List[Dict[str, Any]]) -> None:
        """Draw the curves of all epochs and close what is open."""
        # The run may have been killed after the last checkpoint and before the last row.
        write_csv(rows, self.folder / 'summary.csv')
        plot_curves(self.folder / 'summary.csv', self.folder / 'curves.png')
        if self.tensorboard is not None:
            self.tensorboard.close()
        if self.wandb is not None:
            self.wandb.finish()
