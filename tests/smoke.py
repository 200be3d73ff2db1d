"""What must hold of an installed wheel, with nothing but the package and its dependencies. Not collected by pytest.

The arguments are the backends that the CPU should have, in order.
"""

import sys
from functools import partial
from importlib.metadata import version
from importlib.resources import files

import timm
import torch

# Nothing of ours has been imported: the entry point registers the models.
assert timm.is_model('dit_resnet50'), 'the entry point did not register the models'
assert 'dit_resnet50.a1_in1k_init' in timm.list_pretrained('dit_*')

model = timm.create_model('dit_resnet20', pretrained=True).eval()
assert model.pretrained_cfg['label_names'][0] == 'airplane'
assert model.layer2[0].quadratic.weight.any(), 'the weights that ship with the package were not loaded'
with torch.no_grad():
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
features = timm.create_model('test_dit_convnext', features_only=True)(torch.randn(1, 3, 65, 97))
assert [feature.shape[1] for feature in features] == [24, 32, 48, 64]

import dit_timm  # noqa: E402 (after the check that timm alone knows the models)

assert 'site-packages' in dit_timm.__file__, f'not the installed package: {dit_timm.__file__}'
assert dit_timm.__version__ == version('dit-timm')
assert (files('dit_timm') / 'py.typed').is_file(), 'py.typed is missing from the wheel'
assert dit_timm.available_backends() == tuple(sys.argv[1:]), dit_timm.available_backends()

# Values and derivatives of every backend, against the formula.
x, weight, tangent = torch.randn(5, 4), torch.randn(3, 4, 4), torch.randn(5, 4)
q = torch.einsum('oij,pi,pj->po', weight, x, x)
of_x = torch.einsum('oij,pi,pj->po', weight + weight.mT, x, tangent)
for backend in dit_timm.available_backends():
    form = partial(dit_timm.quadratic_form, weight=weight, backend=backend)
    values, tangents = torch.func.jvp(form, (x,), (tangent,))
    torch.testing.assert_close((values, tangents), (q, of_x), rtol=1e-4, atol=1e-4)
    _, gradients = torch.func.vjp(form, x)
    torch.testing.assert_close(
        gradients(q)[0], torch.einsum('po,oij,pj->pi', q, weight + weight.mT, x), rtol=1e-4, atol=1e-3,
    )

print(f'dit_timm {dit_timm.__version__}, timm {timm.__version__}, torch {torch.__version__}: installed and registered')
