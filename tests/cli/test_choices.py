"""What timm knows by name, and what it does not: one line with near names, before any data are read."""

import pytest
from timm.data import create_transform
from timm.optim import create_optimizer_v2
from torch import nn

from dit_timm.cli import train, validate


@pytest.mark.parametrize('words, message', [
    (['--opt', 'adamww'], "--opt: timm has no optimizer 'adamww'. Near names: adamw"),
    (['--opt', 'lookahead_adamww'], "timm has no optimizer 'lookahead_adamww'. Near names: adamw"),
    (['--opt', 'bnbadam'], "'bnbadam' cannot be had here: "),
    (['--sched', 'cosin'], "--sched: invalid choice: 'cosin' (choose from "),
    (['--aa', 'rnd-m9'], "--aa: unknown policy 'rnd-m9'. Near names: rand"),
    (['--aa', 'autoaugment'], "unknown policy 'autoaugment'. "),
    (['--aa', 'rand-m9-std0.5'], "'std0.5' in 'rand-m9-std0.5' means nothing to timm"),
    # timm leaves it out in silence.
    (['--aa', 'rand-m9-mstd'], "'mstd' in 'rand-m9-mstd' means nothing to timm"),
    (['--aa', 'original-m9'], "'m9' in 'original-m9' means nothing to timm"),
    (['--aa', 'rand-m9.5'], "'rand-m9.5' has a number that timm cannot read"),
    (['--interpolation', 'bicubc'], "unknown interpolation 'bicubc'. Near names: bicubic"),
    (['--interpolation', 'random'], "unknown interpolation 'random'"),
    (['--train-interpolation', 'nearst'], "unknown interpolation 'nearst'. Near names: nearest"),
    (['--remode', 'pixels'], "--remode: invalid choice: 'pixels'"),
    (['--train-crop-mode', 'rrcc'], "--train-crop-mode: invalid choice: 'rrcc'"),
    (['--num-classes', '0'], '--num-classes: must be at least 1; got 0'),
])
def test_unknown_names(capsys, words, message):
    with pytest.raises(SystemExit):
        train.parse_args(['--data-dir', 'nowhere', *words])
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 2


@pytest.mark.parametrize('name', ['sgd', 'AdamW', 'lookahead_adamw', 'adahessian', 'muon'])
def test_optimizers_of_timm(name):
    assert train.parse_args(['--data-dir', 'x', '--opt', name]).opt == name
    create_optimizer_v2(nn.Linear(2, 2), opt=name, lr=0.1)


@pytest.mark.parametrize('policy', [
    'rand-m9-mstd0.5-inc1', 'rand-n3-p0.7-mmax8-tweights', 'augmix-m5-w4-d2-a0.8-b1', 'original-mstd0.5', 'v0r', '3a',
])
@pytest.mark.parametrize('how', ['bilinear', 'lanczos', 'random'])
def test_policies_of_timm(policy, how):
    args = train.parse_args(['--data-dir', 'x', '--aa', policy, '--train-interpolation', how])
    create_transform((3, 32, 32), is_training=True, auto_augment=args.aa, interpolation=args.train_interpolation)


@pytest.mark.parametrize('words, message', [
    (['--model', 'dit_resnet18', '--model-kwargs', 'dendrite=layer1'],
     'error: --model-kwargs dendrite: dit_resnet18 has no such argument. Near names: dendrites'),
    (['--model', 'resnet18', '--model-kwargs', 'cardinalty=2'], 'Near names: cardinality'),
    (['--model', 'dit_resnet18', '--model-kwargs', 'dendrites=layer9'],
     'error: --model-kwargs dendrites=layer9: dit_resnet18 refuses them: '),
    (['--model', 'resnet18', '--model-kwargs', 'num_classes=5'],
     'model-kwargs num_classes: --num-classes says it'),
    (['--model', 'dit_resnet8'], 'error: --model dit_resnet8 is not known to timm. Near names: dit_resnet'),
])
def test_networks_are_refused_before_data_are_looked_for(capsys, words, message):
    with pytest.raises(SystemExit) as ended:
        train.main(['--data-dir', 'nowhere', '--device', 'cpu', *words])
    assert message in str(ended.value) and '\n' not in str(ended.value)
    assert validate.main(['--data-dir', 'nowhere', '--device', 'cpu', '--pretrained', *words]) == 1
    assert message in capsys.readouterr().err
