"""InstanceNorm2d against torch's instance_norm."""

import pytest
import torch
import torch.nn.functional as F

from dit_timm.layers import InstanceNorm2d


@pytest.mark.parametrize('shape', [(2, 3, 5, 7), (1, 1, 1, 9), (4, 2, 8, 1), (3, 5, 7)])
@pytest.mark.parametrize('eps', [1e-5, 1e-2])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_equals_torch(shape, eps, dtype):
    x = (torch.randn(shape, dtype=dtype) * 3 + 2).requires_grad_()
    # torch reads three dimensions as (N, C, L), the layer as (C, H, W).
    expected = F.instance_norm(x.view(-1, *shape[-3:]), eps=eps).view(shape)
    output = InstanceNorm2d(eps)(x)
    assert output.dtype == dtype
    torch.testing.assert_close(output, expected)
    grad = torch.randn(shape, dtype=dtype)
    torch.testing.assert_close(
        torch.autograd.grad(output, x, grad), torch.autograd.grad(expected, x, grad), rtol=1e-4, atol=1e-5,
    )


def test_map_of_one_position_becomes_zero():
    x = torch.randn(2, 3, 1, 1, requires_grad=True)
    output = InstanceNorm2d()(x)
    output.sum().backward()
    assert torch.equal(output, torch.zeros(2, 3, 1, 1))
    assert torch.equal(x.grad, torch.zeros(2, 3, 1, 1))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    # Squares of these deviations overflow float16, and the mean of these values has no 8 bits to spare.
    x = (torch.randn(2, 3, 16, 16) * 2e3 + 1e4).to(dtype)
    output = InstanceNorm2d()(x)
    expected = F.instance_norm(x.double())
    assert output.dtype == dtype
    spacing = torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), expected, rtol=spacing, atol=1e-4)


def test_half_precision_under_autocast():
    x = (torch.randn(2, 3, 16, 16) * 2e3 + 1e4).bfloat16()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        output = InstanceNorm2d()(x)
    torch.testing.assert_close(output.double(), F.instance_norm(x.double()), rtol=2 ** -7, atol=1e-4)


def test_has_no_parameters_and_shows_eps():
    norm = InstanceNorm2d(1e-3)
    assert not norm.state_dict()
    assert repr(norm) == 'InstanceNorm2d(eps=0.001)'
