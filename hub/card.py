"""The model card: README.md of a repository, made from a run, its results and its config.

Blocks between `<!-- generated: NAME -->` and `<!-- /generated: NAME -->` are made anew each time; what is written by
hand outside of them, and what is added to the metadata, stays.
"""

import json
import re
from pathlib import Path
from typing import Any, Dict, List, Optional

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open

from dit_timm.models.costs import count_costs
from dit_timm.models.weight_files import write_file

from .export import CARD, CONFIG, WEIGHTS
from .run import KEPT, Run, input_config, load_model

_TEMPLATE = Path(__file__).with_name('card.md.jinja')
_BLOCK = re.compile(r'<!-- generated: (\w+) -->.*?<!-- /generated: \1 -->', re.DOTALL)
# Of the metadata; a card that is made anew loses those that no longer hold.
_GENERATED_KEYS = (
    'library_name', 'license', 'tags', 'pipeline_tag', 'model-index', 'datasets', 'base_model', 'base_model_relation',
)
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
        FileNotFoundError: The folder holds no export.
        ValueError: A block of the card that is there begins and does not end.
    """
    if not (out / CONFIG).is_file():
        raise FileNotFoundError(f'{out} holds no export: it has no {CONFIG}. Begin with `python -m hub export`.')
    config = json.loads((out / CONFIG).read_text())
    with safe_open(out / WEIGHTS, framework='pt') as file:
        # The run's numbers are those of the weights that it kept.
        rows = run.results if file.metadata()['weights'] == KEPT else []
    card = ModelCard.from_template(
        _card_data(run, config, rows, data, dataset), template_path=str(_TEMPLATE), results=rows,
        **_facts(run, config, repo_id, data),
    )
    path = out / CARD
    if path.is_file():
        card = _updated(ModelCard.load(path), card)
    write_file(path, f'{str(card).rstrip()}\n'.encode())
    return path


def _card_data(
        run: Run, config: Dict[str, Any], rows: List[Dict[str, str]], data: str, dataset: Optional[str],
) -> ModelCardData:
    base = run.base.hf_hub_id if run.base is not None else None
    results = [
        EvalResult(
            task_type='image-classification', dataset_type=dataset or 'custom', dataset_name=data,
            dataset_split=row['split'], metric_type='accuracy', metric_name=name,
            metric_value=round(float(row[key]), 3),
        )
        for row in rows[-1:] for name, key in (('top-1', 'top1'), ('top-5', 'top5'))
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
    size = input_config(run, model)['input_size']
    base = run.base
    return {
        'name': _name(config),
        'summary': f'A Dit-CNN, a CNN in which one convolution also receives a quadratic term across channels, trained '
                   f'on {data}.',
        'costs': count_costs(model, size),
        'image_size': ' x '.join(map(str, size[1:])),
        'input_size': ', '.join(map(str, size)),
        'data': data,
        'classes': model.num_classes,
        'topk': min(5, model.num_classes),
        'origin': f'{base.hf_hub_id}, quadratic terms zero' if base is not None else 'random',
        'licence': config['pretrained_cfg']['license'],
        'repo_id': repo_id,
        'training': _training(run),
        'limits': _DEFAULT_LIMITS,
    }


def _training(run: Run) -> str:
    options = run.options
    recipe = f'recipe `{run.recipe.name}` (sha256 `{run.recipe_sha256}`), ' if run.recipe is not None else ''
    starts: List[str] = list(dict.fromkeys(
        f'{start["device"]}, {start["threads"]} threads, torch {start["torch"]}, timm {start["timm"]}'
        for start in run.environment
    ))
    precision = f'amp {options["amp_dtype"]}' if options['amp'] else 'float32'
    return (
        f'With `scripts/train.py` of dit_timm: {recipe}{options["epochs"]} epochs, seed {options["seed"]}, '
        f'{precision}; {"; ".join(starts)}. The repository has every option in `args.yaml`.'
    )


def _updated(old: ModelCard, new: ModelCard) -> ModelCard:
    """The old card with the new one's blocks and metadata."""
    blocks = {match[1]: match[0] for match in _BLOCK.finditer(new.text)}
    opened = re.findall(r'<!-- generated: (\w+) -->', old.text)
    found = [match[1] for match in _BLOCK.finditer(old.text)]
    if opened != found:
        raise ValueError(
            f'{CARD}: the blocks {sorted(set(opened) - set(found))} begin and do not end. Put '
            f'"<!-- /generated: NAME -->" after each, or remove {CARD} for a new card.'
        )
    text = _BLOCK.sub(lambda match: blocks.get(match[1], match[0]), old.text)
    missing = [block for name, block in blocks.items() if name not in found]
    by_hand = {key: value for key, value in old.data.to_dict().items() if key not in _GENERATED_KEYS}
    data = {**by_hand, **new.data.to_dict()}
    body = '\n\n'.join([text.strip(), *missing])
    return ModelCard(f'---\n{ModelCardData(**data)}\n---\n{body}')
