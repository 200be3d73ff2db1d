"""What a run would cost: for a dry run."""

from ..analysis.costs import count_costs
from .run import Run


def describe_costs(run: Run) -> str:
    """Multiply-accumulates of an image, images and batches."""
    size, batches = run.config['input_size'], run.sampler.batches
    return (
        f'{count_costs(run.model, size).gmacs:.3f} GMACs an image of {" x ".join(map(str, size))}; '
        f'{batches:,} batches of {run.args.batch_size} an epoch, {run.epochs} epochs'
    )
