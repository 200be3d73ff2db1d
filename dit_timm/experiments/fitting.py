"""Fitting small classifiers on all of their data at once."""

import math
from typing import Callable, Dict, NamedTuple, Sequence, Tuple

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
    """Positive factors of half the squares of weights; biases have none.

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
    # Parameters of the quadratic form are measured in a unit in which all weights have the same weight decay: where
    # theirs is ten thousand times as large, L-BFGS hardly moves otherwise.
    units = {
        name: math.sqrt(weight_decay.linear / weight_decay.quadratic) if name in _QUADRATIC else 1.
        for name, _ in model.named_parameters()
    }
    variables = {
        name: (parameter.detach() / units[name]).requires_grad_() for name, parameter in model.named_parameters()
    }
    optimizer = torch.optim.LBFGS(
        list(variables.values()), max_iter=_MAX_ITERATIONS, history_size=20, tolerance_grad=1e-5,
        tolerance_change=1e-9, line_search_fn='strong_wolfe',
    )

    def parameters() -> Dict[str, torch.Tensor]:
        return {name: variable * units[name] for name, variable in variables.items()}

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        squares = sum(
            variable.square().sum() for name, variable in variables.items() if not name.endswith('bias')
        )
        logits = torch.func.functional_call(model, parameters(), data.x)
        total = cross_entropy(logits, data.y) + weight_decay.linear / 2 * squares
        total.backward()
        return total

    optimizer.step(loss)
    model.load_state_dict(parameters())
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
