"""Fitting small classifiers on all of their data at once."""

import math
from typing import Callable, NamedTuple, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import nn

# Parameters of `QuadraticLinear` that make its quadratic form.
_QUADRATIC = ('quadratic', 'factors', 'coefficients')
# Of L-BFGS; what is convex has converged long before.
_MAX_ITERATIONS = 200


class Data(NamedTuple):
    """Samples of classes.

    Attributes:
        x: Inputs, (N, C).
        y: Classes, (N,), int64.
    """
    x: torch.Tensor
    y: torch.Tensor


class WeightDecay(NamedTuple):
    """Factors of half the squares of weights; biases have none.

    Attributes:
        linear: Of all weights but those of quadratic forms.
        quadratic: Of those of quadratic forms: they are so many that they need another one.
    """
    linear: float
    quadratic: float = math.nan


def fit(model: nn.Module, data: Data, weight_decay: WeightDecay) -> nn.Module:
    """Minimise the cross entropy, in place, by L-BFGS over all samples.

    Args:
        model: Maps (N, C) to logits (N, K), or to (N, 1), the log odds of class 1 against class 0.
        data: The samples.
        weight_decay: What keeps the weights small.

    Returns:
        `model`.
    """
    decayed = [
        (weight_decay.quadratic if name in _QUADRATIC else weight_decay.linear, parameter)
        for name, parameter in model.named_parameters() if not name.endswith('bias')
    ]
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=_MAX_ITERATIONS, history_size=20, tolerance_grad=1e-5, tolerance_change=1e-9,
        line_search_fn='strong_wolfe',
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        penalty = sum(factor / 2 * parameter.square().sum() for factor, parameter in decayed)
        total = cross_entropy(model(data.x), data.y) + penalty
        total.backward()
        return total

    optimizer.step(loss)
    return model


def cross_entropy(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy; of one logit, that of class 1."""
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], y.to(logits.dtype))
    return F.cross_entropy(logits, y)


@torch.no_grad()
def error_rate(model: Callable[[torch.Tensor], torch.Tensor], data: Data) -> float:
    """Share of the samples that a classifier gets wrong, in percent."""
    logits = model(data.x)
    predicted = (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)
    return 100 * (predicted != data.y).double().mean().item()


def tune(
        create: Callable[[], nn.Module], train: Data, held_out: Data, weight_decays: Sequence[WeightDecay],
        criterion: Callable[[nn.Module, Data], float],
) -> Tuple[nn.Module, WeightDecay]:
    """Fit with each weight decay, and keep the classifier that is best on held-out samples.

    Args:
        create: Makes a classifier to be fitted.
        train: Samples to fit.
        held_out: Samples to choose by.
        weight_decays: What is tried, as many for every kind of classifier.
        criterion: What is lowest for the best, `error_rate` or `loss_of`.

    Returns:
        The classifier and its weight decay.
    """
    fitted = [(fit(create(), train, weight_decay), weight_decay) for weight_decay in weight_decays]
    return min(fitted, key=lambda pair: criterion(pair[0], held_out))


@torch.no_grad()
def loss_of(model: Callable[[torch.Tensor], torch.Tensor], data: Data) -> float:
    """Mean cross entropy of a classifier."""
    return cross_entropy(model(data.x), data.y).item()
