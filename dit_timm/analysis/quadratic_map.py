"""Attribution: where in an image the quadratic term is evidence for a class, and where against it."""

from typing import List, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import InvalidInputError
from .ablation import quadratic_terms, without_quadratic


class Explained(NamedTuple):
    """A network's prediction for an image, and the part of the quadratic terms in it.

    Attributes:
        probabilities: Of all classes, shape (classes,).
        without: Those of the network without its quadratic terms, shape (classes,).
        evidence: For the most probable class, at each pixel: what the quadratic terms add there to its logit above the
            mean of all logits, to first order; shape (H, W).
    """
    probabilities: torch.Tensor
    without: torch.Tensor
    evidence: torch.Tensor


def explain(model: nn.Module, image: torch.Tensor) -> Explained:
    """Classify an image and attribute the prediction to the quadratic terms.

    The evidence of a position is the sum over channels of the term's output there times the derivative of the logit
    with respect to it, spread over the pixels that the position stands for.

    Args:
        model: A network in evaluation mode, with at least one quadratic term.
        image: Normalised, shape (3, H, W).

    Raises:
        InvalidInputError: The network has no quadratic term.
    """
    terms = quadratic_terms(model)
    if not terms:
        raise InvalidInputError(f'{type(model).__name__} has no quadratic term to explain.')
    outputs: List[torch.Tensor] = []

    def keep(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        outputs.append(output.detach().requires_grad_())
        return outputs[-1]

    handles = [term.register_forward_hook(keep) for term in terms]
    try:
        with torch.enable_grad():
            logits = model(image[None])[0]
    finally:
        for handle in handles:
            handle.remove()
    gradients = torch.autograd.grad(logits.max() - logits.mean(), outputs)
    with without_quadratic(model), torch.no_grad():
        without = model(image[None])[0]
    evidence = image.new_zeros(image.shape[1:])
    for output, gradient in zip(outputs, gradients):
        positions = (output * gradient).sum(1, keepdim=True).detach()
        pixels = evidence.numel() / positions.numel()
        evidence += F.interpolate(positions, size=evidence.shape, mode='nearest')[0, 0] / pixels
    return Explained(logits.detach().softmax(0), without.softmax(0), evidence)
