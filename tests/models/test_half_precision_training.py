"""A thousand training steps in half precision: nothing overflows, and the network learns."""

import pytest
import timm
import torch
from torch.nn import functional as F

pytestmark = pytest.mark.slow

STEPS, BATCH = 1000, 4


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('name, size, options', [
    # Convolutions in float16 are slow on CPUs.
    ('dit_resnet20', 8, {'img_size': 8}),
    ('test_dit_convnext', 32, {}),
])
def test_thousand_steps(name, size, options, dtype):
    model = timm.create_model(name, num_classes=4, **options)
    quadratic = [parameter for key, parameter in model.named_parameters() if key.endswith('quadratic.weight')]
    assert quadratic and not any(weight.any() for weight in quadratic)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    scaler = torch.amp.GradScaler('cpu', enabled=dtype == torch.float16)
    target = torch.arange(32) % 4
    # The classes differ by their colour.
    images = torch.randn(32, 3, size, size) + torch.randn(4, 3, 1, 1)[target] * 2
    losses = []
    for step in range(STEPS):
        batch = torch.randint(0, 32, (BATCH,))
        with torch.autocast('cpu', dtype=dtype):
            loss = F.cross_entropy(model(images[batch]).float(), target[batch])
        assert loss.isfinite(), f'step {step}'
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert all(weight.any() for weight in quadratic), 'the quadratic term was not trained'
    assert sum(losses[-100:]) < sum(losses[:100]) / 2
