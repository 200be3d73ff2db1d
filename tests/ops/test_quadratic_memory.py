"""The point of the backends in plain torch: tiles of bounded size only, in forward and in backward."""

import subprocess
import sys

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from dit_timm import quadratic_form
from dit_timm.ops import chunked, contracted

PIXELS, IN_CHS, OUT_CHS = 4096, 32, 8
PAIRS = IN_CHS * (IN_CHS + 1) // 2
TILE = 1 << 12
each_backend = pytest.mark.parametrize('backend', ['chunked', 'contracted'])


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
    monkeypatch.setattr(chunked, '_CPU_LANE_ELEMENTS', TILE)
    monkeypatch.setattr(contracted, '_CPU_TILE_ELEMENTS', TILE)


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


@each_backend
def test_forward_is_bounded(small_tiles, inputs, backend):
    x, weight = inputs
    sizes = allocations(lambda: quadratic_form(x, weight, backend=backend))
    assert sizes and max(sizes) <= bound(x, weight) < 4 * PIXELS * PAIRS / 10
    assert peak(sizes) <= 4 * bound(x, weight)


@each_backend
def test_backward_is_bounded(small_tiles, inputs, backend):
    x, weight = inputs
    output = quadratic_form(x, weight, backend=backend)
    grad = torch.randn_like(output)
    sizes = allocations(lambda: output.backward(grad))
    assert sizes and max(sizes) <= bound(x, weight)
    assert peak(sizes) <= 4 * bound(x, weight)


@each_backend
def test_nothing_but_the_inputs_is_kept_for_backward(small_tiles, inputs, backend):
    x, weight = inputs
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (kept.append(tensor), tensor)[1], lambda t: t):
        quadratic_form(x, weight, backend=backend)
    assert {tensor.data_ptr() for tensor in kept} == {x.data_ptr(), weight.data_ptr()}


@pytest.mark.parametrize('threads', [1, 64], indirect=True)
def test_shipped_tile_is_bounded(threads):
    # 32 MiB at most, whatever the size of the input: what fits beside a batch on a small machine.
    for pixels, channels in ((1, 1), (10 ** 7, 16), (10 ** 7, 96), (10 ** 7, 1024)):
        plan = chunked._Plan(torch.empty(1, 1).expand(pixels, channels))
        assert len(plan.lanes) * plan.tile_elements * 4 <= 32 << 20


# Peak memory of a fresh process, since memory that compiled code takes is seen by the system alone.
PROCESS = """
import resource, sys, torch
from dit_timm import quadratic_form
pixels, in_chs, out_chs = 50000, 64, 64
x = torch.randn(pixels, in_chs, requires_grad=True)
weight = torch.randn(out_chs, in_chs, in_chs, requires_grad=True)
quadratic_form(x[:64], weight, backend=sys.argv[1]).sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
quadratic_form(x, weight, backend=sys.argv[1]).sum().backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def growth(backend):
    output = subprocess.run([sys.executable, '-c', PROCESS, backend], check=True, capture_output=True, text=True).stdout
    return int(output)


@pytest.mark.slow
@pytest.mark.parametrize('backend', ['native', 'chunked', 'contracted'])
def test_process_stays_small(backend):
    # Outputs, their gradient and the gradient of x are 12.8 MB each, the products would be 820 MB.
    assert growth(backend) < 0.1 * 4 * 50000 * 64 ** 2


@pytest.mark.slow
def test_process_grows_by_the_products_of_the_reference():
    assert growth('reference') > 4 * 50000 * 64 ** 2
