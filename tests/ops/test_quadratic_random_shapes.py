"""Every backend against the reference formula in float64, over random shapes, values and instruction sets."""

from contextlib import contextmanager

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from dit_timm import available_backends, quadratic_form
from dit_timm.ops import precision
from dit_timm.ops.native import binding as native_backend

# Largest error, as a share of the largest value of the exact result.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}
# Triton's interpreter cuts float32 down to bfloat16 where a GPU rounds, which errs by twice as much.
CUT = 2
CASES = [(backend, dtype) for dtype in TOLERANCE for backend in available_backends('cpu', dtype)]
NAMES = ('output', 'gradient of x', 'gradient of weight')
random_shapes = settings(
    max_examples=25, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def results(x, weight, grad, backend=None):
    """Output, gradient of x and gradient of weight."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    output = quadratic_form(x, weight, backend=backend)
    return (output.detach(), *torch.autograd.grad(output, (x, weight), grad))


def exact_results(x, weight, grad):
    x, weight = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    output = torch.einsum('pi,oij,pj->po', x, weight, x)
    return (output.detach(), *torch.autograd.grad(output, (x, weight), grad.double()))


def assert_close(actual, expected, tolerance):
    for name, got, want in zip(NAMES, actual, expected):
        assert got.shape == want.shape, name
        if want.numel():
            scale = want.abs().max().clamp(min=1e-30)
            assert ((got.double() - want).abs().max() / scale).item() <= tolerance, name


@contextmanager
def with_threads(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def random_inputs(pixels, in_chs, out_chs, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    shapes = (pixels, in_chs), (out_chs, in_chs, in_chs), (pixels, out_chs)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


shapes = given(
    pixels=st.one_of(st.integers(0, 3), st.integers(0, 700)), in_chs=st.integers(1, 40), out_chs=st.integers(1, 70),
    seed=st.integers(0, 2 ** 31),
)


@pytest.mark.parametrize('backend, dtype', CASES)
@random_shapes
@shapes
def test_random_shapes(backend, dtype, pixels, in_chs, out_chs, seed):
    inputs = random_inputs(pixels, in_chs, out_chs, seed, dtype)
    cut = CUT if (backend, dtype) == ('triton', torch.bfloat16) else 1
    assert_close(results(*inputs, backend), exact_results(*inputs), cut * TOLERANCE[dtype])


@pytest.mark.parametrize('isa', native_backend.instruction_sets())
@random_shapes
@shapes
def test_random_shapes_on_every_instruction_set(isa, pixels, in_chs, out_chs, seed, monkeypatch):
    number = native_backend.instruction_sets()[isa]
    with monkeypatch.context() as patch:
        patch.setattr(native_backend, 'instruction_sets', lambda: {isa: number})
        inputs = random_inputs(pixels, in_chs, out_chs, seed, torch.float32)
        assert_close(results(*inputs, 'native'), exact_results(*inputs), TOLERANCE[torch.float32])


@pytest.mark.parametrize('isa', native_backend.instruction_sets())
@pytest.mark.parametrize('in_chs, out_chs', [(96, 96), (128, 128), (130, 17), (200, 3)])
def test_more_pairs_than_a_panel_and_more_pixels_than_a_chunk(isa, in_chs, out_chs, monkeypatch):
    number = native_backend.instruction_sets()[isa]
    monkeypatch.setattr(native_backend, 'instruction_sets', lambda: {isa: number})
    inputs = random_inputs(600, in_chs, out_chs, 0, torch.float32)
    assert_close(results(*inputs, 'native'), exact_results(*inputs), TOLERANCE[torch.float32])


# The last two have several pieces in every kernel, of the pairs and of the pixels, the last of them ragged.
@pytest.mark.parametrize('isa', native_backend.instruction_sets())
@pytest.mark.parametrize('pixels, in_chs, out_chs', [
    (1, 21, 19), (3, 5, 1), (300, 21, 19), (601, 96, 90), (2100, 40, 33),
])
def test_native_sums_do_not_depend_on_threads(isa, pixels, in_chs, out_chs, monkeypatch):
    number = native_backend.instruction_sets()[isa]
    monkeypatch.setattr(native_backend, 'instruction_sets', lambda: {isa: number})
    inputs = random_inputs(pixels, in_chs, out_chs, 0, torch.float32)
    expected = exact_results(*inputs)
    alone = results(*inputs, 'native')
    assert_close(alone, expected, TOLERANCE[torch.float32])
    for threads in (2, 3, 7):
        with with_threads(threads):
            for _ in range(3):
                for name, got, want in zip(NAMES, results(*inputs, 'native'), alone):
                    assert torch.equal(got, want), f'{name}, {threads} threads'


@pytest.mark.parametrize('view', [
    pytest.param(lambda tensor: tensor.t().contiguous().t(), id='transposed'),
    pytest.param(lambda tensor: tensor.repeat(2, 3)[::2, ::3], id='strided'),
    pytest.param(lambda tensor: tensor[:1].expand(50, 12), id='one pixel'),
    pytest.param(lambda tensor: tensor[:, :1].expand(50, 12), id='one channel'),
])
def test_native_takes_any_strides(view):
    x, weight, grad = random_inputs(50, 12, 12, 0, torch.float32)
    inputs = view(x), weight, view(grad)
    assert_close(results(*inputs, 'native'), exact_results(*inputs), TOLERANCE[torch.float32])


@pytest.mark.parametrize('backend, dtype', CASES)
@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_nan_and_inf_are_propagated_and_stay_in_their_pixel(backend, dtype, value):
    x, weight, grad = random_inputs(100, 20, 6, 0, dtype)
    clean = results(x, weight, grad, backend)
    x[41, 7] = value
    output, grad_x, grad_weight = results(x, weight, grad, backend)
    others = torch.arange(100) != 41
    assert not output[41].isfinite().any()
    assert torch.equal(output[others], clean[0][others])
    # d q / d x_j holds x_7 for every j.
    assert not grad_x[41].isfinite().any()
    assert torch.equal(grad_x[others], clean[1][others])
    touched = torch.zeros(20, 20, dtype=torch.bool)
    touched[7] = touched[:, 7] = True
    assert not grad_weight[:, touched].isfinite().any()
    assert grad_weight[:, ~touched].isfinite().all()


@pytest.mark.parametrize('backend, dtype', CASES)
def test_nan_in_the_gradient_is_propagated(backend, dtype):
    x, weight, grad = random_inputs(100, 20, 6, 0, dtype)
    grad[41, 3] = float('nan')
    _, grad_x, grad_weight = results(x, weight, grad, backend)
    assert grad_x[41].isnan().all() and grad_x[torch.arange(100) != 41].isfinite().all()
    assert grad_weight[3].isnan().all() and grad_weight[torch.arange(6) != 3].isfinite().all()


@random_shapes
@shapes
def test_products_rounded_to_bfloat16_stay_within_tolerance(pixels, in_chs, out_chs, seed, monkeypatch):
    # What CPUs with units for it do; the arithmetic is the same without them.
    with monkeypatch.context() as patch:
        patch.setattr(precision, '_CPU_CAPABILITIES', {'avx512_bf16'})
        inputs = random_inputs(pixels, in_chs, out_chs, seed, torch.bfloat16)
        assert_close(results(*inputs, 'chunked'), exact_results(*inputs), TOLERANCE[torch.bfloat16])
