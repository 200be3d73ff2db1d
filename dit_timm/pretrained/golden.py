"""Golden outputs: an input and the outputs of a network when it was published, to verify that it still gives them."""

import copy
from typing import Dict, Mapping, Tuple

import torch
from torch import nn

# Of the largest logit. Another backend or order of sums changes a float32 output by less than a tenth of this, as tests
# show; other weights change it by more, unless they differ by as little.
TOLERANCE = 1e-3
_IMAGES = 2


def make_golden(model: nn.Module, input_size: Tuple[int, int, int]) -> Dict[str, torch.Tensor]:
    """Compute golden outputs in float64, so that they depend on no device and no backend.

    Args:
        model: The network.
        input_size: Channels, height and width of its input.

    Returns:
        'input', shape (2, C, H, W), and 'logits', shape (2, num_classes), both float32.
    """
    images = torch.randn(_IMAGES, *input_size, generator=torch.Generator().manual_seed(0))
    exact = copy.deepcopy(model).cpu().double().eval()
    with torch.inference_mode():
        return {'input': images, 'logits': exact(images.double()).float()}


@torch.inference_mode()
def golden_difference(model: nn.Module, golden: Mapping[str, torch.Tensor]) -> float:
    """The largest difference between a network's outputs and golden ones, as a share of the largest logit.

    Args:
        model: The network, on any device.
        golden: See `make_golden`.

    Returns:
        The share; infinity if shapes differ or an output is not finite. `TOLERANCE` says what is close.
    """
    model.eval()
    parameter = next(model.parameters())
    logits = model(golden['input'].to(parameter.device, parameter.dtype)).float().cpu()
    expected = golden['logits']
    if logits.shape != expected.shape or not logits.isfinite().all():
        return float('inf')
    return ((logits - expected).abs().max() / expected.abs().max()).item()
