"""Dtypes: what comes out, how precise it is, and what autocast does."""

import pytest
import torch

from dit_timm import available_backends, quadratic_form
from dit_timm.ops.portable import quadratic_form_portable
from dit_timm.ops.precision import has_bfloat16_units

pytestmark = pytest.mark.usefixtures('poisoned_empty')

COMPUTE = {
    **{name: (lambda x, w, name=name: quadratic_form(x, w, backend=name)) for name in available_backends('cpu')},
    'portable': quadratic_form_portable,
}
# These give matrix units products rounded to bfloat16: an error of the sum, not of its last bit.
ROUNDING = {'triton', *(['chunked'] if has_bfloat16_units(torch.device('cpu')) else [])}
exact_ways = pytest.mark.parametrize('compute', [
    pytest.param(compute, id=name) for name, compute in COMPUTE.items() if name not in ROUNDING
])
each_way = pytest.mark.parametrize('compute', COMPUTE.values(), ids=COMPUTE)


def exact(x, weight):
    return torch.einsum('pi,oij,pj->po', x.double(), weight.double(), x.double())


def exact_gradients(x, weight, grad):
    x, weight = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    return torch.autograd.grad(exact(x, weight), (x, weight), grad.double())


@each_way
def test_float16_products_do_not_overflow(compute):
    # |x| up to 1e3: products reach 1e6, far past 65504, while the weighted sums are moderate.
    x = (torch.rand(64, 12) * 2e3 - 1e3).half()
    weight = (torch.randn(5, 12, 12) * 1e-4).half()
    output = compute(x, weight)
    expected = exact(x, weight)
    assert expected.abs().max() < 65504 and x.abs().max() > 900
    assert output.dtype == torch.float16 and output.isfinite().all()
    torch.testing.assert_close(output.double(), expected, rtol=2 ** -10, atol=expected.abs().max().item() * 1e-5)


@each_way
def test_float16_gradients(compute):
    x = (torch.rand(64, 12) * 2e3 - 1e3).half().requires_grad_()
    weight = (torch.randn(5, 12, 12) * 1e-4).half().requires_grad_()
    grad = (torch.randn(64, 5) * 1e-4).half()
    gradients = torch.autograd.grad(compute(x, weight), (x, weight), grad)
    for actual, expected in zip(gradients, exact_gradients(x, weight, grad)):
        assert actual.dtype == torch.float16 and actual.isfinite().all()
        scale = expected.abs().max().item()
        # The spacing of float16 below 6e-5 is absolute, 6e-8.
        torch.testing.assert_close(actual.double(), expected, rtol=2 ** -10, atol=max(scale * 1e-4, 1e-7))


@exact_ways
def test_bfloat16_is_exact_up_to_its_last_rounding(compute):
    x, weight = torch.randn(40, 24).bfloat16(), torch.randn(6, 24, 24).bfloat16()
    output = compute(x, weight)
    expected = exact(x, weight)
    assert output.dtype == torch.bfloat16
    # Half a unit in the last of 8 bits, and float32 noise on sums of 576 terms.
    torch.testing.assert_close(output.double(), expected, rtol=2 ** -8, atol=expected.abs().max().item() * 1e-5)


@exact_ways
def test_bfloat16_gradients(compute):
    x = torch.randn(40, 24).bfloat16().requires_grad_()
    weight = torch.randn(6, 24, 24).bfloat16().requires_grad_()
    grad = torch.randn(40, 6).bfloat16()
    gradients = torch.autograd.grad(compute(x, weight), (x, weight), grad)
    for actual, expected in zip(gradients, exact_gradients(x, weight, grad)):
        assert actual.dtype == torch.bfloat16
        scale = expected.abs().max().item()
        torch.testing.assert_close(actual.double(), expected, rtol=2 ** -7, atol=scale * 1e-4)


@pytest.mark.parametrize('backend', available_backends('cpu', torch.float64))
def test_float64_is_kept(backend):
    x, weight = torch.randn(9, 7, dtype=torch.float64), torch.randn(3, 7, 7, dtype=torch.float64)
    output = quadratic_form(x, weight, backend=backend)
    assert output.dtype == torch.float64
    torch.testing.assert_close(output, exact(x, weight), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('backend', available_backends('cpu'))
@pytest.mark.parametrize('x_dtype', [torch.float32, torch.bfloat16])
def test_autocast(backend, x_dtype):
    x = torch.randn(40, 24, dtype=x_dtype, requires_grad=True)
    weight = torch.randn(6, 24, 24, requires_grad=True)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        output = quadratic_form(x, weight, backend=backend)
    grad = torch.randn_like(output)
    output.backward(grad)
    assert output.dtype == torch.bfloat16
    assert x.grad.dtype == x_dtype and weight.grad.dtype == torch.float32
    rounded = x.detach().bfloat16(), weight.detach().bfloat16()
    noise = 1e-2 if backend in ROUNDING else 1e-4
    expected = exact(*rounded)
    for actual, wanted in zip((output, x.grad, weight.grad), (expected, *exact_gradients(*rounded, grad))):
        torch.testing.assert_close(actual.double(), wanted, rtol=2 ** -7, atol=wanted.abs().max().item() * noise)


@pytest.mark.parametrize('backend', available_backends('cpu', torch.float64))
def test_autocast_leaves_float64_alone(backend):
    x, weight = torch.randn(9, 7, dtype=torch.float64), torch.randn(3, 7, 7, dtype=torch.float64)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        output = quadratic_form(x, weight, backend=backend)
    assert output.dtype == torch.float64
    torch.testing.assert_close(output, exact(x, weight), rtol=1e-12, atol=1e-12)
