"""Derivatives of any order and direction, against autograd and torch.func through the written-out sum in float64."""

import copy

import pytest
import timm
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.utils.flop_counter import FlopCounterMode

from dit_timm import available_backends, quadratic_form

BACKENDS = available_backends('cpu')
EXACT = available_backends('cpu', torch.float64)
each = pytest.mark.parametrize('backend', BACKENDS)


def formula(x, weight):
    return torch.einsum('...i,oij,...j->...o', x, weight, x)


def of(backend):
    return lambda x, weight: quadratic_form(x, weight, backend=backend)


def cubed(form):
    """A number whose derivatives go through all of the form's."""
    return lambda x, weight: form(x, weight).pow(3).sum()


def random(*shapes):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def assert_close(ours, theirs, tolerance=2e-5):
    """Ours in the precision of a backend, theirs in float64; both may be nested tuples."""
    if isinstance(theirs, torch.Tensor):
        error = (ours.double() - theirs).norm() / theirs.norm()
        assert ours.shape == theirs.shape and error < tolerance, error
        return
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        assert_close(one, other, tolerance)


@pytest.mark.parametrize('backend', EXACT)
@pytest.mark.parametrize('leading, in_chs, out_chs', [((5,), 3, 2), ((2, 3), 2, 4), ((), 3, 1), ((1,), 1, 1)])
def test_finite_differences_to_the_second_order(backend, leading, in_chs, out_chs):
    inputs = [tensor.requires_grad_() for tensor in random((*leading, in_chs), (out_chs, in_chs, in_chs))]
    assert torch.autograd.gradcheck(
        of(backend), inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True,
    )
    assert torch.autograd.gradgradcheck(of(backend), inputs, check_fwd_over_rev=True, check_rev_over_rev=True)


TRANSFORMS = {
    'jvp': lambda form: lambda x, weight, v, u: jvp(form, (x, weight), (v, u))[1],
    'jvp of x': lambda form: lambda x, weight, v, u: jvp(lambda x: form(x, weight), (x,), (v,))[1],
    'jvp of the weight': lambda form: lambda x, weight, v, u: jvp(lambda weight: form(x, weight), (weight,), (u,))[1],
    'linearize': lambda form: lambda x, weight, v, u: linearize(form, x, weight)[1](v, u),
    'vjp': lambda form: lambda x, weight, v, u: vjp(form, x, weight)[1](form(v, u)),
    'jacrev': lambda form: lambda x, weight, v, u: jacrev(form, argnums=(0, 1))(x, weight),
    'jacfwd': lambda form: lambda x, weight, v, u: jacfwd(form, argnums=(0, 1))(x, weight),
    'hessian': lambda form: lambda x, weight, v, u: hessian(cubed(form), argnums=(0, 1))(x, weight),
    'reverse over reverse': lambda form: lambda x, weight, v, u: jacrev(grad(cubed(form), argnums=(0, 1)))(x, weight),
    'forward over forward': lambda form: lambda x, weight, v, u: jvp(
        lambda x: jvp(lambda x: form(x, weight), (x,), (v,))[1].sin(), (x,), (v,))[1],
    'Hessian-vector product': lambda form: lambda x, weight, v, u: jvp(
        grad(cubed(form), argnums=(0, 1)), (x, weight), (v, u))[1],
    'third order': lambda form: lambda x, weight, v, u: grad(
        lambda x: (grad(lambda x: (grad(lambda x: form(x, weight).sin().sum())(x) * v).sum())(x) * v).sum())(x),
}


@each
@pytest.mark.parametrize('transform', TRANSFORMS)
def test_transforms(backend, transform):
    inputs = random((4, 5), (3, 5, 5), (4, 5), (3, 5, 5))
    ours = TRANSFORMS[transform](of(backend))(*(tensor.float() for tensor in inputs))
    assert_close(ours, TRANSFORMS[transform](formula)(*inputs), 1e-4)


@each
@pytest.mark.parametrize('x_dim, weight_dim', [(0, None), (None, 0), (0, 0), (1, None), (2, 3), (None, 1)])
def test_vmap_over_any_dimension(backend, x_dim, weight_dim):
    x, weight = random((4, 5), (3, 5, 5))
    if x_dim is not None:
        x = torch.stack([x, 2 * x, x - 1]).movedim(0, x_dim)
    if weight_dim is not None:
        weight = torch.stack([weight, weight.mT, weight + 1]).movedim(0, weight_dim)
    for transform in (lambda form: form, lambda form: grad(cubed(form), argnums=(0, 1)), lambda form: jacfwd(form)):
        ours = vmap(transform(of(backend)), (x_dim, weight_dim))(x.float(), weight.float())
        assert_close(ours, vmap(transform(formula), (x_dim, weight_dim))(x, weight))


@each
def test_gradients_in_a_batch(backend):
    """By `is_grads_batched`, a transform of torch that is no torch.func's."""
    x, weight, grads = random((5, 3), (2, 3, 3), (4, 5, 2))

    def gradients(form, dtype):
        inputs = [tensor.to(dtype).requires_grad_() for tensor in (x, weight)]
        return torch.autograd.grad(form(*inputs), inputs, grads.to(dtype), is_grads_batched=True)

    assert_close(gradients(of(backend), torch.float32), gradients(formula, torch.float64))


@each
def test_nested_vmap(backend):
    x, weight = random((2, 3, 4, 5), (3, 6, 5, 5))

    def nested(form):
        return vmap(vmap(form, (0, 0)), (0, None))

    assert_close(nested(of(backend))(x.float(), weight.float()), nested(formula)(x, weight))


@each
@pytest.mark.parametrize('size', [1e-30, 1e-7, 1., 1e7, 1e30])
def test_tangents_of_any_size(backend, size):
    # Through a form of x + v, the smaller of the two would drown.
    x, weight, v = random((6, 5), (3, 5, 5), (6, 5))
    v = v * torch.logspace(-3, 3, 6, dtype=torch.float64)[:, None] * size
    tangent = jvp(lambda x: of(backend)(x, weight.float()), (x.float(),), (v.float(),))[1]
    expected = torch.einsum('pi,oij,pj->po', x, weight + weight.mT, v)
    for row in range(6):
        assert_close(tangent[row], expected[row])


@each
def test_zero_tangents_and_inputs_are_exact(backend):
    x, weight, v = (tensor.float() for tensor in random((4, 5), (3, 5, 5), (4, 5)))
    x[0], v[1] = 0, 0
    tangent = jvp(lambda x: of(backend)(x, weight), (x,), (v,))[1]
    assert torch.equal(tangent[:2], torch.zeros(2, 3)) and tangent[2:].abs().min() > 0
    # At these places too the second derivative is there.
    second = hessian(lambda x: of(backend)(x, weight).sum())(torch.zeros(1, 5))
    torch.testing.assert_close(second[0, :, 0], (weight + weight.mT).sum(0), rtol=1e-5, atol=1e-5)


@each
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision(backend, dtype):
    x, weight, v, u = (tensor.to(dtype) for tensor in random((4, 5), (3, 5, 5), (4, 5), (3, 5, 5)))
    for transform in ('jvp', 'Hessian-vector product'):
        ours = TRANSFORMS[transform](of(backend))(x, weight, v, u)
        theirs = TRANSFORMS[transform](formula)(*(tensor.double() for tensor in (x, weight, v, u)))
        assert_close(ours, theirs, 0.05)


@each
def test_forward_mode_without_torch_func(backend):
    x, weight, v = (tensor.float() for tensor in random((4, 5), (3, 5, 5), (4, 5)))
    expected = torch.einsum('pi,oij,pj->po', x, weight + weight.mT, v)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, v)
        for context in (torch.enable_grad(), torch.no_grad()):
            with context:
                assert_close(forward_ad.unpack_dual(of(backend)(dual, weight)).tangent, expected.double())


@each
@pytest.mark.parametrize('transform', ['jvp', 'vjp', 'jacfwd'])
def test_in_a_compiled_function(backend, transform):
    torch._dynamo.reset()
    inputs = random((4, 5), (3, 5, 5), (4, 5), (3, 5, 5))
    compiled = torch.compile(TRANSFORMS[transform](of(backend)), backend='aot_eager')
    assert_close(compiled(*(tensor.float() for tensor in inputs)), TRANSFORMS[transform](formula)(*inputs))


def test_gradient_penalty_of_a_network():
    model = timm.create_model('dit_resnet20', num_classes=3).double().eval()
    with torch.no_grad():
        model.layer2[0].quadratic.weight.normal_(std=0.05)
    twin = copy.deepcopy(model)
    twin.layer2[0].quadratic.backend = 'reference'
    gradients = []
    for network in (model, twin):
        images = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        images.requires_grad_()
        first, = torch.autograd.grad(network(images).square().sum(), images, create_graph=True)
        first.square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    for name, theirs in gradients[1].items():
        if theirs is not None:
            torch.testing.assert_close(gradients[0][name], theirs, msg=name)
    assert gradients[0]['layer2.0.quadratic.weight'].abs().max() > 0


def test_tangent_and_per_sample_gradients_of_a_network():
    model = timm.create_model('dit_resnet20', num_classes=3).double().eval()
    with torch.no_grad():
        model.layer2[0].quadratic.weight.normal_(std=0.05)
    images, tangent = random((3, 3, 32, 32), (3, 3, 32, 32))
    ours = jvp(model, (images,), (tangent,))[1]
    # The plain form, which torch differentiates by itself.
    model.layer2[0].quadratic.backend = 'reference'
    theirs = jvp(model, (images,), (tangent,))[1]
    model.layer2[0].quadratic.backend = None
    torch.testing.assert_close(ours, theirs)

    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())

    def loss(parameters, image):
        return functional_call(model, (parameters, buffers), (image[None],)).square().sum()

    per_sample = vmap(grad(loss), (None, 0))({name: value.detach() for name, value in parameters.items()}, images)
    for index, image in enumerate(images):
        model.zero_grad()
        model(image[None]).square().sum().backward()
        for name, parameter in parameters.items():
            torch.testing.assert_close(per_sample[name][index], parameter.grad, msg=name)


@pytest.mark.parametrize('backend', [name for name in BACKENDS if name != 'reference'])
def test_flops_are_counted(backend):
    x, weight = torch.randn(6, 5, requires_grad=True), torch.randn(3, 5, 5, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        of(backend)(x, weight).sum().backward()
    # 15 products, of which each of 3 outputs takes a multiple, forward and for both gradients.
    assert counter.get_total_flops() == 3 * 2 * 6 * 15 * 3
