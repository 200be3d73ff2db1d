"""The recipe of a run: what it is, and how the options of the run differ from it."""

import hashlib
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

import yaml

from ..pretrained.sources import public_name
from .options import facts_of
from .training import TrainingConfig, dit_network, parse_training

# In the folder of a run: the recipe that it began with; see `recipe_text`.
RECIPE = 'recipe.yaml'


def recipe_text(path: Path) -> str:
    """The options that a recipe sets, as sorted YAML without comments: its SHA-256 does not depend on its header.

    Args:
        path: The recipe, which `parse_training` has taken.
    """
    return yaml.safe_dump(yaml.safe_load(path.read_text(encoding='utf-8')))


def sha256_of(recipe: str) -> str:
    """What stands for a recipe in tables of results.

    Args:
        recipe: See `recipe_text`.
    """
    return hashlib.sha256(recipe.encode()).hexdigest()


def differences(options: Mapping[str, Any], recipe: Path, more: Optional[Mapping[str, Any]] = None) -> str:
    """Options of the experiment that are others than the recipe's, as words.

    Args:
        options: Those of the run.
        recipe: The recipe, or the recipe.yaml of the run.
        more: What else sets the run apart.
    """
    expected = vars(parse_training([
        '--config', str(recipe), '--model', dit_network(options['model']), '--variant', options['variant'],
    ]))
    changed: Dict[str, Any] = {
        name: options[name] for name, facts in facts_of(TrainingConfig).items()
        if facts.is_experiment and not facts.may_change and name in options and options[name] != expected[name]
    }
    if changed.get('pretrained_from'):
        changed['pretrained_from'] = public_name(changed['pretrained_from'])
    return ' '.join(f'{key}={value}' for key, value in sorted({**changed, **(more or {})}.items()))
