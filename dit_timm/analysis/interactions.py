"""What a quadratic term of a trained network has learned: its spectrum, which channels interact, and what drives it."""

from typing import Dict, Iterable, List, NamedTuple, Sequence, Tuple

import torch
from torch import nn

from ..errors import InvalidInputError
from ..layers.quadratic import ChannelQuadratic2d

# Images of a patch that drives an eigenvector most, and half its side in pixels of the image.
PATCHES, _HALF = 9, 8


class Patch(NamedTuple):
    """A place in an image.

    Attributes:
        strength: The square of the projection onto the eigenvector, there.
        pixels: (3, side, side), as the network was given them.
    """
    strength: float
    pixels: torch.Tensor


class Interactions(NamedTuple):
    """A quadratic term and what it is given, of C channels, with O outputs.

    Attributes:
        name: Of the module.
        form: The symmetric A of each output, (O, C, C).
        correlation: Of the channels over all positions of all images, (C, C).
        deviation: Of each channel, (C,).
        patches: The places that drive each output's leading eigenvector most, the strongest first.
    """
    name: str
    form: torch.Tensor
    correlation: torch.Tensor
    deviation: torch.Tensor
    patches: List[List[Patch]]

    def standardised(self) -> 'Interactions':
        """The same term of channels that are measured in their deviations: A[o, i, j] times those of i and j."""
        return self._replace(form=self.form * torch.outer(self.deviation, self.deviation))

    @property
    def eigenvalues(self) -> torch.Tensor:
        """Of each form, (O, C), the largest in magnitude first."""
        values = torch.linalg.eigvalsh(self.form)
        return values.gather(1, values.abs().argsort(1, descending=True))

    @property
    def effective_rank(self) -> torch.Tensor:
        """Of each form, (O,): how many equal eigenvalues would have their ratio of sum to root of squares."""
        values = self.eigenvalues.abs()
        return values.sum(1) ** 2 / values.square().sum(1).clamp_min(1e-30)

    def pairs(self, most: int) -> List[Tuple[int, int, float, float]]:
        """The pairs of different channels with the most weight over all outputs: i, j, weight, correlation."""
        weight = self.form.norm(dim=0).triu(1)
        places = weight.flatten().argsort(descending=True)[:most]
        return [
            (i, j, weight[i, j].item(), self.correlation[i, j].item())
            for i, j in (divmod(place, len(weight)) for place in places.tolist())
        ]

    def agreement(self) -> torch.Tensor:
        """Of each output, (O,): correlation over all pairs of different channels of |A| with |their correlation|.

        Zero where the term does not care which channels go together in the data, one where it has learned just that.
        """
        i, j = torch.triu_indices(*self.correlation.shape, offset=1)
        weights, correlation = self.form[:, i, j].abs(), self.correlation[i, j].abs()
        return torch.stack([torch.corrcoef(torch.stack([row, correlation]))[0, 1] for row in weights])

    def agreement_by_chance(self, draws: int, seed: int = 0) -> torch.Tensor:
        """Means of `agreement` over the outputs with the channels of the data in a random order, (draws,)."""
        generator = torch.Generator().manual_seed(seed)
        means = []
        for _ in range(draws):
            order = torch.randperm(len(self.correlation), generator=generator)
            means.append(self._replace(correlation=self.correlation[order][:, order]).agreement().mean())
        return torch.stack(means)

    def chance(self, draws: int = 1000) -> float:
        """The p-value of a permutation test: in which share of random orders of the channels, the one that they have
        among them, the data agree with the weights at least as much.
        """
        as_much = (self.agreement_by_chance(draws) >= self.agreement().mean()).sum().item()
        return (1 + as_much) / (1 + draws)


@torch.no_grad()
def interactions(model: nn.Module, batches: Iterable[torch.Tensor]) -> List[Interactions]:
    """Look at the quadratic terms of a network.

    Args:
        model: A Dit network in evaluation mode.
        batches: Images as the network takes them, (N, 3, H, W).

    Returns:
        One for each quadratic term, in order.

    Raises:
        InvalidInputError: The network has none, or there is no image.
    """
    terms = {name: module for name, module in model.named_modules() if isinstance(module, ChannelQuadratic2d)}
    if not terms:
        raise InvalidInputError(f'{type(model).__name__} has no quadratic term to look at.')
    observers = {name: _Observer(term) for name, term in terms.items()}
    handles = [term.register_forward_pre_hook(observers[name]) for name, term in terms.items()]
    try:
        for images in batches:
            for observer in observers.values():
                observer.images = images
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return [observer.result(name) for name, observer in observers.items()]


class _Observer:
    """Takes in what a term is given, as a hook."""

    def __init__(self, term: ChannelQuadratic2d) -> None:
        # On the CPU: Apple's GPUs have no float64.
        weight = term.weight.detach().cpu().double()
        self.form = (weight + weight.mT) / 2
        values, vectors = torch.linalg.eigh(self.form)
        leading = values.abs().argmax(1)
        # (O, C).
        self.leading = vectors.mT[torch.arange(len(leading)), leading].float()
        self.count = 0
        self.total = torch.zeros(term.in_chs, dtype=torch.float64)
        self.products = torch.zeros(term.in_chs, term.in_chs, dtype=torch.float64)
        self.patches: List[List[Patch]] = [[] for _ in range(term.out_chs)]
        self.images = torch.empty(0)

    def __call__(self, term: ChannelQuadratic2d, inputs: Tuple[torch.Tensor]) -> None:
        size = inputs[0].shape[2:]
        x = term.subsampled(inputs[0]).float()
        flat = x.movedim(1, -1).flatten(0, 2).cpu().double()
        self.count += len(flat)
        self.total += flat.sum(0)
        self.products += flat.mT @ flat
        strengths = torch.einsum('oc,nchw->onhw', self.leading.to(x.device), x).square()
        # At most one place of an image.
        best, place = strengths.flatten(2).max(2)
        for output, patches in enumerate(self.patches):
            for image in best[output].argsort(descending=True)[:PATCHES].tolist():
                at = divmod(int(place[output, image]), x.shape[3])
                centre = [step * stride + offset for step, stride, offset in zip(at, term.stride, term.offset)]
                patches.append(Patch(best[output, image].item(), self._crop(image, centre, size)))
            patches.sort(key=lambda patch: -patch.strength)
            del patches[PATCHES:]

    def _crop(self, image: int, place: Sequence[int], size: torch.Size) -> torch.Tensor:
        pixels = self.images[image].cpu()
        centre = [
            round((at + 0.5) * length / count) for at, count, length in zip(place, size, pixels.shape[1:])
        ]
        padded = nn.functional.pad(pixels, [_HALF] * 4)
        return padded[:, centre[0]:centre[0] + 2 * _HALF, centre[1]:centre[1] + 2 * _HALF].clone()

    def result(self, name: str) -> Interactions:
        if not self.count:
            raise InvalidInputError('There is no image to look at the network with.')
        mean = self.total / self.count
        covariance = self.products / self.count - torch.outer(mean, mean)
        scale = covariance.diagonal().clamp_min(1e-30).sqrt()
        return Interactions(name, self.form, covariance / torch.outer(scale, scale), scale, self.patches)


def class_losses(correct: torch.Tensor, without: torch.Tensor, targets: torch.Tensor, names: List[str]) -> List[Dict]:
    """Class by class: top-1 with and without the quadratic terms, and what is lost, in percent.

    Args:
        correct: Whether each image was classified right, (N,), bool.
        without: The same without the quadratic terms.
        targets: Their classes, (N,).
        names: Of the classes.
    """
    rows = []
    for label, name in enumerate(names):
        members = targets == label
        full, left = (100 * values[members].double().mean().item() for values in (correct, without))
        rows.append({'class': name, 'images': int(members.sum()), 'top1': full, 'without': left, 'lost': full - left})
    return rows
