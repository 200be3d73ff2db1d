"""The page's map of the quadratic term's evidence."""

import pytest
import timm
import torch

from dit_timm import ChannelQuadratic2d
from dit_timm.analysis.quadratic_map import explain


def network(name, scale):
    torch.manual_seed(0)
    # Networks begin with branches that add nothing; here the one with the term does.
    begin = {'test_dit_resnet': {'zero_init_last': False}, 'test_dit_convnext': {'ls_init_value': 1.}}
    model = timm.create_model(name, num_classes=5, **begin.get(name, {})).eval().double()
    for module in model.modules():
        if isinstance(module, ChannelQuadratic2d):
            torch.nn.init.normal_(module.weight, std=scale)
    return model


@pytest.mark.parametrize('name', ['test_dit_resnet', 'dit_resnet20', 'test_dit_convnext'])
def test_small_evidence_adds_up_to_what_is_lost_without_the_term(name):
    model, image = network(name, 1e-6), torch.randn(3, 32, 32, dtype=torch.float64)
    explained = explain(model, image)
    with torch.no_grad():
        full = model(image[None])[0]
        for module in model.modules():
            if isinstance(module, ChannelQuadratic2d):
                module.weight.zero_()
        rest = model(image[None])[0]
    best = full.argmax()
    lost = (full[best] - full.mean()) - (rest[best] - rest.mean())
    assert explained.evidence.shape == (32, 32)
    # To first order, hence small terms and float64.
    assert abs(lost) > 1e-9
    assert explained.evidence.sum().item() == pytest.approx(lost.item(), rel=0.02)
    torch.testing.assert_close(explained.probabilities, full.softmax(0))
    torch.testing.assert_close(explained.without, rest.softmax(0))


def test_the_network_stays_as_it_was():
    model, image = network('dit_resnet20', 0.1), torch.randn(3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        before = model(image[None])
    explain(model, image)
    with torch.no_grad():
        assert torch.equal(model(image[None]), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_evidence_is_where_the_term_is():
    """With the term silenced in the left half, its map is zero there."""
    model, image = network('test_dit_resnet', 0.1), torch.randn(3, 64, 64, dtype=torch.float64)
    term, = (module for module in model.modules() if isinstance(module, ChannelQuadratic2d))

    def silence_left(module, inputs, output):
        output = output.clone()
        output[..., :output.shape[-1] // 2] = 0
        return output

    term.register_forward_hook(silence_left)
    evidence = explain(model, image).evidence
    assert evidence[:, :32].abs().max() == 0 and evidence[:, 32:].abs().max() > 0


def test_a_network_without_terms():
    with pytest.raises(ValueError, match='has no quadratic term'):
        explain(timm.create_model('test_resnet'), torch.zeros(3, 32, 32))
