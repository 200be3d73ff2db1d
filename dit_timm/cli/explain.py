"""What a Dit network has learned: `python scripts/explain.py --checkpoint RUN`, or `--pretrained --model NAME`.

Writes a page, with its figures and CSVs, into a folder: for each quadratic term the spectrum of its forms, the channels
that interact most, whether they are those that go together in the data, and the places in images that drive the leading
eigenvectors most; and class by class what is lost when the terms are removed. The images are those that validate.py
would evaluate on.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import torch
from timm.utils import setup_default_logging

from ..analysis.interactions import Interactions, Patch, class_losses, interactions
from ..analysis.statistics import summary
from ..config.options import Parser, option
from ..config.parts import EvaluatedConfig
from ..data.loaders import eval_loader
from ..data.splits import data_config, open_evaluated
from ..errors import UserError, message_of
from ..printing import set_up_printing
from ..training.engine import classified
from ..training.logs import write_csv
from ..training.model import check_model
from ..training.pyplot import plt, save_figure
from ..training.trained import load_trained, parse_with_run, read_classes

_PAGE, _PAIRS, _PICTURED = 'README.md', 10, 8


@dataclass(kw_only=True)
class ExplanationConfig(EvaluatedConfig):
    """The options of an explanation."""

    out: Path = option(Path('output', 'explain'), 'folder of the page', metavar='DIR')


def explain(args: ExplanationConfig) -> Path:
    """Look at a network and write its page; returns its path.

    Raises:
        UserError: There are no such weights or data, or the network has no quadratic term.
    """
    check_model(args)
    dataset, indices = open_evaluated(args)
    model = load_trained(args)
    config = data_config(args, model, use_test_size=args.checkpoint is None)
    loader = eval_loader(args, dataset, config, indices)
    targets, full, without = classified(model, loader, args)
    terms = interactions(model, (images for images, _ in loader))
    args.out.mkdir(parents=True, exist_ok=True)
    losses = class_losses(full == targets, without == targets, targets, list(read_classes(args, model)))
    write_csv(losses, args.out / 'classes.csv')
    parts = [
        f'# What {args.model} has learned\n',
        f'Weights: {args.checkpoint.name if args.checkpoint else "pretrained"}; looked at with {len(targets):,} images '
        f'of {args.val_split!r}. Made by `scripts/explain.py`.\n',
        _of_classes(losses, full == targets, without == targets),
    ]
    scale = torch.tensor(config['std']).view(-1, 1, 1), torch.tensor(config['mean']).view(-1, 1, 1)
    for number, term in enumerate(terms):
        parts.append(_of_term(term, args.out, f'term{number}', scale))
    page = args.out / _PAGE
    page.write_text('\n'.join(parts), encoding='utf-8')
    return page


def _of_classes(losses: List[Dict], full: torch.Tensor, without: torch.Tensor) -> str:
    worst = sorted(losses, key=lambda row: -row['lost'])[:_PAIRS]
    lines = [f'| {row["class"]} | {row["top1"]:.1f} | {row["without"]:.1f} | {row["lost"]:+.1f} |' for row in worst]
    return (
        f'## Without the quadratic terms\n\nTop-1 {100 * full.double().mean():.2f} % with, '
        f'{100 * without.double().mean():.2f} % without. The classes that lose most (all: classes.csv):\n\n'
        '| class | with (%) | without (%) | lost (points) |\n|---|---|---|---|\n' + '\n'.join(lines) + '\n'
    )


def _of_term(term: Interactions, out: Path, name: str, scale: Tuple[torch.Tensor, torch.Tensor]) -> str:
    """The section of a term; writes its figures and CSVs."""
    agreement, rank, standardised = term.agreement(), term.effective_rank, term.standardised()
    write_csv(
        [
            {'output': output, 'effective_rank': rank[output].item(), 'agreement': agreement[output].item(),
             **{f'eigenvalue_{k}': value for k, value in enumerate(values.tolist())}}
            for output, values in enumerate(term.eigenvalues)
        ],
        out / f'{name}_outputs.csv',
    )
    pairs: List[Dict[str, Any]] = [
        dict(zip(('i', 'j', 'weight', 'correlation'), pair)) for pair in term.pairs(term.form[0].numel())
    ]
    write_csv(pairs, out / f'{name}_pairs.csv')
    _plot_spectrum(term, out / f'{name}_spectrum.png')
    _plot_matrices(term, out / f'{name}_channels.png')
    _plot_patches(term.patches, rank, scale, out / f'{name}_patches.png')
    rows = [
        f'| {pair["i"]}, {pair["j"]} | {pair["weight"]:.3g} | {pair["correlation"]:+.2f} |' for pair in pairs[:_PAIRS]
    ]
    outputs, channels = term.form.shape[:2]
    return (
        f'## `{term.name}`: {channels} channels, {outputs} outputs\n\n'
        f'Effective rank of the forms: {summary(rank.tolist())} of {channels} (mean ± deviation over the outputs).\n\n'
        f'![Eigenvalues]({name}_spectrum.png)\n\n'
        f'Does it capture which channels go together in the data? Correlation of |A| with |correlation of the '
        f'channels| over all pairs of channels: {summary(agreement.tolist()).interval()} (mean over the outputs, 95 % '
        f'interval). With the channels in a random order it is as large in {100 * term.chance():.1f} % of draws. For '
        f'channels in units of their deviation: {summary(standardised.agreement().tolist()).interval()} and '
        f'{100 * standardised.chance():.1f} %.\n\n'
        f'![Weights and correlations of the channels]({name}_channels.png)\n\n'
        '| channels | weight over all outputs | correlation in the data |\n|---|---|---|\n' + '\n'.join(rows) + '\n\n'
        f'Places that drive the leading eigenvectors most, a row for each output:\n\n![Patches]({name}_patches.png)\n'
    )


def _plot_spectrum(term: Interactions, target: Path) -> None:
    figure, axis = plt.subplots(figsize=(6, 3), layout='constrained')
    values = torch.linalg.eigvalsh(term.form)
    axis.plot(values.T, color='tab:blue', alpha=0.3, linewidth=1)
    axis.set(xlabel='number', ylabel='eigenvalue', title='Eigenvalues of each output\'s form')
    axis.grid(alpha=0.3)
    save_figure(figure, target)


def _plot_matrices(term: Interactions, target: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout='constrained')
    weight = term.form.norm(dim=0).fill_diagonal_(0)
    pictures = (
        (weight, 'viridis', 'weight over all outputs'), (term.correlation, 'coolwarm', 'correlation in the data'),
    )
    for axis, (picture, colours, title) in zip(axes, pictures):
        limits = {} if colours == 'viridis' else {'vmin': -1, 'vmax': 1}
        figure.colorbar(axis.imshow(picture, cmap=colours, **limits), ax=axis)
        axis.set(xlabel='channel', ylabel='channel', title=title)
    save_figure(figure, target)


def _plot_patches(
        patches: List[List[Patch]], rank: torch.Tensor, scale: Tuple[torch.Tensor, torch.Tensor], target: Path,
) -> None:
    """Draw the patches of the outputs whose form has the lowest rank, which its leading eigenvector stands for best."""
    chosen = rank.argsort()[:_PICTURED].tolist()
    columns = max(len(patches[output]) for output in chosen)
    size = (columns, len(chosen))
    figure, axes = plt.subplots(len(chosen), columns, figsize=size, layout='constrained', squeeze=False)
    for row, output in zip(axes, chosen):
        for axis in row:
            axis.set_axis_off()
        for axis, patch in zip(row, patches[output]):
            pixels = (patch.pixels.cpu() * scale[0] + scale[1]).clamp(0, 1).movedim(0, -1)
            axis.imshow(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
        row[0].set_title(f'output {output}', fontsize='small')
    save_figure(figure, target)


def main(argv: Optional[List[str]] = None) -> int:
    """Write the page of a network; returns the exit code."""
    set_up_printing()
    setup_default_logging()
    parser = Parser(ExplanationConfig, __doc__)
    args = parse_with_run(parser, parser.given(argv))
    try:
        print(explain(args))
    except (UserError, OSError) as error:
        print(f'error: {message_of(error)}', file=sys.stderr)
        return 1
    return 0
