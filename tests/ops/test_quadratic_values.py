"""Forward values of every backend, against the sum written out term by term."""

import numpy as np
import pytest
import torch

from dit_timm import available_backends, quadratic_form
from dit_timm.ops import chunked
from dit_timm.ops.folded import fold, unfold_grad
from dit_timm.ops.portable import quadratic_form_portable

pytestmark = pytest.mark.usefixtures('poisoned_empty')

BACKENDS = available_backends('cpu')


def random(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


def shrink_tiles(monkeypatch, elements, pixels):
    monkeypatch.setattr(chunked, '_CPU_TILE_ELEMENTS', elements)
    monkeypatch.setattr(chunked, '_TILE_PIXELS', pixels)


def numpy_formula(x, weight):
    x, weight = x.detach().numpy(), weight.detach().numpy()
    output = np.zeros((*x.shape[:-1], weight.shape[0]))
    for index in np.ndindex(output.shape):
        position, o = index[:-1], index[-1]
        channels = x[position]
        output[index] = channels @ weight[o] @ channels
    return torch.from_numpy(output)


def test_backends_of_the_cpu():
    assert BACKENDS[:1] == ('chunked',), 'the bounded backend must be the automatic choice'
    assert 'reference' in BACKENDS


@pytest.mark.parametrize('backend', [None, *BACKENDS])
@pytest.mark.parametrize('leading', [(), (5,), (2, 3, 4), (0,), (2, 0, 3), (257,)])
@pytest.mark.parametrize('in_chs, out_chs', [(1, 1), (1, 3), (3, 1), (5, 2), (2, 7), (9, 9)])
def test_equals_formula(backend, leading, in_chs, out_chs):
    x, weight = random(*leading, in_chs), random(out_chs, in_chs, in_chs)
    output = quadratic_form(x, weight, backend=backend)
    assert output.shape == (*leading, out_chs)
    torch.testing.assert_close(output, numpy_formula(x, weight))


@pytest.mark.parametrize('backend', BACKENDS)
def test_equals_triple_loop(backend, loop_formula):
    x, weight = random(3, 4), random(2, 4, 4)
    torch.testing.assert_close(quadratic_form(x, weight, backend=backend), loop_formula(x, weight))


@pytest.mark.parametrize('block', [1, 3, 8, 100])
@pytest.mark.parametrize('pixels, in_chs, out_chs', [(0, 3, 2), (5, 1, 1), (7, 9, 4), (3, 17, 5)])
def test_portable_equals_formula(pixels, in_chs, out_chs, block):
    x, weight = random(pixels, in_chs), random(out_chs, in_chs, in_chs)
    torch.testing.assert_close(quadratic_form_portable(x, weight, block), numpy_formula(x, weight))


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('view', [
    pytest.param(lambda: random(6, 5).t(), id='transposed'),
    pytest.param(lambda: random(9, 12)[::2, ::2], id='strided'),
    pytest.param(lambda: random(2, 6, 3, 5).permute(0, 2, 3, 1), id='nchw'),
    pytest.param(
        lambda: random(2, 6, 3, 5).to(memory_format=torch.channels_last).permute(0, 2, 3, 1), id='channels_last',
    ),
    pytest.param(lambda: random(2, 6, 7, 5)[..., 1::2, ::3].permute(0, 2, 3, 1), id='sampled nchw'),
    pytest.param(lambda: random(1, 6).expand(4, 6), id='expanded'),
])
def test_any_strides_of_x(backend, view):
    x = view()
    weight = random(3, x.shape[-1], x.shape[-1])
    torch.testing.assert_close(quadratic_form(x, weight, backend=backend), numpy_formula(x, weight))


@pytest.mark.parametrize('backend', BACKENDS)
def test_any_strides_of_weight(backend):
    x = random(7, 4)
    for weight in (random(4, 4, 3).permute(2, 1, 0), random(3, 8, 8)[:, ::2, 1::2], random(1, 4, 4).expand(3, 4, 4)):
        torch.testing.assert_close(quadratic_form(x, weight, backend=backend), numpy_formula(x, weight))


@pytest.mark.parametrize('elements, tile_pixels', [
    (1, 1),  # every pixel a tile, every row of pairs a block
    (12, 3),  # four pairs a block: rows of at most C pairs, so blocks of one or several rows
    (64, 4),
    (20, 100),  # more pixels asked for than the budget has elements
])
@pytest.mark.parametrize('pixels', [1, 10, 11, 12])
@pytest.mark.parametrize('in_chs', [1, 5, 6])
def test_many_tiles_and_blocks(monkeypatch, elements, tile_pixels, pixels, in_chs):
    shrink_tiles(monkeypatch, elements, tile_pixels)
    x, weight = random(pixels, in_chs), random(3, in_chs, in_chs)
    torch.testing.assert_close(quadratic_form(x, weight, backend='chunked'), numpy_formula(x, weight))


def test_plan_covers_every_pair_once(monkeypatch):
    # Guards the test above: with these constants there really are several blocks, and a ragged last one.
    shrink_tiles(monkeypatch, 12, 3)
    tile_pixels, blocks = chunked._plan(10, 5, torch.device('cpu'))
    assert tile_pixels == 3
    assert len(blocks) > 2
    pairs = [pair for block in blocks for pair in range(block.pairs.start, block.pairs.stop)]
    rows = [row for block in blocks for row in range(block.start, block.stop)]
    assert pairs == list(range(15))
    assert rows == list(range(5))


def test_default_tiles_at_a_real_size():
    # More pixels than one tile and more pairs than one block, with the constants as shipped.
    x, weight = random(2500, 48, dtype=torch.float32), random(4, 48, 48, dtype=torch.float32)
    tile_pixels, blocks = chunked._plan(2500, 48, torch.device('cpu'))
    assert tile_pixels < 2500 and len(blocks) > 1
    exact = torch.einsum('pi,oij,pj->po', x.double(), weight.double(), x.double())
    torch.testing.assert_close(quadratic_form(x, weight).double(), exact, rtol=1e-4, atol=1e-3)


def test_inputs_are_left_alone():
    x, weight = random(7, 4), random(3, 4, 4)
    before = x.clone(), weight.clone()
    for backend in BACKENDS:
        quadratic_form(x, weight, backend=backend)
        assert torch.equal(x, before[0]) and torch.equal(weight, before[1])


def test_only_the_symmetric_part_matters():
    x, weight = random(7, 4), random(3, 4, 4)
    antisymmetric = random(3, 4, 4)
    antisymmetric = antisymmetric - antisymmetric.mT
    for backend in BACKENDS:
        torch.testing.assert_close(
            quadratic_form(x, weight + antisymmetric, backend=backend), quadratic_form(x, weight, backend=backend),
        )


@pytest.mark.parametrize('in_chs, out_chs', [(1, 1), (2, 3), (5, 1), (6, 6)])
def test_fold(in_chs, out_chs):
    weight = random(out_chs, in_chs, in_chs)
    expected = [
        weight[:, i, i] if i == j else weight[:, i, j] + weight[:, j, i]
        for i in range(in_chs) for j in range(i, in_chs)
    ]
    assert torch.equal(fold(weight), torch.stack(expected, dim=1))


@pytest.mark.parametrize('in_chs, out_chs', [(1, 1), (2, 3), (5, 1), (6, 6)])
def test_unfold_grad_is_the_gradient_of_fold(in_chs, out_chs):
    weight = random(out_chs, in_chs, in_chs).requires_grad_()
    folded = torch.stack([
        weight[:, i, i] if i == j else weight[:, i, j] + weight[:, j, i]
        for i in range(in_chs) for j in range(i, in_chs)
    ], dim=1)
    grad = torch.randn_like(folded)
    folded.backward(grad)
    assert torch.equal(unfold_grad(grad, in_chs), weight.grad)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_meta_device(backend, dtype):
    x = torch.zeros(2, 3, 5, dtype=dtype, device='meta', requires_grad=True)
    weight = torch.zeros(7, 5, 5, dtype=dtype, device='meta', requires_grad=True)
    output = quadratic_form(x, weight, backend=backend)
    output.sum().backward()
    assert output.shape == (2, 3, 7) and output.dtype == dtype and output.device.type == 'meta'
    assert x.grad.shape == x.shape and weight.grad.shape == weight.shape
