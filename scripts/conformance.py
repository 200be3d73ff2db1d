"""Run timm's own model tests against our models.

The tests come with timm's source distribution, in the version that is installed; it is downloaded from the package
index into the folder given. Usage: `python scripts/conformance.py [--pretrained] [pytest options]`.
"""

import argparse
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import timm
from timm.models import _registry

import dit_timm

# timm lists the modules whose models must have forward_intermediates by name; ours extend these.
_TIMM_MODULES = {'dit_convnext': 'convnext', 'dit_resnet': 'resnet', 'dit_resnet_cifar': 'resnet'}


def download_tests(folder: Path) -> Path:
    """Fetch the tests of the installed timm.

    Args:
        folder: Where to keep the source distribution.

    Returns:
        The unpacked source tree.
    """
    source = folder / f'timm-{timm.__version__}'
    archive = source.with_name(f'{source.name}.tar.gz')
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([
            sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--no-binary', 'timm',
            '--dest', str(folder), f'timm=={timm.__version__}',
        ], check=True)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter='data')
    return source


def main() -> int:
    """Run the tests; returns pytest's exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--folder', type=Path, default=Path('build/conformance'), help='where to keep timm\'s source')
    parser.add_argument('--pretrained', action='store_true', help='also the tests that download weights from the Hub')
    args, pytest_args = parser.parse_known_args()

    source = download_tests(args.folder)
    dit_timm.register()
    for ours, theirs in _TIMM_MODULES.items():
        _registry._module_to_models[theirs] |= _registry._module_to_models[ours]
    tests = source / 'tests'
    select = 'dit_' if args.pretrained else 'dit_ and not pretrained'
    common = ['-p', 'no:cacheprovider', '-q', *pytest_args]
    code = pytest.main([str(tests / 'test_models.py'), '-k', select, *common])
    return code or pytest.main([str(tests / 'test_hub.py'), *common])


if __name__ == '__main__':
    sys.exit(main())
