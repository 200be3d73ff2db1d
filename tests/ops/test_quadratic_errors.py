"""Wrong arguments: the message names the argument, what came, and what was expected."""

from pathlib import Path

import pytest
import torch

from dit_timm import available_backends, quadratic_form
from dit_timm.ops import backends, precision, register_backend, unregister_backend
from dit_timm.ops.native import binding as native_backend
from dit_timm.ops.triton import binding as triton_backend


@pytest.fixture
def registry(monkeypatch):
    """A registry to add to; what was in it."""
    monkeypatch.setattr(backends, '_BACKENDS', dict(backends._BACKENDS))
    return available_backends()


def check(error, fragments, x, weight, **kwargs):
    with pytest.raises(error) as caught:
        quadratic_form(x, weight, **kwargs)
    for fragment in fragments:
        assert fragment in str(caught.value), str(caught.value)


@pytest.mark.parametrize('shape', [(4, 4), (3, 4, 5), (2, 3, 4, 4)])
def test_shape_of_weight(shape):
    check(ValueError, ['weight', '(O, C, C)', str(shape)], torch.zeros(2, 4), torch.zeros(shape))


@pytest.mark.parametrize('shape', [(2, 5), (4, 3), ()])
def test_shape_of_x(shape):
    fragments = ['x must', '(..., C)', 'C = 4', '(3, 4, 4)', str(shape)]
    check(ValueError, fragments, torch.zeros(shape), torch.zeros(3, 4, 4))


@pytest.mark.parametrize('dtype', [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_dtype_not_floating(dtype):
    x, weight = torch.zeros(2, 4), torch.zeros(3, 4, 4)
    check(TypeError, ['x must', 'floating', str(dtype)], x.to(dtype), weight)
    check(TypeError, ['weight must', 'floating', str(dtype)], x, weight.to(dtype))


@pytest.mark.parametrize('x_dtype, weight_dtype', [(torch.float32, torch.float64), (torch.float16, torch.float32)])
def test_dtypes_differ(x_dtype, weight_dtype):
    check(
        TypeError, ['weight must', str(x_dtype), str(weight_dtype), 'autocast'],
        torch.zeros(2, 4, dtype=x_dtype), torch.zeros(3, 4, 4, dtype=weight_dtype),
    )


def test_devices_differ():
    check(ValueError, ['weight must', 'cpu', 'meta'], torch.zeros(2, 4), torch.zeros(3, 4, 4, device='meta'))


def test_unknown_backend_names_the_near_one():
    x, weight = torch.zeros(2, 4), torch.zeros(3, 4, 4)
    check(ValueError, ['backend', "'chunkd'", "Did you mean 'chunked'?"], x, weight, backend='chunkd')
    check(ValueError, ['backend', "'zzz'", "'chunked'", "'reference'"], x, weight, backend='zzz')


def test_unusable_backend_is_not_replaced(registry):
    def compute(x, weight):
        raise AssertionError('must not be called')

    register_backend('exotic', compute, lambda device, dtype: f'no such unit on {device} for {dtype}.', before='native')
    x, weight = torch.zeros(2, 4), torch.zeros(3, 4, 4)
    assert 'exotic' not in available_backends('cpu')
    fragments = ["'exotic'", "'cpu'", 'no such unit', 'torch.float32', "'chunked'"]
    check(RuntimeError, fragments, x, weight, backend='exotic')
    quadratic_form(x, weight)


def test_first_usable_backend_is_the_automatic_one(registry):
    register_backend('first', lambda x, weight: x.new_full((x.shape[0], weight.shape[0]), 7.), before='native')
    register_backend('never', None, lambda device, dtype: 'not here.', before='first')
    register_backend('last', None)
    assert available_backends() == ('first', *registry, 'last')
    assert (quadratic_form(torch.zeros(2, 4), torch.zeros(3, 4, 4)) == 7).all()


def test_backends_have_names_of_their_own(registry):
    with pytest.raises(ValueError, match="there is a backend 'chunked' already"):
        register_backend('chunked', torch.mm)
    with pytest.raises(ValueError, match="Did you mean 'native'"):
        register_backend('new', torch.mm, before='nativ')
    with pytest.raises(ValueError, match="got 'new'"):
        unregister_backend('new')
    assert available_backends() == registry


def test_native_kernels_say_why_not(monkeypatch):
    x, weight = torch.zeros(2, 4), torch.zeros(3, 4, 4)
    check(RuntimeError, ["'native'", 'float32', "'chunked'"], x.double(), weight.double(), backend='native')
    monkeypatch.setattr(native_backend, '_LIBRARY', None)
    check(RuntimeError, ["'native'", 'install GCC', "'chunked'"], x, weight, backend='native')
    assert 'native' not in available_backends()
    quadratic_form(x, weight)


def test_triton_kernels_say_why_not(monkeypatch):
    def reason(dtype=torch.float32, device='cuda'):
        return triton_backend.why_unusable(torch.device(device), dtype)

    monkeypatch.setattr(triton_backend, '_INTERPRETED', False)
    assert 'needs a GPU' in reason(device='cpu')
    monkeypatch.setattr(triton_backend, 'triton_version', lambda: (3, 1))
    assert 'needs Triton 3.4' in reason() and 'this is 3.1' in reason()
    monkeypatch.setattr(triton_backend, 'triton_version', lambda: (3, 10))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert 'finds no GPU' in reason()
    monkeypatch.setattr(triton_backend, '_capability', lambda device: (9, 0))
    assert reason() is None and reason(torch.bfloat16) is None
    assert 'float32' in reason(torch.float64)
    monkeypatch.setattr(triton_backend, '_capability', lambda device: (7, 5))
    assert '8.0' in reason() and '7.5' in reason()
    monkeypatch.setattr(triton_backend, '_INSTALLED', False)
    assert 'pip install triton' in reason()
    x, weight = torch.zeros(2, 4), torch.zeros(3, 4, 4)
    check(RuntimeError, ["'triton'", 'not installed', "'chunked'"], x, weight, backend='triton')


def test_gpus_have_the_triton_kernels_or_the_chunked_form(monkeypatch):
    monkeypatch.setattr(triton_backend, 'triton_version', lambda: (3, 4))
    monkeypatch.setattr(triton_backend, '_capability', lambda device: (9, 0))
    assert available_backends('cuda') == ('triton', 'chunked', 'contracted', 'reference')
    assert available_backends('cuda', torch.float64) == ('chunked', 'contracted', 'reference')
    monkeypatch.setattr(triton_backend, '_capability', lambda device: (7, 5))
    assert available_backends('cuda') == ('chunked', 'contracted', 'reference')


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_cpus_have_the_compiled_kernels_first_in_every_precision(dtype):
    assert available_backends('cpu', dtype)[0] == 'native'


@pytest.mark.skipif(not Path('/proc/cpuinfo').exists(), reason='only Linux says what a CPU can do')
def test_torch_that_does_not_know_the_cpu(monkeypatch):
    known = precision._cpu_capabilities()
    monkeypatch.delattr(torch.cpu, 'get_capabilities', raising=False)
    assert precision._cpu_capabilities() & precision._BFLOAT16_UNITS == known & precision._BFLOAT16_UNITS
