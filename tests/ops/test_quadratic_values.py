"""Forward values of every backend, against the sum written out term by term."""

import importlib.util

import numpy as np
import pytest
import torch

from dit_timm import available_backends, quadratic_form
from dit_timm.ops import chunked
from dit_timm.ops.portable import quadratic_form_portable
from dit_timm.ops.triton import binding as triton_backend

pytestmark = pytest.mark.usefixtures('poisoned_empty')

BACKENDS = available_backends('cpu')
# Not every backend computes in every precision.
each_backend = pytest.mark.parametrize('backend, dtype', [
    (backend, dtype) for dtype in (torch.float64, torch.float32) for backend in available_backends('cpu', dtype)
])


def random(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


def shrink_tiles(monkeypatch, elements, rows):
    monkeypatch.setattr(chunked, '_CPU_LANE_ELEMENTS', elements)
    monkeypatch.setattr(chunked, '_BLOCK_ROWS', rows)
    monkeypatch.setattr(chunked, '_MIN_LANE_PIXELS', 1)


def numpy_formula(x, weight):
    dtype = x.dtype
    x, weight = x.detach().double().numpy(), weight.detach().double().numpy()
    output = np.zeros((*x.shape[:-1], weight.shape[0]))
    for index in np.ndindex(output.shape):
        position, o = index[:-1], index[-1]
        channels = x[position]
        output[index] = channels @ weight[o] @ channels
    return torch.from_numpy(output).to(dtype)


def test_backends_of_the_cpu():
    # The kernels are there: a build that lost them would pass every other test, at a fraction of the speed.
    # Triton's interpreter stands in for a GPU, where Triton is.
    triton = ('triton',) if importlib.util.find_spec('triton') and triton_backend.triton_version() >= (3, 4) else ()
    assert BACKENDS == ('native', *triton, 'chunked', 'contracted', 'reference')
    assert available_backends('cpu', torch.float64) == ('chunked', 'contracted', 'reference')


@each_backend
@pytest.mark.parametrize('leading', [(), (5,), (2, 3, 4), (0,), (2, 0, 3), (257,)])
@pytest.mark.parametrize('in_chs, out_chs', [(1, 1), (1, 3), (3, 1), (5, 2), (2, 7), (9, 9)])
def test_equals_formula(backend, dtype, leading, in_chs, out_chs):
    x, weight = random(*leading, in_chs, dtype=dtype), random(out_chs, in_chs, in_chs, dtype=dtype)
    output = quadratic_form(x, weight, backend=backend)
    assert output.shape == (*leading, out_chs)
    torch.testing.assert_close(output, numpy_formula(x, weight), rtol=1e-5, atol=1e-5)


@each_backend
def test_equals_triple_loop(backend, dtype, loop_formula):
    x, weight = random(3, 4, dtype=dtype), random(2, 4, 4, dtype=dtype)
    torch.testing.assert_close(quadratic_form(x, weight, backend=backend), loop_formula(x, weight))


@pytest.mark.parametrize('block', [1, 3, 8, 100])
@pytest.mark.parametrize('pixels, in_chs, out_chs', [(0, 3, 2), (5, 1, 1), (7, 9, 4), (3, 17, 5)])
def test_portable_equals_formula(pixels, in_chs, out_chs, block):
    x, weight = random(pixels, in_chs), random(out_chs, in_chs, in_chs)
    torch.testing.assert_close(quadratic_form_portable(x, weight, block), numpy_formula(x, weight))


@each_backend
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
def test_any_strides_of_x(backend, dtype, view):
    x = view().to(dtype)
    weight = random(3, x.shape[-1], x.shape[-1], dtype=dtype)
    torch.testing.assert_close(quadratic_form(x, weight, backend=backend), numpy_formula(x, weight))


@each_backend
def test_any_strides_of_weight(backend, dtype):
    x = random(7, 4, dtype=dtype)
    for weight in (random(4, 4, 3).permute(2, 1, 0), random(3, 8, 8)[:, ::2, 1::2], random(1, 4, 4).expand(3, 4, 4)):
        weight = weight.to(dtype)
        torch.testing.assert_close(quadratic_form(x, weight, backend=backend), numpy_formula(x, weight))


@pytest.mark.parametrize('threads', [1, 3], indirect=True)
@pytest.mark.parametrize('elements, rows', [(1, 1), (12, 2), (64, 4), (20, 100)])
@pytest.mark.parametrize('pixels', [1, 10, 11, 12])
@pytest.mark.parametrize('in_chs', [1, 5, 6])
def test_many_tiles_and_blocks(monkeypatch, elements, rows, pixels, in_chs, threads):
    shrink_tiles(monkeypatch, elements, rows)
    x, weight = random(pixels, in_chs), random(3, in_chs, in_chs)
    torch.testing.assert_close(quadratic_form(x, weight, backend='chunked'), numpy_formula(x, weight))


@pytest.mark.parametrize('threads', [3], indirect=True)
def test_plan_covers_every_pair_and_pixel_once(monkeypatch, threads):
    # Guards the test above: with these constants there really are several blocks and tiles, and ragged last ones.
    shrink_tiles(monkeypatch, 22, 2)
    x = random(22, 5)
    plan = chunked._Plan(x)
    assert len(plan.lanes) == 3 and plan.tile_pixels == 2
    assert [(block.start, block.stop) for block in plan.blocks] == [(0, 2), (2, 4), (4, 5)]
    pairs = [(i, j) for block in plan.blocks for i in range(block.start, block.stop) for j in range(block.start, 5)]
    assert len(pairs) == len(set(pairs))
    assert {(i, j) for i, j in pairs if i <= j} == {(i, j) for i in range(5) for j in range(i, 5)}
    assert {(i, j) for i, j in pairs if i > j} == {(1, 0), (3, 2)}
    tiles = [tile for lane in plan.lanes for tile, _ in plan.load(lane, x)]
    assert [pixel for tile in tiles for pixel in range(22)[tile]] == list(range(22))
    assert [tile.stop - tile.start for tile in tiles] == [2, 2, 2, 1, 2, 2, 2, 1, 2, 2, 2, 2]


def test_default_tiles_at_a_real_size():
    # More pixels than one tile and more pairs than one block, with the constants as shipped.
    x, weight = random(2500, 48, dtype=torch.float32), random(4, 48, 48, dtype=torch.float32)
    plan = chunked._Plan(x)
    assert len(plan.lanes) * plan.tile_pixels < 2500 and len(plan.blocks) > 1
    exact = torch.einsum('pi,oij,pj->po', x.double(), weight.double(), x.double())
    for backend in BACKENDS:
        output = quadratic_form(x, weight, backend=backend)
        torch.testing.assert_close(output.double(), exact, rtol=1e-4, atol=1e-3)


def test_inputs_are_left_alone():
    x, weight = random(7, 4, dtype=torch.float32), random(3, 4, 4, dtype=torch.float32)
    before = x.clone(), weight.clone()
    for backend in BACKENDS:
        quadratic_form(x, weight, backend=backend)
        assert torch.equal(x, before[0]) and torch.equal(weight, before[1])


def test_only_the_symmetric_part_matters():
    x, weight = random(7, 4, dtype=torch.float32), random(3, 4, 4, dtype=torch.float32)
    antisymmetric = random(3, 4, 4, dtype=torch.float32)
    antisymmetric = antisymmetric - antisymmetric.mT
    for backend in BACKENDS:
        torch.testing.assert_close(
            quadratic_form(x, weight + antisymmetric, backend=backend), quadratic_form(x, weight, backend=backend),
        )


@pytest.mark.parametrize('backend, dtype', [
    (backend, dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for backend in available_backends('meta', dtype)
])
def test_meta_device(backend, dtype):
    x = torch.zeros(2, 3, 5, dtype=dtype, device='meta', requires_grad=True)
    weight = torch.zeros(7, 5, 5, dtype=dtype, device='meta', requires_grad=True)
    output = quadratic_form(x, weight, backend=backend)
    output.sum().backward()
    assert output.shape == (2, 3, 7) and output.dtype == dtype and output.device.type == 'meta'
    assert x.grad.shape == x.shape and weight.grad.shape == weight.shape
