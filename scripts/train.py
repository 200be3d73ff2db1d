"""Train a Dit-CNN, or any timm model.

Without arguments: dit_resnet20 on scikit-learn's handwritten digits, a few minutes on two CPU cores. On your own
images: `python scripts/train.py --data-dir DIR --model dit_resnet18 --epochs 100 --lr 0.1`, where DIR holds `train`
and `validation`, each a folder with a folder for every class, or a .tar of that.

The output folder receives model.safetensors (the weights after the last epoch), args.yaml (every option), summary.csv
(a row for each epoch) and curves.png.
"""

import argparse
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import List, Optional

import torch
import yaml
from safetensors.torch import save_file
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.utils import get_outdir, random_seed, setup_default_logging, update_summary
from torch import nn
from training.curves import plot_curves
from training.data import class_names, data_config, eval_loader, open_split, train_loader
from training.engine import evaluate, summary_line, train_one_epoch
from training.model import build_model
from training.options import add_data_options, add_model_options, add_training_options, parse

_DIGITS_RECIPE = Path(__file__).parent / 'recipes' / 'digits.yaml'


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Parse the command line; without arguments, the recipe for the digits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-c', '--config', type=Path, metavar='FILE', help='YAML file that sets any option')
    add_data_options(parser)
    add_model_options(parser)
    add_training_options(parser)
    args = parse(parser, argv)
    if args.config is None and not args.data_dir and not args.dataset:
        args = parse(parser, argv, config=_DIGITS_RECIPE)
    return args


def main(argv: Optional[List[str]] = None) -> None:
    """Train, evaluate after each epoch, and save."""
    setup_default_logging()
    args = parse_args(argv)
    device = torch.device(args.device)
    random_seed(args.seed)

    train_set = open_split(args, args.train_split, is_training=True)
    val_set = open_split(args, args.val_split)
    classes = class_names(train_set)
    if classes is not None:
        args.num_classes = args.num_classes or len(classes)
        if args.num_classes < len(classes):
            sys.exit(f'--num-classes is {args.num_classes}, but the training data have {len(classes)} classes.')
        if class_names(val_set) != classes:
            different = set(classes) ^ set(class_names(val_set))
            sys.exit(f'The splits differ in their classes: {sorted(different)[:10]} are in one only.')

    model = build_model(args, drop_rate=args.drop, drop_path_rate=args.drop_path)
    if args.grad_checkpointing:
        model.set_grad_checkpointing()
    args.num_classes = model.num_classes
    config = data_config(args, model)
    train_batches = train_loader(args, train_set, config, device)
    val_batches = eval_loader(args, val_set, config, device)
    if len(train_batches) == 0:
        sys.exit(f'{len(train_set)} training images do not fill one batch: lower --batch-size, {args.batch_size}.')
    loss_fn = LabelSmoothingCrossEntropy(args.smoothing) if args.smoothing else nn.CrossEntropyLoss()
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(args))
    scheduler, epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=len(train_batches))

    experiment = args.experiment or f'{datetime.now():%Y%m%d-%H%M%S}-{args.model}'
    folder = Path(get_outdir(args.output, experiment, inc=True))
    options = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    (folder / 'args.yaml').write_text(yaml.safe_dump(options))
    source = '' if args.data_dir else ' (handwritten digits, for want of --data-dir)'
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f'{args.model}: {parameters:,} parameters, {args.num_classes} classes; '
          f'{len(train_set):,} training and {len(val_set):,} evaluation images{source}; {device}')

    if args.warmup_epochs >= epochs:
        print(f'The learning rate warms up all the time: --warmup-epochs is {args.warmup_epochs}, --epochs {epochs}.')

    for epoch in range(epochs):
        start = time.perf_counter()
        title = f'epoch {epoch + 1}/{epochs}'
        lr = optimizer.param_groups[0]['lr']
        trained = train_one_epoch(model, train_batches, loss_fn, optimizer, args, title)
        seconds = time.perf_counter() - start
        metrics = evaluate(model, val_batches, args, f'{title} evaluation')
        update_summary(epoch, {**trained, 'seconds': seconds}, metrics, filename=folder / 'summary.csv', lr=lr)
        if scheduler is not None:
            scheduler.step(epoch + 1, metrics['top1'])
        print(f'{title}  train loss {trained["loss"]:.4f}  eval loss {metrics["loss"]:.4f}  '
              f'top1 {metrics["top1"]:.3f}  lr {lr:.4g}  {len(train_set) / seconds:.0f} images/s', flush=True)

    weights = folder / 'model.safetensors'
    # safetensors takes contiguous tensors only, which those in channels_last are not.
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
    plot_curves(folder / 'summary.csv', folder / 'curves.png')
    print(summary_line(metrics, args.model, str(weights)))


if __name__ == '__main__':
    try:
        main()
    except OSError as error:
        sys.exit(f'error: {error}')
