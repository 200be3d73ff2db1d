"""What a sweep trains: a YAML file of networks, variants and seeds, as options of scripts/train.py.

    data: CIFAR-10                  # what the data are called in tables
    recipe: ../recipes/NAME.yaml    # relative to the file
    options: {lr: 0.05}             # further options of scripts/train.py, for all runs
    runs:                           # in order of priority
      - {models: [dit_resnet20], variants: [plain, dit], seeds: [0, 1, 2]}
      - {models: [dit_resnet56], variants: [plain, dit], seeds: [0], recipe: ..., options: {...}}
"""

import difflib
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Sequence

import timm
import yaml

from ..config.parts import VARIANTS
from ..errors import InvalidInputError, MissingFileError
from ..pretrained.sources import folder_of, is_source, public_name, read_source

_KEYS = {'data': str, 'recipe': str, 'options': dict, 'runs': list}
# What tells runs apart, or is the command line's.
_OF_RUNS = {'model', 'variant', 'seed', 'device', 'output', 'experiment', 'config', 'data_dir', 'resume', 'dry_run'}
# Names that a message lists.
_MAX_LISTED = 8
_RUN_KEYS = {'models': list, 'variants': list, 'seeds': list, 'recipe': str, 'options': dict}


class SweepRun(NamedTuple):
    """A run of a sweep.

    Attributes:
        model: The Dit network, of whose variants this is one, by the name that scripts/train.py takes.
        variant: See `VARIANTS`.
        seed: Seed.
        recipe: The recipe.
        options: Further options of scripts/train.py.
    """
    model: str
    variant: str
    seed: int
    recipe: Path
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of its folder."""
        # Of a folder its own name, of a repository owner and name.
        name = public_name(self.model).partition(':')[2] if is_source(self.model) else self.model
        return f'{name.replace("/", "_")}-{self.variant}-s{self.seed}'


class Sweep(NamedTuple):
    """A sweep.

    Attributes:
        path: Its file.
        data: What the data are called in tables.
        runs: In order of priority.
    """
    path: Path
    data: str
    runs: List[SweepRun]


def read_sweep(path: Path) -> Sweep:
    """Read the file of a sweep.

    Raises:
        InvalidInputError: It says what this module does not know, or names a run twice.
        OSError: There is no such file, or no such recipe.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInputError(f'{path} is no YAML: {error}') from error
    _check_keys(content, _KEYS, ('data', 'recipe', 'runs'), str(path))
    runs = [
        run for number, entry in enumerate(content['runs'], 1)
        for run in _expanded(entry, content, path, f'{path}, entry {number} of runs')
    ]
    names = [run.name for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidInputError(f'{path} names runs twice: {", ".join(twice[:5])}. Give each a seed of its own.')
    return Sweep(path, content['data'], runs)


def _expanded(entry: Any, content: Mapping[str, Any], path: Path, where: str) -> Iterator[SweepRun]:
    _check_keys(entry, _RUN_KEYS, ('models', 'variants', 'seeds'), where)
    recipe = (path.parent / entry.get('recipe', content['recipe'])).resolve()
    if not recipe.is_file():
        raise MissingFileError(f'{where}: there is no recipe {recipe}.')
    options = {**content.get('options', {}), **entry.get('options', {})}
    own = sorted(_OF_RUNS & {str(name).replace('-', '_') for name in options})
    if own:
        raise InvalidInputError(
            f'{where}: {", ".join(own)} cannot be options, since runs or the command line have their own.'
        )
    for model in entry['models']:
        folder = folder_of(model)
        if folder is not None:
            model = f'local-dir:{(path.parent / folder).resolve()}'
        if is_source(model):
            read_source(model)
        else:
            _check_known(model, timm.list_models('*dit_*'), 'model', where)
        for seed in entry['seeds']:
            if not isinstance(seed, int):
                raise InvalidInputError(f'{where}: seeds are whole numbers; got {seed!r}.')
            # The runs that are compared stand next to each other.
            for variant in entry['variants']:
                _check_known(variant, VARIANTS, 'variant', where)
                yield SweepRun(model, variant, seed, recipe, options)


def _check_keys(content: Any, keys: Dict[str, type], needed: Sequence[str], where: str) -> None:
    if not isinstance(content, dict):
        raise InvalidInputError(f'{where} must map {", ".join(keys)}; it holds {content!r}.')
    for key, value in content.items():
        _check_known(key, keys, 'key', where)
        if not isinstance(value, keys[key]) or not value and key in needed:
            raise InvalidInputError(f'{where}: {key} must be a {keys[key].__name__} that is not empty; got {value!r}.')
    missing = [key for key in needed if key not in content]
    if missing:
        raise InvalidInputError(f'{where} lacks {", ".join(missing)}.')


def _check_known(name: Any, known: Any, what: str, where: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(str(name), list(known), n=3)
        hint = f' Did you mean {" or ".join(near)}?' if near else ''
        listed = f' There are {", ".join(known)}.' if len(known) <= _MAX_LISTED else ''
        options = " Options of train.py stand under 'options'." if 'options' in known else ''
        raise InvalidInputError(f'{where}: unknown {what} {name!r}.{hint}{listed}{options}')
