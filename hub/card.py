"""The model card: README.md of a repository, made from a run, its results and its config.

Blocks between `<!-- generated: NAME DIGEST -->` and `<!-- /generated: NAME -->` are regenerated each time; what is
written by hand outside of them stays, and so do keys and tags that were added to the metadata; the generated keys are
regenerated. The digest tells whether a block was edited by hand: such a card is refused rather than overwritten.
"""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Optional

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from safetensors import safe_open
from torch import nn

from dit_timm.analysis.ablation import quadratic_terms
from dit_timm.analysis.costs import count_costs
from dit_timm.data.inputs import image_mode, input_config
from dit_timm.errors import InvalidInputError, MissingFileError
from dit_timm.files import write_file
from dit_timm.models._base_weights import INIT_SUFFIX

from .export import CARD, CONFIG, WEIGHTS
from .run import KEPT, Run, load_model

_TEMPLATE = Path(__file__).with_name('card.md.jinja')
_BLOCK = re.compile(r'<!-- generated: (\w+)(?:\s+(\w+))?\s*-->(.*?)<!-- /generated: \1 -->', re.DOTALL)
_OPENED = re.compile(r'<!-- generated: (\w+)')
# Of the metadata; a card that is regenerated loses those that no longer hold.
_GENERATED_KEYS = (
    'library_name', 'license', 'tags', 'pipeline_tag', 'model-index', 'datasets', 'base_model', 'base_model_relation',
)
# Of classes; more are only counted.
_MAX_NAMED = 20
_DEFAULT_LIMITS = (
    'A research model, evaluated on nothing but the splits above. Not examined: fairness, robustness, images unlike '
    'those it was trained on.'
)


def write_card(run: Run, out: Path, repo_id: str, data: str, dataset: Optional[str] = None) -> Path:
    """Write the card of an export, or bring it up to date.

    Args:
        run: The run that was exported.
        out: The folder of the export.
        repo_id: The repository that the snippets name.
        data: What the data are called.
        dataset: Their id on the Hub, if they have one.

    Raises:
        MissingFileError: The folder holds no export.
        InvalidInputError: The card that is there has metadata that are no YAML, or a block that does not end or was
            edited by hand.
    """
    if not (out / CONFIG).is_file():
        raise MissingFileError(f'{out} holds no export: it has no {CONFIG}. Begin with `python -m hub export`.')
    config = json.loads((out / CONFIG).read_text())
    with safe_open(out / WEIGHTS, framework='pt') as file:
        # The run's numbers are those of the weights that it kept.
        rows = run.results if file.metadata()['weights'] == KEPT else []
    card = ModelCard.from_template(
        _card_data(run, config, rows, data, dataset), template_path=str(_TEMPLATE), results=rows,
        **_facts(run, config, repo_id, data),
    )
    card.text = _BLOCK.sub(_stamped, card.text)
    old = card_to_update(out)
    if old is not None:
        card = _updated(old, card)
    path = out / CARD
    write_file(path, f'{str(card).rstrip()}\n'.encode())
    return path


def read_card(path: Path) -> ModelCard:
    """Read a card.

    Raises:
        InvalidInputError: Its metadata are no YAML, have keys that are no text, or do not end.
    """
    text = path.read_text(encoding='utf-8')
    if text.lstrip().startswith('---') and not REGEX_YAML_BLOCK.search(text):
        raise InvalidInputError(f'{path}: the metadata begin with a line "---" and do not end with one.')
    try:
        return ModelCard(text)
    except (yaml.YAMLError, TypeError) as error:
        raise InvalidInputError(
            f'{path}: the metadata between the lines "---" are no YAML, or have a key that is no text: {error}'
        ) from error


def card_to_update(out: Path) -> Optional[ModelCard]:
    """The card in the folder of an export, if it can be brought up to date; None if there is none.

    Raises:
        InvalidInputError: See `read_card`; or a block does not end, or was edited by hand.
    """
    path = out / CARD
    if not path.is_file():
        return None
    card = read_card(path)
    blocks = list(_BLOCK.finditer(card.text))
    opened, found = _OPENED.findall(card.text), [match[1] for match in blocks]
    if opened != found:
        unmatched = sorted((Counter(opened) - Counter(found)).elements())
        raise InvalidInputError(
            f'{path}: the blocks {unmatched} begin and do not end, or stand inside of another. Put '
            f'"<!-- /generated: NAME -->" after each, or remove the card for a new one.'
        )
    # A block that was emptied holds nothing that could be lost.
    edited = [match[1] for match in blocks if match[3].strip() and match[2] != _digest(match[3])]
    if edited:
        raise InvalidInputError(
            f'{path}: the blocks {edited} were edited by hand, and what was written there would be lost. Move it to '
            f'before or after the block, then empty the block, between "<!-- generated: NAME" and '
            f'"<!-- /generated: NAME -->": it is filled again.'
        )
    return card


def _card_data(
        run: Run, config: Dict[str, Any], rows: List[Dict[str, str]], data: str, dataset: Optional[str],
) -> ModelCardData:
    base = run.base.hf_hub_id if run.base else None
    results = [
        EvalResult(
            task_type='image-classification', dataset_type=dataset or 'custom', dataset_name=data,
            dataset_split=row['split'], metric_type='accuracy', metric_name=name,
            metric_value=round(float(row[key]), 3),
        )
        for row in _independent(rows)[-1:] for name, key in (('top-1', 'top1'), ('top-5', 'top5'))
    ]
    optional = {
        'eval_results': results or None,
        'datasets': [dataset] if dataset else None,
        'base_model': base,
        'base_model_relation': 'finetune' if base else None,
    }
    return ModelCardData(
        library_name='timm',
        license=config['pretrained_cfg']['license'],
        tags=['image-classification', 'timm', 'dit-timm', 'dendritic-cnn'],
        pipeline_tag='image-classification',
        model_name=_name(config),
        **{key: value for key, value in optional.items() if value is not None},
    )


def _name(config: Dict[str, Any]) -> str:
    return f'{config["architecture"]}.{config["pretrained_cfg"]["tag"]}'


def _facts(run: Run, config: Dict[str, Any], repo_id: str, data: str) -> Dict[str, Any]:
    model = load_model(run)
    size = input_config(run.options, model)['input_size']
    return {
        'name': _name(config),
        'summary': f'{_kind(model)}, trained on {data}.',
        'costs': count_costs(model, size),
        'image_size': ' x '.join(map(str, size[1:])),
        'input_size': ', '.join(map(str, size)),
        'image_mode': image_mode(run.options, size[0]),
        'data': data,
        'classes': _classes(model, config.get('label_names')),
        'topk': min(5, model.num_classes),
        'origin': _origin(run),
        'licence': config['pretrained_cfg']['license'],
        'repo_id': repo_id,
        'training': _training(run),
        'limits': _DEFAULT_LIMITS,
    }


def _independent(rows: List[Dict[str, str]]) -> List[Dict[str, str]]:
    """Results on images that did not choose the epoch."""
    return [row for index, row in enumerate(rows) if index or row['chosen'] != 'best']


def _kind(model: nn.Module) -> str:
    terms = len(quadratic_terms(model))
    if not terms:
        return 'A CNN of timm without a quadratic term'
    which = 'one convolution also receives' if terms == 1 else f'{terms} convolutions also receive'
    return f'A Dit-CNN, a CNN in which {which} a quadratic term across channels'


def _origin(run: Run) -> str:
    if run.base is None:
        return 'random'
    # Such a tag is the base network's weights, without a trained term.
    return run.base_name + (', quadratic terms zero' if (run.base.tag or '').endswith(INIT_SUFFIX) else '')


def _training(run: Run) -> str:
    options = run.options
    recipe = f'recipe `{run.recipe}` (sha256 of its options `{run.recipe_sha256}`), ' if run.recipe else ''
    starts: List[str] = list(dict.fromkeys(
        f'{start["device"]}, {_counted(int(start["threads"]), "thread")}, torch {start["torch"]}, timm {start["timm"]}'
        for start in run.environment
    ))
    # Once there is a checkpoint, train.py resumes with as many only.
    processes = int(run.environment[-1]['processes'])
    batch = options['batch_size'] * options['grad_accum_steps'] * processes
    precision = f'amp {options["amp_dtype"]}' if options['amp'] else 'float32'
    return (
        f'With `scripts/train.py` of dit_timm: {recipe}{_counted(options["epochs"], "epoch")}, {options["opt"]}, '
        f'learning rate {options["lr"]:g}, batches of {batch}, seed {options["seed"]}, {precision}; '
        f'{_counted(processes, "process")} on {"; ".join(starts)}. The repository has every option in `args.yaml`.'
    )


def _counted(count: int, noun: str) -> str:
    return f'{count} {noun}' if count == 1 else f'{count} {noun}{"es" if noun.endswith("s") else "s"}'


def _classes(model: nn.Module, names: Optional[List[str]]) -> str:
    counted = _counted(model.num_classes, 'class')
    return f'{counted}: {", ".join(names)}' if names and len(names) <= _MAX_NAMED else counted


def _digest(content: str) -> str:
    # Of the words: editors differ in how they end lines.
    return hashlib.sha256(' '.join(content.split()).encode()).hexdigest()[:12]


def _stamped(block: re.Match) -> str:
    name, _, content = block.groups()
    return f'<!-- generated: {name} {_digest(content)} -->{content}<!-- /generated: {name} -->'


def _updated(old: ModelCard, new: ModelCard) -> ModelCard:
    """The old card with the new one's blocks and metadata."""
    blocks = {match[1]: match[0] for match in _BLOCK.finditer(new.text)}
    found = {match[1] for match in _BLOCK.finditer(old.text)}
    text = _BLOCK.sub(lambda match: blocks.get(match[1], match[0]), old.text)
    missing = [block for name, block in blocks.items() if name not in found]
    by_hand = {key: value for key, value in old.data.to_dict().items() if key not in _GENERATED_KEYS}
    data = {**by_hand, **new.data.to_dict()}
    data['tags'] = list(dict.fromkeys([*data['tags'], *(old.data.tags or ())]))
    body = '\n\n'.join([text.strip(), *missing])
    return ModelCard(f'---\n{ModelCardData(**data)}\n---\n{body}')
