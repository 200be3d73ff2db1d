"""The materialised form: where the automatic choice takes it instead of the kernels for GPUs."""

import csv
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import EagerAndRecordGraphs

from dit_timm import quadratic_form
from dit_timm.ops import backends
from dit_timm.ops.materialised import is_materialised_faster, quadratic_form_materialised
from dit_timm.ops.triton import binding as triton_backend

RESULTS = Path(__file__).parents[2] / 'hub' / 'results' / 'benchmark_gpu_op_bfloat16.csv'


def formula(x, weight):
    return torch.einsum('pi,oij,pj->po', x, weight, x)


@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_equals_formula(dtype, tolerance):
    x, weight, grad = (torch.randn(shape).to(dtype) for shape in ((7, 5), (3, 5, 5), (7, 3)))
    x, weight = x.requires_grad_(), weight.requires_grad_()
    output = quadratic_form_materialised(x, weight)
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight)]
    expected = formula(*exact)
    gradients = torch.autograd.grad(output, (x, weight), grad), torch.autograd.grad(expected, exact, grad.double())
    for got, want in zip((output, *gradients[0]), (expected, *gradients[1])):
        assert ((got.double() - want).abs().max() / want.abs().max()).item() <= tolerance


def test_taken_only_where_it_was_measured_faster():
    # Forward and backward of the op: by a factor of 2.5 or more.
    with open(RESULTS, newline='') as file:
        rows = {
            (row['subject'], row['implementation']): float(row['median_s']) for row in csv.DictReader(file)
            if row['phase'] == 'forward+backward'
        }
    subjects = {subject for subject, _ in rows}
    taken = {
        subject for subject in subjects if is_materialised_faster(torch.bfloat16, *map(int, subject.split('x')))
    }
    assert taken == {'1x96x96', '16384x32x32'}
    assert all(rows[subject, 'ours'] > 2.5 * rows[subject, 'materialised'] for subject in taken)


@pytest.mark.parametrize('dtype, shape, expected', [
    (torch.bfloat16, (16384, 32, 32), True), (torch.bfloat16, (16385, 32, 32), False),
    (torch.float32, (8192, 32, 32), True), (torch.float32, (8193, 32, 32), False),
    (torch.float16, (1, 8, 8), False), (torch.bfloat16, (1, 97, 8), False), (torch.bfloat16, (1, 8, 97), False),
])
def test_bounds(dtype, shape, expected):
    assert is_materialised_faster(dtype, *shape) == expected


@pytest.fixture
def chosen(monkeypatch):
    """Which form the automatic choice takes where the kernels for GPUs are the preferred backend."""
    pytest.importorskip('triton', minversion='3.4')
    monkeypatch.setattr(backends, '_BACKENDS', {
        name: backend for name, backend in backends._BACKENDS.items() if name != 'native'
    })
    calls = []
    for name in ('quadratic_form_materialised', 'is_materialised_faster'):
        function = getattr(backends, name)
        monkeypatch.setattr(
            backends, name, lambda *args, name=name, function=function: (calls.append(name), function(*args))[1],
        )
    return calls


def test_automatic_choice(chosen):
    weight = torch.randn(3, 5, 5)
    for x in (torch.randn(7, 5), torch.randn(2, 3, 5)):
        chosen.clear()
        expected = formula(x.reshape(-1, 5), weight).reshape(*x.shape[:-1], 3)
        torch.testing.assert_close(quadratic_form(x, weight), expected, rtol=1e-4, atol=1e-4)
        assert chosen == ['is_materialised_faster', 'quadratic_form_materialised']
    # More channels than were measured.
    chosen.clear()
    assert backends.pick_backend(None, torch.randn(1, 97), torch.randn(1, 97, 97)) \
        is triton_backend.quadratic_form_triton


def test_a_named_backend_and_a_compiled_graph_have_the_kernels(chosen):
    x, weight = torch.randn(7, 5), torch.randn(3, 5, 5)
    quadratic_form(x, weight, backend='triton')
    recorder = EagerAndRecordGraphs()
    torch._dynamo.reset()
    compiled = torch.compile(quadratic_form, fullgraph=True, backend=recorder, dynamic=True)
    for pixels in (7, 9):
        assert compiled(torch.randn(pixels, 5), weight).shape == (pixels, 3)
    assert len(recorder.graphs) == 1 and 'quadratic_triton' in recorder.graphs[0].code
    assert not chosen


def test_operators_count_their_arithmetic_on_the_meta_device(chosen):
    compute = backends.pick_backend(None, torch.zeros(7, 5, device='meta'), torch.zeros(3, 5, 5, device='meta'))
    assert compute is not quadratic_form_materialised and not chosen
