"""What tests of several folders share: a run, its export, a Hub for each test, the real client in a process of its own.

Imports of the package wait for the test that needs them: `tests/conftest.py` names this module for all tests.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from .server import HubServer


@pytest.fixture(scope='session')
def trained_run(tmp_path_factory, write_greys_to):
    """The folder of a run that trained a small network on three shades of grey."""
    from dit_timm.cli import train

    folder = tmp_path_factory.mktemp('trained')
    write_greys_to(folder / 'data', train=(8, 8, 8), test=(4, 4, 4))
    train.main([
        '--data-dir', str(folder / 'data'), '--model', 'test_dit_resnet', '--img-size', '32', '--batch-size', '6',
        '--workers', '0', '--epochs', '1', '--warmup-epochs', '0', '--lr', '0.01', '--val-fraction', '0.25',
        '--test-split', 'test', '--model-ema', '--device', 'cpu', '--output', str(folder), '--experiment', 'run',
    ])
    return folder / 'run'


@pytest.fixture
def exported(trained_run, tmp_path):
    """The run's folder, exported as me/greys."""
    from dit_timm.models._timm_private import TIMM_VERSION
    from hub.card import write_card
    from hub.export import export
    from hub.run import read_run

    if TIMM_VERSION < (1, 0, 31):
        pytest.skip('the export needs timm 1.0.31')
    folder = tmp_path / 'export'
    run = read_run(trained_run)
    export(run, folder, 'greys', 'mit')
    write_card(run, folder, 'me/greys', 'shades of grey')
    return folder


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture
def published(hub, exported):
    """A Hub that has the export as me/greys, with the tag v1."""
    hub.put('me/greys', {path.name: path.read_bytes() for path in exported.iterdir()}, tag='v1')
    return hub


@pytest.fixture
def client(tmp_path):
    """Runs Python code against a server: huggingface_hub reads its settings once, when it is imported."""

    def run(server, code, *args, **env):
        """Returns the completed process.

        Args:
            server: The HubServer.
            code: The source; its arguments are in sys.argv[1:].
            *args: The arguments, made strings.
            **env: Environment variables; None removes one. `HF_TOKEN` is the token of the user me, and `HF_HOME` one
                folder for all clients of a test, unless said otherwise.
        """
        # The machine's own settings, tokens, caches and proxies have no part in this.
        foreign = ('hf_', 'hugging', 'transformers_')
        variables = {
            name: value for name, value in os.environ.items()
            if not name.lower().startswith(foreign) and not name.lower().endswith('_proxy')
        }
        variables.update(
            HF_ENDPOINT=server.endpoint,
            HF_HUB_DISABLE_PROGRESS_BARS='1',
            # With it the client makes requests of its own, in between those of a test.
            HF_HUB_DISABLE_TELEMETRY='1',
            HF_HUB_DISABLE_XET='1',
            HF_HOME=tmp_path / 'home',
            HF_TOKEN='hf_me',
            OMP_NUM_THREADS='1',
        )
        variables.update(env)
        return subprocess.run(
            [sys.executable, '-c', textwrap.dedent(code), *map(str, args)],
            env={name: str(value) for name, value in variables.items() if value is not None},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100,
        )

    return run


@pytest.fixture
def command(client):
    """Runs `python -m hub` against a server."""
    def run(server, *args, **env):
        return client(
            server, 'import sys; from hub.__main__ import main; sys.exit(main(sys.argv[1:]))', *args,
            PYTHONPATH=Path(__file__).parents[2], **env,
        )
    return run
