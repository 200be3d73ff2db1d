"""The confusion matrix."""

from pathlib import Path
from typing import Any, Dict, List, Optional

import torch

from .pyplot import plt, save_figure

# Of more classes the names would not be read.
_MAX_NAMES = 40


class Confusion:
    """Counts of predictions, (true class, predicted class).

    Args:
        num_classes: Classes of the network.
    """

    def __init__(self, num_classes: int) -> None:
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """Count a batch: logits (N, classes), targets (N,)."""
        size = len(self.counts)
        pairs = targets.cpu() * size + logits.argmax(1).cpu()
        self.counts += torch.bincount(pairs, minlength=size * size).view(size, size)

    def per_class(self, names: Optional[List[str]]) -> List[Dict[str, Any]]:
        """For each class its images, the percentage that is right, and the class it is taken for most often."""
        rows = []
        for number, counts in enumerate(self.counts):
            images = int(counts.sum())
            wrong = counts.clone()
            wrong[number] = 0
            rows.append({
                'class': self._name(number, names),
                'images': images,
                'top1': round(100 * int(counts[number]) / images, 3) if images else '',
                'taken_for': self._name(int(wrong.argmax()), names) if wrong.any() else '',
            })
        return rows

    def plot(self, names: Optional[List[str]], target: Path) -> None:
        """Draw each row as shares of its class, as a PNG."""
        size = len(self.counts)
        shares = self.counts / self.counts.sum(1, keepdim=True).clamp(min=1)
        figure, axis = plt.subplots(figsize=(8, 7), layout='constrained')
        figure.colorbar(axis.imshow(shares.numpy(), vmin=0, vmax=1, cmap='viridis'), label='share of the true class')
        if size <= _MAX_NAMES:
            # Else what stands between two of them is a formula to matplotlib.
            labels = [self._name(number, names).replace('$', r'\$') for number in range(size)]
            axis.set_xticks(range(size), labels, rotation=90)
            axis.set_yticks(range(size), labels)
        axis.set_xlabel('predicted class')
        axis.set_ylabel('true class')
        save_figure(figure, target)

    @staticmethod
    def _name(number: int, names: Optional[List[str]]) -> str:
        return names[number] if names is not None and number < len(names) else str(number)
