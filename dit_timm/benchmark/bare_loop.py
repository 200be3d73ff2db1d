"""The shortest loop that trains and evaluates a timm model on an image folder: nothing saved, logged or resumed.

    python scripts/benchmarking/bare_loop.py DIR MODEL EPOCHS BATCH_SIZE WORKERS DEVICE

The yardstick of scripts/benchmark_training.py. Data and loaders are timm's, with the defaults of its train.py.
"""

import sys

import timm
import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from torch import nn


def main(root: str, name: str, epochs: int, batch_size: int, workers: int, device: str) -> None:
    """Train, and print the accuracy of each epoch."""
    train_set = create_dataset('', root=f'{root}/train', search_split=False)
    model = timm.create_model(name, num_classes=len(train_set.reader.class_to_idx)).to(device)
    config = resolve_data_config({}, model=model)
    shared = dict(
        input_size=config['input_size'], batch_size=batch_size, mean=config['mean'], std=config['std'],
        num_workers=workers, device=torch.device(device), persistent_workers=True,
    )
    train_batches = create_loader(
        train_set, is_training=True, color_jitter=0.4, interpolation='random', **shared,
    )
    eval_batches = create_loader(
        create_dataset('', root=f'{root}/validation', search_split=False),
        interpolation=config['interpolation'], crop_pct=config['crop_pct'], **shared,
    )
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-5, nesterov=True)
    for epoch in range(epochs):
        model.train()
        for images, targets in train_batches:
            optimizer.zero_grad()
            loss(model(images), targets).backward()
            optimizer.step()
        model.eval()
        right = images_seen = 0
        with torch.inference_mode():
            for images, targets in eval_batches:
                right += (model(images).argmax(1) == targets).sum().item()
                images_seen += len(targets)
        print(f'epoch {epoch + 1}: top1 {100 * right / images_seen:.3f}', flush=True)


if __name__ == '__main__':
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]), sys.argv[6])
