"""What a run would cost: for a dry run."""

import torch
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from dit_timm import available_backends

from .trainer import Trainer


def _register_quadratic_flops() -> None:
    """Let torch's counter know the quadratic form: K = C (C + 1) / 2 products at each pixel, for each output."""
    def flops(x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
        (pixels, channels), outputs = x_shape, weight_shape[0]
        return pixels * channels * (channels + 1) * outputs

    for name in available_backends():
        operator = getattr(torch.ops.dit_timm, f'quadratic_{name}', None)
        if operator is not None:
            register_flop_formula(operator)(flops)


_register_quadratic_flops()


def describe_costs(trainer: Trainer) -> str:
    """Multiply-accumulates of an image, images and batches."""
    model = trainer.model.eval()
    args = trainer.args
    image = torch.zeros(1, *trainer.config['input_size'], device=args.device)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(image)
    batches = trainer.sampler.batches
    return (
        f'{counter.get_total_flops() / 2e9:.3f} GMACs an image of {" x ".join(map(str, image.shape[1:]))}; '
        f'{batches:,} batches of {args.batch_size} an epoch, {trainer.epochs} epochs'
    )
