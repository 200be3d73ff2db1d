"""The server's faults, met by the real client."""

from dataclasses import replace

import pytest

from .client_code import FETCH, FILES, PUSH, asked, output
from .server import Fault

pytestmark = pytest.mark.slow

# Of a download, as the client keeps it.
CHUNK = 10 * 2 ** 20


@pytest.mark.parametrize(
    'size, cut, times, ranges',
    [
        # The client keeps whole chunks of 10 MiB of what it received, so it asks for the rest from there.
        (CHUNK + 9, CHUNK + 5, 1, [None, f'bytes={CHUNK}-']),
        (2 * CHUNK + 9, CHUNK + 5, None, [None, f'bytes={CHUNK}-', f'bytes={2 * CHUNK}-']),
        (99, 5, 1, [None, None]),
    ],
    ids=['once', 'always', 'at-once'],
)
def test_cut_download_resumes(hub, client, size, cut, times, ranges):
    content = bytes(range(251)) * (size // 251 + 1)
    hub.put('me/x', {'model.safetensors': content[:size]})
    hub.faults = [Fault('GET', 'model.safetensors', cut=cut, times=times)]
    with open(output(client(hub, FETCH, 'model.safetensors')), 'rb') as file:
        assert file.read() == content[:size]
    gets = [request for request in hub.requests if request.method == 'GET']
    assert [request.headers.get('Range') for request in gets] == ranges


@pytest.mark.parametrize(
    'fault, error, heads, gets',
    [
        (Fault('GET', status=429, times=1), '', 1, 2),
        (Fault('GET', status=429, headers={'RateLimit': '"api";r=0;t=0'}, times=1), '', 1, 2),
        (Fault('GET', status=500, times=1), 'HfHubHTTPError', 1, 1),
        (Fault('HEAD', status=503, times=1), '', 2, 1),
        (Fault('HEAD', status=429, times=2), '', 3, 1),
        (Fault('GET', delay=3., times=1), '', 1, 2),
    ],
    ids=['get-429', 'get-429-ratelimit', 'get-500', 'head-503', 'head-429-twice', 'get-slow'],
)
def test_faults_of_a_download(hub, client, fault, error, heads, gets):
    hub.put('me/x', FILES)
    hub.faults = [replace(fault)]
    run = client(hub, FETCH, 'config.json', HF_HUB_DOWNLOAD_TIMEOUT=1)
    assert run.returncode == bool(error) and error in run.stderr
    assert (len(asked(hub, 'HEAD')), len(asked(hub, 'GET'))) == (heads, gets)


def test_faults_of_a_push(hub, client, folder):
    before = hub.put('me/x', {})
    hub.faults = [Fault('PUT', status=503, times=1), Fault('POST', '/commit/', status=500, times=1)]
    run = client(hub, PUSH, folder)
    # The upload is tried again, the commit is not; what was uploaded stays.
    assert 'HfHubHTTPError' in run.stderr and '500' in run.stderr
    assert len(asked(hub, 'PUT', '.git/lfs/')) == 2 and len(asked(hub, 'POST', '/commit/')) == 1
    assert hub.put('me/x', {}) == before
    output(client(hub, PUSH, folder))
    assert len(asked(hub, 'PUT', '.git/lfs/')) == 2
    assert hub.files('me/x').items() > FILES.items()


def test_a_function_decides_about_faults(hub, client):
    hub.put('me/x', FILES)
    hub.faults = lambda method, path: Fault(status=500) if (method, path[-11:]) == ('GET', 'config.json') else None
    assert '500' in client(hub, FETCH, 'config.json').stderr
    output(client(hub, FETCH, 'README.md'))


def test_a_lost_answer_to_a_commit(hub, client, folder):
    hub.faults = [Fault('POST', '/commit/', cut=0)]
    assert 'RemoteProtocolError' in client(hub, PUSH, folder).stderr
    assert hub.files('me/x').items() > FILES.items()
