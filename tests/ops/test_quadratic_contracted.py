"""The contracted form: its orders and tiles, and where the automatic choice takes it."""

import csv
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import EagerAndRecordGraphs
from torch.utils.flop_counter import FlopCounterMode

from dit_timm import QuadraticLinear, quadratic_form
from dit_timm.ops import backends, contracted
from dit_timm.ops.backends import automatic_backend
from dit_timm.ops.contracted import is_contracted_faster

RESULTS = Path(__file__).parents[2] / 'hub' / 'results'


@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-12), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
@pytest.mark.parametrize('pixels, outputs', [(7, 3), (2, 8)])
@pytest.mark.parametrize('elements, tile_pixels', [(1, 1), (1, 3), (30, 1), (1 << 18, 16)])
def test_orders_and_tiles_make_no_difference(monkeypatch, dtype, tolerance, pixels, outputs, elements, tile_pixels):
    monkeypatch.setattr(contracted, '_CPU_TILE_ELEMENTS', elements)
    monkeypatch.setattr(contracted, '_MIN_TILE_PIXELS', tile_pixels)
    shapes = (pixels, 5), (outputs, 5, 5), (pixels, outputs)
    x, weight, grad = (torch.randn(shape).to(dtype) for shape in shapes)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    output = quadratic_form(x, weight, backend='contracted')
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight)]
    expected = torch.einsum('pi,oij,pj->po', exact[0], exact[1], exact[0])
    gradients = torch.autograd.grad(output, (x, weight), grad), torch.autograd.grad(expected, exact, grad.double())
    for got, want in zip((output, *gradients[0]), (expected, *gradients[1])):
        assert got.dtype == dtype and got.is_contiguous()
        assert ((got.double() - want).abs().max() / want.abs().max()).item() <= tolerance


def test_float16_does_not_overflow():
    x, weight = torch.full((2, 2), 300., dtype=torch.float16), torch.tensor([[[300., 0], [0, -300]]]).half()
    assert (weight[0] @ x[0]).isinf().all()
    x.requires_grad_()
    output = quadratic_form(x, weight, backend='contracted')
    assert output.tolist() == [[0], [0]]
    output.backward(torch.full_like(output, 2 ** -4))
    assert x.grad.tolist() == [[11248, -11248]] * 2  # 11250, rounded.


@pytest.mark.parametrize('pixels, outputs', [(100, 1), (100, 9), (2, 9), (2, 1)])
class TestWithoutABackend:
    """What the automatic choice takes, whatever it is."""

    @pytest.fixture
    def inputs(self, pixels, outputs):
        return tuple(
            torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((pixels, 4), (outputs, 4, 4))
        )

    def test_backward_within_autocast_is_not_rounded(self, pixels, outputs):
        x = torch.randn(pixels, 96, requires_grad=True)
        weight = torch.randn(outputs, 96, 96, requires_grad=True)
        output = quadratic_form(x, weight)
        grad = torch.randn_like(output)
        expected = torch.autograd.grad(output, (x, weight), grad, retain_graph=True)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            assert all(map(torch.equal, torch.autograd.grad(output, (x, weight), grad), expected))

    def test_derivatives(self, inputs):
        x, weight = inputs
        torch.autograd.gradcheck(quadratic_form, (x[:3], weight), check_forward_ad=True)
        torch.autograd.gradgradcheck(quadratic_form, (x[:3], weight))

    def test_flops(self, inputs, pixels, outputs):
        with FlopCounterMode(display=False) as counter:
            quadratic_form(*inputs)
        assert counter.get_total_flops() == pixels * 4 * 5 * outputs

    def test_only_the_inputs_are_kept(self, inputs):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (kept.append(tensor), tensor)[1], lambda t: t):
            quadratic_form(*inputs)
        assert {tensor.data_ptr() for tensor in kept} == {tensor.data_ptr() for tensor in inputs}


def test_tile_is_bounded():
    for device, elements in (('cpu', 1 << 18), ('meta', 1 << 24)):
        for channels, outputs in ((1, 1), (64, 1), (784, 10), (1024, 1024)):
            tiles = list(contracted._tiles(torch.empty(1, 1, device=device).expand(10 ** 5, channels), outputs))
            longest = max(tile.stop - tile.start for tile in tiles)
            assert longest * channels * outputs <= max(elements, 16 * channels * outputs)
            assert tiles[-1].stop == 10 ** 5 and all(a.stop == b.start for a, b in zip(tiles, tiles[1:]))


@pytest.mark.parametrize('precision', ['', '_float64'])
def test_taken_only_where_it_was_measured_faster(precision):
    with open(RESULTS / f'benchmark_cpu_op_few{precision}.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    times = {(row['subject'], row['phase'], row['implementation']): float(row['median_s']) for row in rows}
    shapes = {subject: tuple(map(int, subject.split('x'))) for subject, _, _ in times}
    taken = [key for key in times if is_contracted_faster(key[2], *shapes[key[0]])]
    assert len(taken) >= 12 and all(times[(*key[:2], 'contracted')] < times[key] for key in taken)
    # What the page says of our automatic choice is what it chooses.
    for row in rows:
        if row['implementation'] == 'ours':
            chosen = automatic_backend(torch.device('cpu'), getattr(torch, row['dtype']), *shapes[row['subject']])
            assert row['backend'] == chosen


@pytest.mark.parametrize('backend, shape, expected', [
    ('native', (1000, 96, 2), True), ('native', (1000, 95, 2), False), ('native', (1000, 96, 3), False),
    ('native', (None, 96, 2), True), ('chunked', (1000, 1, 8), True), ('chunked', (1000, 64, 9), False),
    ('native', (16, 96, 64), True), ('native', (17, 96, 64), False), ('native', (None, 96, 64), False),
    ('native', (1, 95, 64), False),
    ('chunked', (16, 8, 64), True), ('triton', (1, 96, 1), False), ('contracted', (1, 96, 1), False),
])
def test_bounds(backend, shape, expected):
    assert is_contracted_faster(backend, *shape) == expected


def called(function):
    """Names of the project's operators that run in a call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        function()
    return {event.key for event in recorded.key_averages() if event.key.startswith('dit_timm::')}


def test_automatic_choice(monkeypatch):
    neuron = QuadraticLinear(96, 1)
    assert called(lambda: neuron(torch.randn(100, 96)).sum().backward()) == {
        'dit_timm::quadratic_contracted', 'dit_timm::quadratic_contracted_grad_weight',
    }
    neurons = QuadraticLinear(96, 8)
    assert called(lambda: neurons(torch.randn(100, 96))) == {'dit_timm::quadratic_native'}
    # All pixels count, not those of one dimension.
    assert called(lambda: neurons(torch.randn(2, 1, 96))) == {'dit_timm::quadratic_contracted'}
    assert called(lambda: neurons(torch.randn(2, 2, 96))) == {'dit_timm::quadratic_native'}
    # vmap hides pixels, or outputs.
    x, weight = torch.randn(2, 3, 96), torch.randn(200, 1, 96, 96)
    assert called(lambda: torch.func.vmap(neurons)(x)) == {'dit_timm::quadratic_native'}
    assert called(lambda: torch.func.vmap(quadratic_form, (None, 0))(x, weight)) == {'dit_timm::quadratic_native'}
    assert called(lambda: neurons.double()(torch.randn(100, 96).double())) == {'dit_timm::quadratic_contracted'}
    neuron.backend = 'native'
    assert called(lambda: neuron(torch.randn(100, 96))) == {'dit_timm::quadratic_native'}
    monkeypatch.setattr(backends, '_BACKENDS', {'chunked': backends._BACKENDS['chunked']})
    assert automatic_backend(torch.device('cpu'), torch.float32, 100, 4, 1) == 'chunked'


def test_a_compiled_graph_is_one_for_all_numbers_of_pixels():
    recorder = EagerAndRecordGraphs()
    torch._dynamo.reset()
    compiled = torch.compile(quadratic_form, fullgraph=True, backend=recorder, dynamic=True)
    for outputs, name in ((1, 'quadratic_contracted'), (8, 'quadratic_native')):
        weight = torch.randn(outputs, 96, 96)
        recorder.graphs.clear()
        for pixels in (3, 100):
            assert compiled(torch.randn(pixels, 96), weight).shape == (pixels, outputs)
        assert len(recorder.graphs) == 1 and f'{name}.default' in recorder.graphs[0].code
