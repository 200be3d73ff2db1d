"""The options in which a run differs from its recipe."""

from pathlib import Path
from typing import Any, Dict, Mapping, Optional

from ..cli import train
from ..pretrained.sources import public_name
from ..training.options import FREE_OPTIONS
from ..training.variants import dit_network

# Options that say where and with what a run is done, or have a column of their own.
_SILENT = {*FREE_OPTIONS, 'num_classes', 'seed', 'model', 'variant'}


def differences(options: Mapping[str, Any], recipe: Path, more: Optional[Mapping[str, Any]] = None) -> str:
    """Options that are others than the recipe's, as words.

    Args:
        options: Those of the run.
        recipe: The recipe, or the recipe.yaml of the run.
        more: What else sets the run apart.
    """
    args = vars(train.parse_args([
        '--config', str(recipe), '--model', dit_network(options['model']), '--variant', options['variant'],
    ]))
    changed: Dict[str, Any] = {
        key: value for key, value in options.items() if key not in _SILENT and key in args and args[key] != value
    }
    if changed.get('pretrained_from'):
        changed['pretrained_from'] = public_name(changed['pretrained_from'])
    return ' '.join(f'{key}={value}' for key, value in sorted({**changed, **(more or {})}.items()))
