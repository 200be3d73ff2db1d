"""Command line options, named as in timm's train.py."""

import argparse
from pathlib import Path

import torch
from timm.utils import ParseKwargs

from ..data.cache import default_cache
from ..data.inputs import IMAGE_MODES
from .choices import interpolation, optimizer, policy, train_interpolation
from .config import fraction, positive_int
from .variants import DIT, VARIANTS


class _NoAction(argparse.BooleanOptionalAction):
    """A switch whose own name begins with `--no-`, which argparse takes for the negation of another."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, option_string == self.option_strings[0])


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Options that say which images are read."""
    group = parser.add_argument_group('data')
    group.add_argument('--data-dir', metavar='DIR', help='folder with the data (default: handwritten digits)')
    group.add_argument('--dataset', default='', metavar='NAME', help='timm dataset, such as torch/cifar10')
    group.add_argument(
        '--val-split', default='validation', metavar='NAME',
        help='split to evaluate on; while training, "" for none',
    )
    group.add_argument('--train-split', default='train', metavar='NAME')
    group.add_argument(
        '--val-fraction', type=fraction, default=0., metavar='SHARE',
        help='hold out this share of the training images and evaluate on it in place of --val-split; training keeps '
             'the best epoch by it (default: the last epoch is kept)',
    )
    group.add_argument(
        '--class-map', default='', metavar='FILE', help='class names, a line each, in the order of their numbers',
    )
    group.add_argument(
        '--dataset-download', action=argparse.BooleanOptionalAction, default=False,
        help='let --dataset download what --data-dir lacks',
    )
    group.add_argument('--input-key', metavar='KEY', help='where a sample of --dataset has its image')
    group.add_argument('--target-key', metavar='KEY', help='where a sample of --dataset has its label')
    group.add_argument(
        '--train-num-samples', type=positive_int, metavar='N', help='images of a stream that does not say how many',
    )
    group.add_argument(
        '--val-num-samples', type=positive_int, metavar='N', help='the same of the split that is evaluated',
    )
    group.add_argument(
        '--skip-bad-images', action=argparse.BooleanOptionalAction, default=False,
        help='read all images first, and leave out those that cannot be read',
    )
    group.add_argument('-b', '--batch-size', type=positive_int, default=128, metavar='N')
    group.add_argument('-j', '--workers', type=int, default=2, metavar='N', help='processes that load data')


def add_input_options(parser: argparse.ArgumentParser) -> None:
    """Options that say what a network is shown of an image."""
    group = parser.add_argument_group('input')
    group.add_argument('--img-size', type=positive_int, metavar='N', help='image size (default: the model\'s)')
    group.add_argument(
        '--in-chans', type=positive_int, metavar='N', help='channels of an image (default: the model\'s)',
    )
    group.add_argument(
        '--input-size', type=positive_int, nargs=3, metavar=('C', 'H', 'W'), help='channels and image size in one',
    )
    group.add_argument(
        '--input-img-mode', choices=tuple(IMAGE_MODES), metavar='MODE',
        help=f'what images are converted to: {", ".join(IMAGE_MODES)} (default: L for one channel, RGB for three)',
    )
    group.add_argument('--crop-pct', type=float, help='share of the image that evaluation crops')
    group.add_argument('--crop-mode', choices=('center', 'squash', 'border'), help='default: the model\'s')
    group.add_argument('--mean', type=float, nargs='+', help='mean of the pixels (default: the model\'s)')
    group.add_argument('--std', type=float, nargs='+', help='standard deviation of the pixels (default: the model\'s)')
    group.add_argument(
        '--interpolation', type=interpolation, default='', help='how images are resized (default: the model\'s)',
    )


def add_model_options(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Options that say which network is built, or networks, and in which precision it runs."""
    group = parser.add_argument_group('model')
    if several:
        group.add_argument(
            '--model', nargs='+', default=['dit_resnet20'], metavar='NAME',
            help='name, pattern of names with pretrained weights, local-dir:FOLDER or hf-hub:OWNER/NAME; several are '
                 'evaluated one after the other (default: dit_resnet20)',
        )
    else:
        group.add_argument(
            '--model', default='dit_resnet20', metavar='NAME',
            help='of timm\'s registry, or local-dir:FOLDER or hf-hub:OWNER/NAME (default: %(default)s)',
        )
    group.add_argument('--pretrained', action=argparse.BooleanOptionalAction, default=False)
    group.add_argument(
        '--num-classes', type=positive_int, metavar='N', help='default: the number of classes in the data',
    )
    group.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='KEY=VALUE')
    group.add_argument(
        '--variant', default=DIT, choices=tuple(VARIANTS),
        help='; '.join(f'{name}: {what}' for name, what in VARIANTS.items()),
    )
    group.add_argument(
        '--device',
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='cpu, cuda, mps, ... (default: cuda where there is a GPU for it)',
    )
    group.add_argument('--channels-last', action=argparse.BooleanOptionalAction, default=False)
    group.add_argument('--amp', action=argparse.BooleanOptionalAction, default=False, help='mixed precision')
    group.add_argument('--amp-dtype', default='bfloat16', choices=('bfloat16', 'float16'))


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Options of the optimisation."""
    group = parser.add_argument_group('optimisation')
    group.add_argument(
        '--pretrained-from', metavar='SOURCE',
        help='where --pretrained has the weights from, local-dir:FOLDER or hf-hub:OWNER/NAME, if not from where timm '
             'has them; --model SOURCE sets it too',
    )
    group.add_argument(
        '--test-split', metavar='NAME', help='split to evaluate on once, at the end, with the weights that are kept',
    )
    group.add_argument('--epochs', type=positive_int, default=300, metavar='N')
    group.add_argument('--opt', type=optimizer, default='sgd', help='one of timm\'s optimizers (default: %(default)s)')
    group.add_argument('--lr', type=float, default=0.1)
    group.add_argument('--momentum', type=float, default=0.9)
    group.add_argument('--weight-decay', type=float, default=2e-5)
    group.add_argument('--opt-eps', type=float)
    group.add_argument('--opt-betas', type=float, nargs='+')
    group.add_argument('--layer-decay', type=float)
    group.add_argument(
        '--quadratic-lr-scale', type=float, default=1., metavar='FACTOR',
        help='learning rate of the quadratic terms and the norms in front of them, as a factor of --lr',
    )
    group.add_argument(
        '--decay-norms', action=argparse.BooleanOptionalAction, default=False,
        help='decay biases and the weights of norms too',
    )
    group.add_argument(
        '--train-only', nargs='+', metavar='PATTERN',
        help='freeze all but the parameters whose name has one of these in it; "quadratic": the quadratic terms',
    )
    group.add_argument('--grad-accum-steps', type=positive_int, default=1, metavar='N')
    group.add_argument('--clip-grad', type=float, metavar='NORM')
    group.add_argument('--clip-mode', default='norm', choices=('norm', 'value', 'agc'))
    group.add_argument(
        '--sched', default='cosine',
        choices=('cosine', 'tanh', 'step', 'multistep', 'poly', 'wsd', 'rsqrt', 'constant'),
    )
    group.add_argument('--sched-on-updates', action=argparse.BooleanOptionalAction, default=False)
    group.add_argument('--warmup-epochs', type=int, default=5, metavar='N')
    group.add_argument('--warmup-lr', type=float, default=1e-5)
    group.add_argument('--min-lr', type=float, default=0.)
    group.add_argument('--decay-milestones', type=int, nargs='+', default=[90, 180, 270])
    group.add_argument('--decay-rate', type=float, default=0.1)
    group.add_argument('--decay-epochs', type=float, metavar='N')
    group.add_argument('--cooldown-epochs', type=int, default=0, metavar='N')
    group.add_argument('--warmup-prefix', action=argparse.BooleanOptionalAction, default=False)
    group.add_argument('--bce-loss', action=argparse.BooleanOptionalAction, default=False)
    group.add_argument('--bce-sum', action=argparse.BooleanOptionalAction, default=False)
    group.add_argument('--bce-target-thresh', type=float, metavar='T')
    group.add_argument('--model-ema', action=argparse.BooleanOptionalAction, default=False)
    group.add_argument('--model-ema-decay', type=float, default=0.9998)
    group.add_argument('--model-ema-warmup', action=argparse.BooleanOptionalAction, default=False)
    group.add_argument('--drop', type=float, default=0.)
    group.add_argument('--drop-path', type=float)
    group.add_argument('--grad-checkpointing', action=argparse.BooleanOptionalAction, default=False)
    group.add_argument(
        '--cuda-graph', action=argparse.BooleanOptionalAction, default=None,
        help='capture a whole step and replay it, so that the GPU does not wait for the host (default: on a GPU, where '
             'the options allow it)',
    )
    group.add_argument('--torchcompile', action=argparse.BooleanOptionalAction, default=False)
    group.add_argument(
        '--sync-bn', action=argparse.BooleanOptionalAction, default=False,
        help='batch norms over all processes together (GPUs)',
    )
    group.add_argument('--seed', type=int, default=42)

    group = parser.add_argument_group('loading')
    group.add_argument(
        '--data-on-device', action=argparse.BooleanOptionalAction, default=False,
        help='decode the images once, keep them in the memory of the device, and augment them there: for data that fit',
    )
    group.add_argument(
        '--data-cache', type=Path, default=default_cache(), metavar='DIR',
        help='where --data-on-device keeps decoded images for the next time (default: %(default)s)',
    )
    group.add_argument(
        '--cache-images', action=argparse.BooleanOptionalAction, default=False,
        help='keep the training images in memory once they are decoded, in each of the --workers: for small images, '
             'which a GPU would else wait for',
    )

    group = parser.add_argument_group('augmentation')
    group.add_argument('--no-aug', action=_NoAction, default=False)
    group.add_argument('--train-crop-mode', choices=('rrc', 'rkrc', 'rkrr'))
    group.add_argument(
        '--crop-padding', type=int, default=0, metavar='PIXELS',
        help='first crop at random from the image padded with black on all sides; the image has the input size',
    )
    group.add_argument('--scale', type=float, nargs=2, default=[0.08, 1.0])
    group.add_argument('--ratio', type=float, nargs=2, default=[3 / 4, 4 / 3])
    group.add_argument('--hflip', type=float, default=0.5)
    group.add_argument('--vflip', type=float, default=0.)
    group.add_argument('--color-jitter', type=float, default=0.4)
    group.add_argument('--aa', type=policy, metavar='POLICY', help='AutoAugment, RandAugment or AugMix policy')
    group.add_argument('--reprob', type=float, default=0., help='probability of random erasing')
    group.add_argument('--remode', default='pixel', choices=('pixel', 'rand', 'const'))
    group.add_argument('--recount', type=positive_int, default=1)
    group.add_argument('--mixup', type=float, default=0., metavar='ALPHA')
    group.add_argument('--cutmix', type=float, default=0., metavar='ALPHA')
    group.add_argument('--mixup-prob', type=float, default=1.)
    group.add_argument('--mixup-switch-prob', type=float, default=0.5)
    group.add_argument('--smoothing', type=float, default=0.1, help='label smoothing')
    group.add_argument('--train-interpolation', type=train_interpolation, default='random')

    group = parser.add_argument_group('output')
    group.add_argument('--output', default='output/train', metavar='DIR')
    group.add_argument('--experiment', default='', metavar='NAME', help='subfolder (default: the time and the model)')
    group.add_argument(
        '--resume', metavar='RUN', help='go on with the run in this folder, to the end that it would have had',
    )
    group.add_argument(
        '--checkpoint-interval', type=positive_int, metavar='N',
        help='save a checkpoint after every N updates too (default: after each epoch)',
    )
    group.add_argument(
        '--checkpoint-seconds', type=float, default=0., metavar='S',
        help='leave out the checkpoint of an epoch while the last one is younger than this',
    )
    group.add_argument('--log-tensorboard', action=argparse.BooleanOptionalAction, default=False)
    group.add_argument('--log-wandb', action=argparse.BooleanOptionalAction, default=False)
    group.add_argument('--dry-run', action='store_true', help='say what would be done, and do nothing')


# What may differ between a run and its continuation: none of it changes the weights.
FREE_OPTIONS = (
    'device', 'workers', 'cache_images', 'data_cache', 'cuda_graph', 'checkpoint_interval', 'checkpoint_seconds',
    'log_tensorboard', 'log_wandb', 'output', 'experiment', 'resume', 'config', 'dry_run', 'data_dir', 'test_split',
)
