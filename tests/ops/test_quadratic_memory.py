"""The point of the chunked backend: products of bounded size only, in forward and in backward."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from dit_timm import quadratic_form
from dit_timm.ops import chunked

PIXELS, IN_CHS, OUT_CHS = 4096, 32, 8
PAIRS = IN_CHS * (IN_CHS + 1) // 2
TILE = 1 << 12


def allocations(function):
    """Bytes of every allocation (positive) and release (negative) during a call, in order."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == '[memory]']
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


def peak(sizes):
    total = highest = 0
    for size in sizes:
        total += size
        highest = max(highest, total)
    return highest


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(chunked, '_CPU_TILE_ELEMENTS', TILE)
    monkeypatch.setattr(chunked, '_TILE_PIXELS', 64)


@pytest.fixture
def inputs():
    x = torch.randn(PIXELS, IN_CHS, requires_grad=True)
    return x, torch.randn(OUT_CHS, IN_CHS, IN_CHS, requires_grad=True)


def bound(x, weight):
    return 4 * max(TILE, x.numel(), weight.numel())


def test_the_measure_sees_the_products_of_the_reference(inputs):
    # Otherwise the tests below could pass by measuring nothing.
    x, weight = inputs
    sizes = allocations(lambda: quadratic_form(x, weight, backend='reference'))
    assert max(sizes) >= 4 * PIXELS * IN_CHS ** 2


def test_forward_is_bounded(small_tiles, inputs):
    x, weight = inputs
    sizes = allocations(lambda: quadratic_form(x, weight, backend='chunked'))
    assert sizes and max(sizes) <= bound(x, weight) < 4 * PIXELS * PAIRS / 10
    assert peak(sizes) <= 4 * bound(x, weight)


def test_backward_is_bounded(small_tiles, inputs):
    x, weight = inputs
    output = quadratic_form(x, weight, backend='chunked')
    grad = torch.randn_like(output)
    sizes = allocations(lambda: output.backward(grad))
    assert sizes and max(sizes) <= bound(x, weight)
    assert peak(sizes) <= 4 * bound(x, weight)


def test_nothing_but_the_inputs_is_kept_for_backward(small_tiles, inputs):
    x, weight = inputs
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (kept.append(tensor), tensor)[1], lambda t: t):
        quadratic_form(x, weight, backend='chunked')
    assert {tensor.data_ptr() for tensor in kept} == {x.data_ptr(), weight.data_ptr()}


def test_shipped_tile_is_bounded():
    # 32 MiB at most, whatever the size of the input: what fits beside a batch on a small machine.
    for pixels, channels in ((1, 1), (10 ** 7, 16), (10 ** 7, 96), (10 ** 7, 1024)):
        tile_pixels, blocks = chunked._plan(pixels, channels, torch.device('cpu'))
        assert tile_pixels * max(block.size for block in blocks) * 4 <= 32 << 20
