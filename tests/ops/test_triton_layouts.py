"""The layouts of the Triton kernels: against the formula, and within the limits of a launch."""

import itertools

import pytest
import torch

pytest.importorskip('triton', minversion='3.4')

from dit_timm.ops.triton import layouts as triton_layouts

pytestmark = pytest.mark.usefixtures('poisoned_empty')

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
SHAPES = [(1, 1), (2, 3), (5, 1), (6, 6), (33, 40), (1, 65)]


def whole(*shape, dtype=torch.float32):
    """Whole numbers, whose sums are exact in every dtype and order."""
    return torch.randint(-20, 21, shape, device=DEVICE).to(dtype)


@pytest.mark.parametrize('shape', [(1, 1), (1, 7), (130, 3), (3, 130), (64, 64)])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32])
def test_transposed(shape, dtype):
    x, addend, strided = whole(*shape, dtype=dtype), whole(*shape), whole(shape[0], 2, shape[1], dtype=dtype)[:, 1]
    for got, want in (
        (triton_layouts.transposed(x), x.t()),
        (triton_layouts.transposed(strided), strided.t()),
        (triton_layouts.transposed(x.t().contiguous().t()), x.t()),
        (triton_layouts.transposed(x.t().contiguous().t(), dtype=torch.float64), x.t().double()),
        (triton_layouts.transposed(x.float(), dtype=dtype), x.t()),
        # Partial gradients are float32.
        (triton_layouts.transposed(x.float(), addend, dtype), (x + addend).t().to(dtype)),
    ):
        assert torch.equal(got, want) and got.dtype == want.dtype and got.is_contiguous()


@pytest.mark.parametrize('channels, outputs', SHAPES)
def test_upper(channels, outputs):
    weight = whole(outputs, channels, channels)
    got = triton_layouts.upper(weight, torch.float32)
    assert got.shape == (channels, channels, outputs)
    for i, j in itertools.product(range(channels), repeat=2):
        want = weight[:, i, i] if i == j else weight[:, i, j] + weight[:, j, i] if i < j else torch.zeros(outputs)
        assert torch.equal(got[i, j], want.to(DEVICE))


def test_upper_sums_in_float32():
    weight = torch.tensor([[[0., 1.], [2 ** -8, 0.]]], device=DEVICE, dtype=torch.bfloat16)
    # In bfloat16 the sum would be 1.
    assert triton_layouts.upper(weight, torch.float32)[0, 1].item() == 1 + 2 ** -8


@pytest.mark.parametrize('channels, outputs', SHAPES)
@pytest.mark.parametrize('splits', [1, 3])
def test_unfolded_is_the_gradient_of_the_folding(channels, outputs, splits):
    weight = whole(outputs, channels, channels).requires_grad_()
    folded = torch.stack([
        weight[:, i, i] if i == j else weight[:, i, j] + weight[:, j, i]
        for i, j in itertools.combinations_with_replacement(range(channels), 2)
    ])
    partial_grad = whole(splits, *folded.shape)
    want, = torch.autograd.grad(folded, weight, partial_grad.sum(0))
    assert torch.equal(triton_layouts.unfolded(partial_grad, channels, torch.float32), want)


def test_a_transpose_in_several_launches(monkeypatch):
    monkeypatch.setattr(triton_layouts, '_MAX_TILES', 1)
    x, addend = whole(3, 130), whole(3, 130)
    assert torch.equal(triton_layouts.transposed(x), x.t())
    assert torch.equal(triton_layouts.transposed(x, addend), (x + addend).t())
    assert torch.equal(triton_layouts.transposed(x.t().contiguous().t(), dtype=torch.float64), x.t().double())


@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
def test_more_pixels_than_one_launch_takes():
    x = whole(2, 1 << 23)
    assert torch.equal(triton_layouts.transposed(x, x, torch.bfloat16), (2 * x).t().bfloat16())


@pytest.mark.parametrize('shape', [(2, 1 << 24), (1 << 24, 2)])
def test_any_number_of_pixels_can_be_launched(shape, monkeypatch):
    grids = []

    class Launch:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *args, **kwargs: None

    monkeypatch.setattr(triton_layouts, '_transpose_kernel', Launch())
    triton_layouts.transposed(torch.empty(shape, device='meta'), dtype=torch.bfloat16)
    assert sum(rows * columns for rows, columns in grids) == (1 << 24) / 64
    # CUDA's limits: 2 ** 31 - 1 programs along the first dimension, 65,535 along the others.
    assert all(rows < 1 << 31 and columns <= 65535 for rows, columns in grids)
