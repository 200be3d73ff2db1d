"""Costs against timm's published figures, and golden outputs."""

import pytest
import timm
import torch

from dit_timm.analysis.costs import count_costs
from dit_timm.pretrained.golden import TOLERANCE, golden_difference, make_golden


def test_costs_of_a_known_network():
    costs = count_costs(timm.create_model('resnet50'), (3, 224, 224))
    # timm's card of resnet50.a1_in1k: 25.6 M parameters, 4.1 GMACs, 11.1 M activations.
    assert (round(costs.parameters, 1), round(costs.gmacs, 1), round(costs.activations, 1)) == (25.6, 4.1, 11.1)


def test_what_the_quadratic_term_adds():
    names = 'convnext_atto', 'dit_convnext_atto'
    base, ours = (count_costs(timm.create_model(name), (3, 224, 224)) for name in names)
    channels, pixels = 40, 56 * 56
    products = channels * (channels + 1) // 2
    assert ours.parameters - base.parameters == pytest.approx(channels ** 3 / 1e6)
    assert ours.gmacs - base.gmacs == pytest.approx(pixels * products * channels / 1e9, rel=1e-6)
    assert ours.activations - base.activations == pytest.approx(pixels * channels / 1e6)


@pytest.mark.filterwarnings('ignore')
def test_fvcore_counts_the_quadratic_term():
    nn = pytest.importorskip('fvcore.nn', reason='fvcore is not installed')
    model = timm.create_model('test_dit_resnet').eval()
    counts = nn.FlopCountAnalysis(model, torch.randn(1, 3, 64, 64)).by_module()
    term = model.get_submodule('layer2.0.conv2.quadratic')
    # It counts the plain operators of a traced graph: 8 x 8 positions, and some products twice.
    fewest = 64 * term.in_chs * (term.in_chs + 1) // 2 * term.out_chs
    assert fewest <= counts['layer2.0.conv2.quadratic'] <= 1.3 * fewest


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = timm.create_model('test_dit_resnet', num_classes=5).eval()
    torch.nn.init.normal_(model.get_submodule('layer2.0.conv2.quadratic').weight, std=0.1)
    return model


def test_golden_outputs_are_those_of_the_network(model):
    golden = make_golden(model, (3, 32, 32))
    with torch.inference_mode():
        torch.testing.assert_close(model(golden['input']), golden['logits'], rtol=1e-4, atol=1e-5)
    assert golden_difference(model, golden) < TOLERANCE / 10
    # The network stays what it was.
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize('backend', ['reference', 'chunked'])
def test_golden_outputs_hold_for_every_backend(model, backend):
    golden = make_golden(model, (3, 32, 32))
    model.get_submodule('layer2.0.conv2.quadratic').backend = backend
    assert golden_difference(model, golden) < TOLERANCE / 10


def test_other_weights_have_other_outputs(model):
    golden = make_golden(model, (3, 32, 32))
    with torch.no_grad():
        model.fc.weight.mul_(0.99)
    assert golden_difference(model, golden) > TOLERANCE
    assert golden_difference(timm.create_model('test_dit_resnet', num_classes=4), golden) == float('inf')
    with torch.no_grad():
        model.fc.weight.fill_(float('nan'))
    assert golden_difference(model, golden) == float('inf')
