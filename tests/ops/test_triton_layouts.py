"""The folded weights of the Triton kernels, and their gradient: against the formula."""

import itertools

import pytest
import torch

pytest.importorskip('triton', minversion='3.4')

from dit_timm.ops.triton import layouts

pytestmark = pytest.mark.usefixtures('poisoned_empty')

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
SHAPES = [(1, 1), (2, 3), (5, 1), (6, 6), (8, 40), (19, 5), (1, 65)]
SIDES = [2, 8]


def whole(*shape, dtype=torch.float32):
    """Whole numbers, whose sums are exact in every dtype and order."""
    return torch.randint(-20, 21, shape, device=DEVICE).to(dtype)


def places(channels, side):
    """Where each pair is in folded weights: blocks of columns, in each the blocks of rows, in each row by row."""
    blocks = [
        (row, column) for column in range(0, channels, side) for row in range(0, column + 1, side)
    ]
    pairs = [(row + i, column + j) for row, column in blocks for i in range(side) for j in range(side)]
    return {pair: place for place, pair in enumerate(pairs) if pair[0] <= pair[1] < channels}, len(pairs)


@pytest.mark.parametrize('side', SIDES)
@pytest.mark.parametrize('channels, outputs', SHAPES)
def test_folded(channels, outputs, side):
    whole_weight = whole(outputs, channels, channels)
    strided = whole(outputs, channels, 2 * channels)[:, :, ::2].mT
    for weight in (whole_weight, strided, whole(1, channels, channels).expand(outputs, -1, -1)):
        found, count = places(channels, side)
        want = torch.zeros(count, outputs, device=DEVICE)
        for (i, j), place in found.items():
            want[place] = weight[:, i, i] if i == j else weight[:, i, j] + weight[:, j, i]
        assert torch.equal(layouts.folded(weight, torch.float32, side), want)


def test_folded_sums_in_float32():
    weight = torch.tensor([[[0., 1.], [2 ** -8, 0.]]], device=DEVICE, dtype=torch.bfloat16)
    # In bfloat16 the sum would be 1.
    assert layouts.folded(weight, torch.float32, 2)[1].item() == 1 + 2 ** -8


@pytest.mark.parametrize('side', SIDES)
@pytest.mark.parametrize('channels, outputs', SHAPES)
@pytest.mark.parametrize('splits', [1, 3])
def test_unfolded_is_the_gradient_of_the_folding(channels, outputs, splits, side):
    weight = whole(outputs, channels, channels).requires_grad_()
    found, count = places(channels, side)
    partial_grad = torch.full((splits, count, outputs), float('nan'), device=DEVICE)
    for place in found.values():
        partial_grad[:, place] = whole(splits, outputs)
    folded = torch.stack([
        weight[:, i, i] if i == j else weight[:, i, j] + weight[:, j, i]
        for i, j in itertools.combinations_with_replacement(range(channels), 2)
    ])
    order = [found[pair] for pair in itertools.combinations_with_replacement(range(channels), 2)]
    want, = torch.autograd.grad(folded, weight, partial_grad[:, order].sum(0))
    assert torch.equal(layouts.unfolded(partial_grad, channels, torch.float32, side), want)
