"""The contracted form: in tiles, and where the automatic choice takes it."""

import csv
from pathlib import Path

import pytest
import torch

from dit_timm import QuadraticLinear, quadratic_form
from dit_timm.ops import backends, contracted
from dit_timm.ops.backends import automatic_backend
from dit_timm.ops.contracted import is_contracted_faster

RESULTS = Path(__file__).parents[2] / 'hub' / 'results'


@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-12), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
@pytest.mark.parametrize('elements, pixels', [(1, 1), (1, 3), (30, 1), (1 << 18, 16)])
def test_tiles_make_no_difference(monkeypatch, dtype, tolerance, elements, pixels):
    monkeypatch.setattr(contracted, '_CPU_TILE_ELEMENTS', elements)
    monkeypatch.setattr(contracted, '_MIN_TILE_PIXELS', pixels)
    x, weight, grad = (torch.randn(shape).to(dtype) for shape in ((7, 5), (3, 5, 5), (7, 3)))
    x, weight = x.requires_grad_(), weight.requires_grad_()
    output = quadratic_form(x, weight, backend='contracted')
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight)]
    expected = torch.einsum('pi,oij,pj->po', exact[0], exact[1], exact[0])
    gradients = torch.autograd.grad(output, (x, weight), grad), torch.autograd.grad(expected, exact, grad.double())
    for got, want in zip((output, *gradients[0]), (expected, *gradients[1])):
        assert got.dtype == dtype
        assert ((got.double() - want).abs().max() / want.abs().max()).item() <= tolerance


def test_float16_does_not_overflow():
    x, weight = torch.full((2, 2), 300., dtype=torch.float16), torch.tensor([[[300., 0], [0, -300]]]).half()
    assert (weight[0] @ x[0]).isinf().all()
    x.requires_grad_()
    output = quadratic_form(x, weight, backend='contracted')
    assert output.tolist() == [[0], [0]]
    output.backward(torch.full_like(output, 2 ** -4))
    assert x.grad.tolist() == [[11248, -11248]] * 2  # 11250, rounded.


def test_backward_within_autocast_is_not_rounded():
    x, weight = torch.randn(50, 64, requires_grad=True), torch.randn(2, 64, 64, requires_grad=True)
    output = quadratic_form(x, weight, backend='contracted')
    grad = torch.randn_like(output)
    expected = torch.autograd.grad(output, (x, weight), grad, retain_graph=True)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert all(map(torch.equal, torch.autograd.grad(output, (x, weight), grad), expected))


def test_tile_is_bounded():
    for device, elements in (('cpu', 1 << 18), ('meta', 1 << 24)):
        for channels, outputs in ((1, 1), (64, 1), (784, 10), (1024, 1024)):
            tiles = list(contracted._tiles(torch.empty(1, 1, device=device).expand(10 ** 5, channels), outputs))
            longest = max(tile.stop - tile.start for tile in tiles)
            assert longest * channels * outputs <= max(elements, 16 * channels * outputs)
            assert tiles[-1].stop == 10 ** 5 and all(a.stop == b.start for a, b in zip(tiles, tiles[1:]))


@pytest.mark.parametrize('precision, fewest', [('', 12), ('_float64', 6)])
def test_taken_only_where_it_was_measured_faster(precision, fewest):
    with open(RESULTS / f'benchmark_cpu_op_few{precision}.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    times = {(row['subject'], row['phase'], row['implementation']): float(row['median_s']) for row in rows}
    taken = [key for key in times if is_contracted_faster(key[2], *map(int, key[0].split('x')[1:]))]
    assert len(taken) >= fewest and all(times[(*key[:2], 'contracted')] < times[key] for key in taken)


@pytest.mark.parametrize('backend, channels, outputs, expected', [
    ('native', 96, 2, True), ('native', 95, 2, False), ('native', 96, 3, False), ('chunked', 1, 8, True),
    ('chunked', 64, 9, False), ('triton', 64, 1, False), ('contracted', 64, 1, False),
])
def test_bounds(backend, channels, outputs, expected):
    assert is_contracted_faster(backend, channels, outputs) == expected


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
    # Materialised. All pixels count, not those of one dimension.
    assert called(lambda: neurons(torch.randn(2, 8, 96))) == set()
    assert called(lambda: neurons(torch.randn(2, 9, 96))) == {'dit_timm::quadratic_native'}
    # All samples of a vmap count too; how many there are is hidden.
    assert called(lambda: torch.func.vmap(neurons)(torch.randn(2, 3, 96))) == {'dit_timm::quadratic_native'}
    assert called(lambda: neurons.double()(torch.randn(100, 96).double())) == {'dit_timm::quadratic_contracted'}
    neuron.backend = 'native'
    assert called(lambda: neuron(torch.randn(100, 96))) == {'dit_timm::quadratic_native'}
    monkeypatch.setattr(backends, '_BACKENDS', {'chunked': backends._BACKENDS['chunked']})
    assert automatic_backend(torch.device('cpu'), torch.float32, 100, 4, 1) == 'chunked'


def test_a_compiled_graph_is_one_for_all_numbers_of_pixels():
    graphs = []

    def counting(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(quadratic_form, fullgraph=True, backend=counting, dynamic=True)
    for outputs, name in ((1, 'quadratic_contracted'), (8, 'quadratic_native')):
        weight = torch.randn(outputs, 96, 96)
        graphs.clear()
        for pixels in (3, 100):
            assert compiled(torch.randn(pixels, 96), weight).shape == (pixels, outputs)
        assert len(graphs) == 1 and f'{name}.default' in graphs[0].code
