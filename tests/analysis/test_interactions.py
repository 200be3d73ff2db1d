"""What a quadratic term has learned, for networks whose terms were made by hand."""

import pytest
import torch
from torch import nn

from dit_timm import ChannelQuadratic2d
from dit_timm.analysis.interactions import PATCHES, class_losses, interactions
from dit_timm.errors import InvalidInputError


def network(weight):
    """Channels of the image straight into a quadratic term."""
    model = nn.Sequential(ChannelQuadratic2d(weight.shape[1], len(weight)))
    model[0].weight.data.copy_(weight)
    return model.eval()


def images(count=8):
    """Channels 0 and 1 are the same, channel 2 is its own."""
    x = torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    x[:, 1] = x[:, 0]
    return x


def test_spectrum_and_pairs():
    weight = torch.zeros(2, 3, 3)
    weight[0, 0, 1], weight[1] = 2., torch.diag(torch.tensor([3., 0., -5.]))
    found, = interactions(network(weight), [images(), images()])
    assert found.name == '0'
    torch.testing.assert_close(found.eigenvalues.abs(), torch.tensor([[1., 1, 0], [5., 3, 0]]).double())
    assert found.eigenvalues[1, 0] == -5
    torch.testing.assert_close(found.effective_rank, torch.tensor([2., 64 / 34]).double())
    (i, j, strength, correlation), *_ = found.pairs(2)
    assert (i, j) == (0, 1) and strength == pytest.approx(1) and correlation == pytest.approx(1)


def test_correlation_is_that_of_the_channels():
    x = torch.randn(4, 5, 3, 7, generator=torch.Generator().manual_seed(2)) * torch.arange(1, 6)[:, None, None] + 4
    found, = interactions(network(torch.randn(2, 5, 5)), x.split(3))
    expected = torch.corrcoef(x.movedim(1, 0).flatten(1).double())
    torch.testing.assert_close(found.correlation, expected, rtol=1e-6, atol=1e-6)


def test_agreement_with_the_data():
    x = torch.randn(16, 6, 8, 8, generator=torch.Generator().manual_seed(3))
    x = torch.einsum('ij,njhw->nihw', torch.randn(6, 6, generator=torch.Generator().manual_seed(4)), x)
    correlation = torch.corrcoef(x.movedim(1, 0).flatten(1))
    # The first output has learned the correlation, with a sign; the second knows nothing of it.
    other = torch.randn(6, 6, generator=torch.Generator().manual_seed(5))
    found, = interactions(network(torch.stack([-3 * correlation, other])), [x])
    agreement = found.agreement()
    assert agreement[0] > 0.999 and abs(agreement[1]) < 0.7
    chance = found.agreement_by_chance(200)
    assert chance.shape == (200,) and abs(chance.mean()) < 0.1 and chance.max() < agreement.mean() + 0.5


def test_standardised_terms_do_not_depend_on_units():
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(8, 4, 5, 5, generator=generator).cumsum(1)
    weight = torch.randn(2, 4, 4, generator=generator)
    units = torch.tensor([0.1, 1., 7., 30.])
    found, = interactions(network(weight), [x])
    other, = interactions(network(weight / torch.outer(units, units)), [x * units[:, None, None]])
    torch.testing.assert_close(other.standardised().form, found.standardised().form, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(other.agreement(), found.agreement(), atol=0.1)
    # The network's own output, of channels of deviation 1.
    deviation = x.movedim(1, 0).flatten(1).double().std(1, correction=0)
    torch.testing.assert_close(found.standardised().form, found.form * torch.outer(deviation, deviation))


def test_patches_show_the_place():
    weight = torch.zeros(1, 3, 3)
    weight[0, 2, 2] = 1.
    x = torch.zeros(12, 3, 32, 32)
    for index in range(12):
        x[index, 2, 3 + index, 20] = 1. + index
    found, = interactions(network(weight), x.split(5))
    patches, = found.patches
    assert len(patches) == PATCHES and [patch.strength for patch in patches] == [(12. - n) ** 2 for n in range(PATCHES)]
    for rank, patch in enumerate(patches):
        assert patch.pixels.shape == (3, 16, 16)
        bright = patch.pixels[2].flatten().argmax().item()
        # In the middle, or next to it.
        assert patch.pixels[2].max() == 12 - rank and all(abs(at - 7.5) <= 1.5 for at in divmod(bright, 16))


def test_a_term_with_a_stride_is_looked_at_where_it_looks():
    model = nn.Sequential(ChannelQuadratic2d(3, 1, stride=2, offset=1))
    model[0].weight.data[0, 2, 2] = 1.
    x = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    # Brighter, but between the positions.
    x[:, 2, 10, 11], x[:, 2, 20, 20] = 9., 100.
    x[:, 2, 21, 5] = 50.
    found, = interactions(model.eval(), [x])
    expected = torch.corrcoef(x[..., 1::2, 1::2].movedim(1, 0).flatten(1).double())
    torch.testing.assert_close(found.correlation, expected, rtol=1e-6, atol=1e-6)
    for patch in found.patches[0]:
        assert patch.strength == 50 ** 2 and patch.pixels[2, 7, 7] == 50


def test_what_classes_lose():
    targets = torch.tensor([0, 0, 1, 1, 1, 1])
    correct, without = torch.tensor([1, 1, 1, 1, 1, 0]).bool(), torch.tensor([1, 0, 1, 1, 1, 1]).bool()
    assert class_losses(correct, without, targets, ['cat', 'dog']) == [
        {'class': 'cat', 'images': 2, 'top1': 100., 'without': 50., 'lost': 50.},
        {'class': 'dog', 'images': 4, 'top1': 75., 'without': 100., 'lost': -25.},
    ]


def test_errors():
    with pytest.raises(InvalidInputError, match='Conv2d has no quadratic term'):
        interactions(nn.Conv2d(3, 3, 1), [images()])
    with pytest.raises(InvalidInputError, match='no image'):
        interactions(network(torch.zeros(1, 3, 3)), [])
