"""Registry: the entry of `default_cfgs` that makes a published model a pretrained tag of the package."""

import json
from pathlib import Path
from typing import Optional

from huggingface_hub import HfApi, hf_hub_download

from .export import CONFIG

# What the cfgs of this package say beside the source of the weights.
_KEYS = (
    'input_size', 'pool_size', 'fixed_input_size', 'crop_pct', 'crop_mode', 'interpolation', 'mean', 'std',
    'num_classes', 'first_conv', 'classifier', 'license',
)


def registry_entry(repo_id: str, revision: Optional[str] = None, token: Optional[str] = None) -> str:
    """The lines to add, pinned to the commit.

    Raises:
        HfHubHTTPError: The Hub refuses, or there is no such repository or revision.
    """
    commit = HfApi(token=token).model_info(repo_id, revision=revision).sha
    config = json.loads(Path(hf_hub_download(repo_id, CONFIG, revision=commit, token=token)).read_text())
    cfg = config['pretrained_cfg']
    values = {'hf_hub_id': f'{repo_id}@{commit}', **{key: cfg[key] for key in _KEYS if key in cfg}}
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    if 'label_names' in config:
        values['label_names'] = tuple(config['label_names'])
    lines = ''.join(f'    {key}={value!r},\n' for key, value in values.items())
    return f"'{config['architecture']}.{cfg['tag']}': dict(\n{lines}),"
