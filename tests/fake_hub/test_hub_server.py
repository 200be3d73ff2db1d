"""The server of these tests, asked by the real client: what holds of the Hub holds here."""

import json
import re
import time
from urllib.error import HTTPError
from urllib.request import Request as UrlRequest, urlopen

import pytest

from .client_code import DOWNLOAD, FETCH, FILES, PUSH, VERIFY, asked, downloaded, output
from .repos import Repo
from .server import Fault, HubServer

pytestmark = pytest.mark.slow


def test_push_and_fresh_download(hub, client, folder, tmp_path):
    commit = output(client(hub, PUSH, folder))
    assert re.fullmatch('[0-9a-f]{40}', commit)
    stored = hub.files('me/x')
    assert {path: stored[path] for path in FILES} == FILES
    assert stored.keys() - FILES.keys() == {'.gitattributes'}
    assert [path for path, file in hub.repos['me/x'].at(commit).files.items() if file.lfs] == ['model.safetensors']

    fresh = dict(HF_HOME=tmp_path / 'fresh')
    assert downloaded(client(hub, DOWNLOAD, **fresh)) == (commit, stored)
    assert json.loads(output(client(hub, VERIFY, **fresh))) == [len(stored), [], []]


def test_pushing_the_same_again_makes_no_commit(hub, client, folder):
    commit = output(client(hub, PUSH, folder))
    before = len(hub.requests)
    assert output(client(hub, PUSH, folder)) == commit
    assert len(hub.repos['me/x'].commits) == 2
    assert not [request for request in hub.requests[before:] if '/commit/' in request.path or request.method == 'PUT']


@pytest.mark.parametrize('path', ['model.safetensors', 'config.json'])
def test_other_bytes_of_the_same_size_load_in_silence_and_are_found(hub, client, path):
    hub.put('me/x', FILES)
    hub.faults = [Fault('GET', path, body=lambda content: content[:-1] + bytes([content[-1] ^ 1]))]
    files = downloaded(client(hub, DOWNLOAD))[1]
    assert files[path] != FILES[path] and len(files[path]) == len(FILES[path])
    assert json.loads(output(client(hub, VERIFY))) == [len(files), [path], []]


def test_stale_parent_is_refused(hub, client, folder):
    first = hub.put('me/x', {'config.json': b'{}'})
    second = hub.put('me/x', {'config.json': b'{"architecture": "y"}'})
    run = client(hub, PUSH, folder, first)
    assert 'HfHubHTTPError' in run.stderr and '412' in run.stderr
    assert hub.put('me/x', {}) == second
    commit = output(client(hub, PUSH, folder, second))
    assert hub.repos['me/x'].at('main').oid == commit and hub.repos['me/x'].at(commit).parent == second


def test_two_pushes_at_once(hub, client, monkeypatch):
    parent = hub.put('me/x', FILES)
    add_commit = Repo.add_commit

    def slow(*args):
        # Long enough for all the others to come in between, if nothing kept them out.
        time.sleep(0.1)
        return add_commit(*args)

    monkeypatch.setattr(Repo, 'add_commit', slow)
    run = client(hub, '''
        import json, sys, threading
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.errors import HfHubHTTPError

        api, start, statuses = HfApi(), threading.Barrier(4), []

        def push(name, parent):
            start.wait()
            try:
                api.create_commit(
                    'me/x', [CommitOperationAdd(name, name.encode())], commit_message=name, parent_commit=parent,
                )
                statuses.append(200)
            except HfHubHTTPError as error:
                statuses.append(error.response.status_code)

        for parent in (sys.argv[1], None):
            threads = [threading.Thread(target=push, args=(f'{parent}{n}.bin', parent)) for n in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        print(json.dumps(statuses))
    ''', parent)
    statuses = json.loads(output(run))
    assert sorted(statuses[:4]) == [200, 412, 412, 412] and statuses[4:] == 4 * [200]
    files = hub.files('me/x')
    assert {f'None{n}.bin' for n in range(4)} < files.keys()
    assert sum(path.startswith(parent) for path in files) == 1


def test_errors_are_told_apart(hub, client):
    for name, marks in (('open', {}), ('private', {'private': True}), ('gated', {'gated': True})):
        hub.put(f'me/{name}', {'config.json': b'{}'}, **marks)
    cases = {
        'without a token': ('open', 'config.json', 'main', False, None),
        'unknown token': ('open', 'config.json', 'main', 'hf_unknown', ['HfHubHTTPError', 401]),
        'missing': ('missing', 'config.json', 'main', 'hf_me', ['RepositoryNotFoundError', 404]),
        'missing, without a token': ('missing', 'config.json', 'main', False, ['RepositoryNotFoundError', 401]),
        'no such revision': ('open', 'config.json', 'v9', 'hf_me', ['RevisionNotFoundError', 404]),
        'no such file': ('open', 'weights.bin', 'main', 'hf_me', ['RemoteEntryNotFoundError', 404]),
        'private': ('private', 'config.json', 'main', 'hf_me', None),
        'private, without a token': ('private', 'config.json', 'main', False, ['RepositoryNotFoundError', 401]),
        'private, another user': ('private', 'config.json', 'main', 'hf_other', ['RepositoryNotFoundError', 404]),
        'gated': ('gated', 'config.json', 'main', 'hf_me', None),
        'gated, without a token': ('gated', 'config.json', 'main', False, ['GatedRepoError', 401]),
        'gated, another user': ('gated', 'config.json', 'main', 'hf_other', ['GatedRepoError', 403]),
    }
    run = client(hub, '''
        import json, sys
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError

        found = {}
        for case, (name, path, revision, token, _) in json.loads(sys.argv[1]).items():
            try:
                get_hf_file_metadata(hf_hub_url(f'me/{name}', path, revision=revision), token=token)
                found[case] = None
            except HfHubHTTPError as error:
                found[case] = [type(error).__name__, error.response.status_code]
        print(json.dumps(found))
    ''', json.dumps(cases))
    assert json.loads(output(run)) == {case: expected[-1] for case, expected in cases.items()}
    # A download says the same, and a repository that is deleted is missing.
    hub.put('me/x', FILES, gated='manual')
    assert 'GatedRepoError' in client(hub, FETCH, 'config.json', HF_TOKEN='hf_other').stderr
    del hub.repos['me/x']
    assert 'RepositoryNotFoundError' in client(hub, FETCH, 'config.json').stderr


def test_writing_needs_the_right_token(hub, client):
    hub.put('me/x', FILES)
    run = client(hub, '''
        import json
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.errors import HfHubHTTPError

        found = []
        for token in (False, 'hf_other', 'hf_me'):
            api = HfApi(token=token)
            for call in (
                lambda: api.create_repo('me/y'),
                lambda: api.create_commit('me/x', [CommitOperationAdd('a.txt', b'a')], commit_message='a'),
                lambda: api.create_tag('me/x', tag='v1'),
                lambda: api.update_repo_settings('me/x', private=True, gated='manual'),
            ):
                try:
                    call()
                    found.append([])
                except HfHubHTTPError as error:
                    found.append([type(error).__name__, error.response.status_code])
        print(json.dumps(found))
    ''')
    anonymous, stranger, owner = ['RepositoryNotFoundError', 401], ['HfHubHTTPError', 403], []
    assert json.loads(output(run)) == [['HfHubHTTPError', 401]] + 3 * [anonymous] + 4 * [stranger] + 4 * [owner]
    repo = hub.repos['me/x']
    assert (repo.private, repo.gated, list(repo.tags)) == (True, 'manual', ['v1'])


def test_namespaces_and_existing_repositories(client):
    with HubServer({'hf_me': ['me', 'lab']}) as hub:
        run = client(hub, '''
            from huggingface_hub import HfApi
            from huggingface_hub.errors import HfHubHTTPError

            api = HfApi()
            assert api.whoami()['name'] == 'me' and api.whoami()['orgs'][0]['name'] == 'lab'
            assert api.create_repo('x', private=True).repo_id == 'me/x'
            assert api.create_repo('lab/x').repo_id == 'lab/x'
            assert api.create_repo('lab/x', exist_ok=True).repo_id == 'lab/x'
            try:
                api.create_repo('lab/x')
            except HfHubHTTPError as error:
                print(error.response.status_code)
        ''')
        assert output(run) == '409'
        assert {name: repo.private for name, repo in hub.repos.items()} == {'me/x': True, 'lab/x': False}


def test_tags_and_branches(hub, client):
    first = hub.put('me/x', {'config.json': b'1'}, tag='v1')
    second = hub.put('me/x', {'config.json': b'2'})
    hub.put('me/x', {'config.json': b'3'}, branch='next')
    run = client(hub, '''
        import sys
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
        from huggingface_hub.errors import HfHubHTTPError

        api = HfApi()
        api.create_tag('me/x', tag='v2/beta', revision='main')
        api.create_tag('me/x', tag='v2/beta', exist_ok=True)
        api.create_branch('me/x', branch='old', revision=sys.argv[1])
        operations = [CommitOperationAdd('a/b/c.txt', b'4'), CommitOperationDelete('config.json')]
        api.create_commit('me/x', operations, commit_message='On a branch', revision='old')
        try:
            api.create_tag('me/x', tag='v1')
        except HfHubHTTPError as error:
            assert error.response.status_code == 409
        refs = api.list_repo_refs('me/x')
        assert [ref.name for ref in refs.branches] == ['main', 'next', 'old']
        print(*(f'{ref.ref}={ref.target_commit}' for ref in refs.tags))
    ''', first)
    assert output(run).split() == [f'refs/tags/v1={first}', f'refs/tags/v2/beta={second}']
    expected = {'v1': b'1', 'v2/beta': b'2', 'next': b'3', first: b'1'}
    for revision, content in expected.items():
        assert downloaded(client(hub, DOWNLOAD, revision))[1]['config.json'] == content
    assert hub.files('me/x', 'old').keys() == {'.gitattributes', 'a/b/c.txt'}


def test_what_the_lists_say(hub, client):
    hub.put('me/x', FILES)
    commit = hub.put('me/x', {'config.json': b'{}'}, private=True)
    run = client(hub, '''
        from huggingface_hub import HfApi

        api = HfApi()
        info = api.model_info('me/x', files_metadata=True)
        sizes = {file.rfilename: (file.size, bool(file.lfs)) for file in info.siblings}
        assert sizes['config.json'] == (2, False) and sizes['model.safetensors'][1]
        assert (info.private, info.gated, info.library_name) == (True, False, 'timm')
        card = info.card_data.to_dict()
        assert card == {
            'library_name': 'timm', 'license': 'apache-2.0', 'tags': ['image-classification', 'dendrites'],
            'datasets': ['imagenet-1k'],
        }, card
        top = {entry.path: type(entry).__name__ for entry in api.list_repo_tree('me/x')}
        assert top['logs'] == 'RepoFolder' and len(top) == 6 and 'RepoFile' == top['config.json']
        assert [entry.path for entry in api.list_repo_tree('me/x', 'logs/run 1')] == ['logs/run 1/\\xe9poques.csv']
        entries = {entry.path: entry for entry in api.list_repo_tree('me/x', recursive=True, expand=True)}
        assert {'logs', 'logs/run 1'} < entries.keys() and len(entries) == 8
        config, logs = api.get_paths_info('me/x', ['config.json', 'logs', 'none'], expand=True)
        assert config == entries['config.json'] and logs == entries['logs']
        assert config.last_commit.oid != logs.last_commit.oid
        print(info.sha, config.last_commit.oid)
    ''')
    assert output(run).split() == [commit, commit]


@pytest.mark.parametrize(
    'card, error',
    [(b'# No YAML\n', ''), (b'---\nlicense: mit\n', 'The front matter has no end')],
    ids=['none', 'unfinished'],
)
def test_yaml_of_a_card_is_checked(hub, client, folder, card, error):
    (folder / 'README.md').write_bytes(card)
    run = client(hub, PUSH, folder)
    assert run.returncode == bool(error) and (error or 'empty or missing yaml metadata') in run.stderr


def test_headers_and_ranges(hub):
    commit = hub.put('me/x', FILES)

    def get(path, method='GET', **headers):
        return urlopen(UrlRequest(f'{hub.endpoint}/me/x/resolve/main/{path}', headers=headers, method=method))

    content = FILES['model.safetensors']
    with get('model.safetensors', 'HEAD') as answer:
        size, etag = answer.headers['X-Linked-Size'], answer.headers['X-Linked-Etag']
        assert answer.headers['X-Repo-Commit'] == commit and answer.read() == b''
        assert (size, len(etag), answer.headers['ETag']) == (str(len(content)), 66, etag)
    with get('empty.txt') as answer:
        # As git says for every empty file.
        assert answer.headers['ETag'] == '"e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"'
    with get('model.safetensors', Range='bytes=3-6') as answer:
        assert answer.status == 206 and answer.headers['Content-Range'] == f'bytes 3-6/{len(content)}'
        assert answer.read() == content[3:7]
    with pytest.raises(HTTPError) as refused:
        get('model.safetensors', Range=f'bytes={len(content)}-')
    assert refused.value.code == 416


def test_offline_with_a_filled_cache_asks_nothing(hub, client):
    hub.put('me/x', FILES)
    online = downloaded(client(hub, DOWNLOAD))
    hub.requests.clear()
    assert downloaded(client(hub, DOWNLOAD, HF_HUB_OFFLINE=1)) == online
    assert 'LocalEntryNotFoundError' in client(hub, FETCH, 'no.txt', HF_HUB_OFFLINE=1).stderr
    assert hub.requests == []


TIMM = '''
    import sys
    import torch
    import timm

    torch.manual_seed(0)
    image = torch.randn(2, 3, 32, 32)

    def logits(model):
        with torch.no_grad():
            return model.eval()(image)
'''


def test_timm_pushes_and_loads(hub, client, tmp_path):
    output(client(hub, TIMM + '''
    model = timm.create_model('test_dit_resnet', num_classes=3)
    torch.save(logits(model), sys.argv[1])
    print(timm.models.push_to_hf_hub(model, 'me/x').oid)
    ''', tmp_path / 'logits.pt'))
    assert {'README.md', 'config.json', 'model.safetensors'} < hub.files('me/x').keys()

    load = TIMM + '''
    model = timm.create_model('hf-hub:me/x', pretrained=True)
    assert torch.equal(logits(model), torch.load(sys.argv[1]))
    print(model.num_classes)
    '''
    fresh = dict(HF_HOME=tmp_path / 'fresh')
    assert output(client(hub, load, tmp_path / 'logits.pt', **fresh)) == '3'
    assert asked(hub, 'GET') == [f'/me/x/resolve/main/{path}' for path in ('config.json', 'model.safetensors')]
    hub.requests.clear()
    assert output(client(hub, load, tmp_path / 'logits.pt', HF_HUB_OFFLINE=1, **fresh)) == '3'
    assert hub.requests == []
