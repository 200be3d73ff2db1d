"""What a run would cost: for a dry run."""

from ..analysis.costs import count_costs
from .trainer import Trainer


def describe_costs(trainer: Trainer) -> str:
    """Multiply-accumulates of an image, images and batches."""
    size, batches = trainer.config['input_size'], trainer.sampler.batches
    return (
        f'{count_costs(trainer.model, size).gmacs:.3f} GMACs an image of {" x ".join(map(str, size))}; '
        f'{batches:,} batches of {trainer.args.batch_size} an epoch, {trainer.epochs} epochs'
    )
