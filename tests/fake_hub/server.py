"""A Hugging Face Hub in memory, on a free port of this machine, for tests with the real client.

It has models only, plain LFS without Xet or parts, no pull requests, and lists of one page. Whatever else the client
asks in order to create, push, tag, read and verify a model is answered as the Hub answers it, errors included. A
client needs `HF_ENDPOINT` and `HF_HUB_DISABLE_XET=1` in its environment before it imports huggingface_hub.

    with HubServer() as hub:
        hub.put('me/x', {'config.json': b'{}'}, tag='v1')
        hub.faults = [Fault('GET', 'config.json', status=429, times=1)]
        ...  # a client in another process, with HF_ENDPOINT=hub.endpoint and HF_TOKEN=hf_me
        assert hub.requests[-1].method == 'GET'
"""

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote

from .repos import LICENCES, File, RefusalError, Repo, front_matter, is_lfs


class Request(NamedTuple):
    """A request as it came in: the path is quoted and has its query, `headers.get` does not mind case."""
    method: str
    path: str
    headers: Mapping[str, str]


@dataclass
class Fault:
    """What goes wrong with the requests of this method (empty: of any) whose path or query has `path` in it."""
    method: str = ''
    path: str = ''
    status: int | None = None  # Answer this, and do nothing.
    headers: Mapping[str, str] = field(default_factory=dict)  # For that answer.
    delay: float = 0.  # Seconds before the answer.
    body: Callable[[bytes], bytes] | None = None  # Makes other bytes of the whole file, before a Range is cut out.
    cut: int | None = None  # Close the connection after so many bytes of the body; the headers promise all.
    times: int | None = None  # How many requests meet this fault; None: all.


class HubServer:
    """The server; it runs inside a `with`. `HF_ENDPOINT` is its `endpoint`.

    Args:
        tokens: For each token the namespaces that it may write to, the user's own name first.

    Attributes:
        repos: The repositories by full name. Change `private` and `gated` there, or delete one.
        requests: Every request so far, also those that met a fault.
        faults: Rules, of which the first that fits counts; or a function of method and path to a Fault or None.
    """

    def __init__(self, tokens: Mapping[str, Sequence[str]] | None = None):
        self.tokens = dict(tokens or {'hf_me': ['me'], 'hf_other': ['other']})
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.faults: Sequence[Fault] | Callable[[str, str], Fault | None] = []
        # Held for the whole of a request but its faults and its transfer, so that each happens at once.
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self._server = _Server(('127.0.0.1', 0), _Handler)
        self._server.hub = self
        self.endpoint = f'http://127.0.0.1:{self._server.server_port}'
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={'poll_interval': 0.01})

    def __enter__(self) -> 'HubServer':
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def put(
            self,
            repo_id: str,
            files: Mapping[str, bytes],
            private: bool | None = None,
            gated: bool | str | None = None,
            tag: str | None = None,
            branch: str = 'main',
    ) -> str:
        """Commits files without a client, if there are any, and returns the oid of the branch's last commit.

        Repository and branch are made where they are missing. `private` and `gated` (True is 'auto') that are None
        stay as they are. The tag goes to that last commit.
        """
        with self.lock:
            repo = self.repos.setdefault(repo_id, Repo(repo_id))
            repo.private = repo.private if private is None else private
            repo.gated = repo.gated if gated is None else 'auto' if gated is True else gated
            changes = {path: File(content, is_lfs(path, len(content), content)) for path, content in files.items()}
            repo.stored.update((file.sha256, file.content) for file in changes.values() if file.lfs)
            repo.branches.setdefault(branch, repo.branches['main'])
            if changes:
                repo.add_commit(branch, changes, 'Put files')
            if tag is not None:
                repo.tags[tag] = repo.branches[branch]
            return repo.branches[branch]

    def files(self, repo_id: str, revision: str = 'main') -> dict[str, bytes]:
        """The content of every file of a revision, by path."""
        return {path: file.content for path, file in self.repos[repo_id].at(revision).files.items()}

    def meet(self, request: Request) -> Fault:
        """Notes a request and returns its fault, which is an empty one for most."""
        with self.lock:
            self.requests.append(request)
        if callable(self.faults):
            # Without the lock: there one request may wait for another.
            return self.faults(request.method, request.path) or Fault()
        with self.lock:
            for fault in self.faults:
                if fault.times != 0 and fault.method in ('', request.method) and fault.path in request.path:
                    fault.times = fault.times and fault.times - 1
                    return fault
        return Fault()


_ROUTES = []


def _route(method, pattern, write=False):
    """Makes a method of the handler answer a path. `{repo}` becomes the Repo, if the token has the right to it."""
    pattern = pattern.replace('{repo}', '(?P<repo>[^/]+/[^/]+)').replace('{rev}', '(?P<rev>[^/]+)')

    def register(function):
        _ROUTES.append((method, re.compile(pattern), write, function))
        return function
    return register


class _Handler(BaseHTTPRequestHandler):
    """The protocol. An endpoint returns what becomes the JSON of an answer, or status, headers and bytes."""
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True

    def _serve(self):
        self.hub = self.server.hub
        # Also where nobody looks at it: the next request begins behind it.
        self.body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        fault = self.hub.meet(Request(self.command, self.path, self.headers))
        if fault.delay:
            self.hub.closing.wait(fault.delay)
        try:
            if fault.status:
                raise RefusalError(fault.status, 'The test asked for this error', headers=fault.headers)
            status, headers, content = self._answer()
            content = fault.body(content) if fault.body else content
            status, headers, content = self._part(status, headers, content)
        except RefusalError as refusal:
            status, headers, content = refusal.answer
        self.send_response(status)
        for name, value in {'Content-Type': 'application/json', 'Content-Length': len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(content[:fault.cut])
        self.close_connection = self.close_connection or fault.cut is not None

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def log_message(self, format, *args):
        """Quiet: `HubServer.requests` has them all."""

    def _part(self, status, headers, content):
        """An answer, or the part of it that the request's Range asks for."""
        asked = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range', ''))
        if status != 200 or not asked or 'Accept-Ranges' not in headers:
            return status, headers, content
        start, size = int(asked[1]), len(content)
        part = content[start:int(asked[2]) + 1 if asked[2] else size]
        if not part:
            raise RefusalError(416, 'Range Not Satisfiable', headers={'Content-Range': f'bytes */{size}'})
        return 206, {**headers, 'Content-Range': f'bytes {start}-{start + len(part) - 1}/{size}'}, part

    def _answer(self):
        path, _, query = self.path.partition('?')
        self.query = parse_qs(query)
        token = self.headers.get('Authorization', '').removeprefix('Bearer ')
        if token and token not in self.hub.tokens:
            raise RefusalError(401, 'Invalid credentials in Authorization header')
        self.namespaces = self.hub.tokens.get(token, ())
        for method, pattern, write, function in _ROUTES:
            match = pattern.fullmatch(path)
            if match and method == self.command.replace('HEAD', 'GET'):
                groups = {name: value and unquote(value) for name, value in match.groupdict().items()}
                with self.hub.lock:
                    if 'repo' in groups:
                        groups['repo'] = self._repo(groups['repo'], write)
                    answer = function(self, **groups)
                return answer if isinstance(answer, tuple) else (200, {}, json.dumps(answer).encode())
        raise RefusalError(404, f'This server does not know {self.command} {path}')

    def _repo(self, repo_id, write):
        repo, owner = self.hub.repos.get(repo_id), repo_id.split('/')[0] in self.namespaces
        if repo is None or repo.private and not owner:
            # A stranger is not told whether a private repository exists.
            raise RefusalError(404 if self.namespaces else 401, 'Repository not found', 'RepoNotFound')
        if write and not self.namespaces:
            # The Hub sends no code here: the client takes any 401 for a missing repository, but over https only.
            raise RefusalError(401, 'Invalid username or password.', 'RepoNotFound')
        if write and not owner:
            raise RefusalError(403, f'You have no right to write to {repo_id}')
        return repo

    def _flag(self, name):
        return self.query.get(name, [''])[0].lower() in ('1', 'true')

    @_route('GET', '/api/whoami-v2')
    def _whoami(self):
        if not self.namespaces:
            raise RefusalError(401, 'Invalid username or password.')
        name, *orgs = self.namespaces
        return {'type': 'user', 'name': name, 'orgs': [{'type': 'org', 'name': org} for org in orgs]}

    @_route('GET', '/api/agent-harnesses')
    def _harnesses(self):
        # A client with telemetry asks this once a day, in order to say in its requests which tool runs it.
        return {'standardEnvVars': [], 'harnesses': {}}

    @_route('POST', '/api/repos/create')
    def _create_repo(self):
        asked = json.loads(self.body)
        owner = asked.get('organization') or (*self.namespaces, '')[0]
        repo_id = f'{owner}/{asked["name"]}'
        if owner not in self.namespaces:
            raise RefusalError(403 if self.namespaces else 401, f'You have no right to create a model under {owner}')
        if repo_id in self.hub.repos:
            raise RefusalError(409, 'You already created this model repo', url=f'{self.hub.endpoint}/{repo_id}')
        self.hub.put(repo_id, {}, private=asked.get('visibility') == 'private')
        return {'url': f'{self.hub.endpoint}/{repo_id}', 'name': repo_id}

    @_route('PUT', '/api/models/{repo}/settings', write=True)
    def _settings(self, repo):
        asked = json.loads(self.body)
        private = asked['visibility'] == 'private' if 'visibility' in asked else None
        self.hub.put(repo.name, {}, private=private, gated=asked.get('gated'))
        return {'private': repo.private, 'gated': repo.gated}

    @_route('POST', '/api/validate-yaml')
    def _validate_yaml(self):
        card = front_matter(json.loads(self.body)['content'])
        if card is None:
            raise RefusalError(
                400, 'Invalid metadata', errors=[{'message': 'The front matter has no end'}], warnings=[]
            )
        if card.get('license', 'mit') not in LICENCES:
            errors = [{'message': f'"license" must be one of [{", ".join(LICENCES)}]'}]
            raise RefusalError(400, 'Invalid metadata', errors=errors, warnings=[])
        return {'errors': [], 'warnings': [] if card else [{'message': 'empty or missing yaml metadata in repo card'}]}

    @_route('POST', '/api/models/{repo}/preupload/{rev}', write=True)
    def _preupload(self, repo, rev):
        files, answers = repo.at(rev).files, []
        for asked in json.loads(self.body)['files']:
            path, lfs = asked['path'], is_lfs(asked['path'], asked['size'], base64.b64decode(asked['sample']))
            # The client leaves a file out of the commit if its content has this oid already.
            oid = (files[path].sha256 if lfs else files[path].blob_id) if path in files else None
            mode = 'lfs' if lfs else 'regular'
            answers.append({'path': path, 'uploadMode': mode, 'shouldIgnore': False, 'oid': oid})
        return {'files': answers}

    @_route('POST', '/{repo}[.]git/info/lfs/objects/batch', write=True)
    def _lfs_batch(self, repo):
        url = f'{self.hub.endpoint}/{repo.name}.git/lfs/'
        objects = [{'oid': asked['oid'], 'size': asked['size']} for asked in json.loads(self.body)['objects']]
        for missing in (item for item in objects if item['oid'] not in repo.stored):
            repo.offered.add(missing['oid'])
            missing['actions'] = {'upload': {'href': url + missing['oid']}, 'verify': {'href': url + 'verify'}}
        return {'transfer': 'basic', 'objects': objects}

    @_route('PUT', '/(?P<repo_id>[^/]+/[^/]+)[.]git/lfs/(?P<oid>[0-9a-f]{64})')
    def _lfs_upload(self, repo_id, oid):
        # The client sends no token here: the Hub signs this address, and this server has offered it before.
        if repo_id not in self.hub.repos or oid not in self.hub.repos[repo_id].offered:
            raise RefusalError(403, 'Nobody asked to upload this')
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise RefusalError(400, 'The bytes have another sha256')
        self.hub.repos[repo_id].stored[oid] = self.body
        return {}

    @_route('POST', '/{repo}[.]git/lfs/verify', write=True)
    def _lfs_verify(self, repo):
        asked = json.loads(self.body)
        if len(repo.stored.get(asked['oid'], b'')) != asked['size']:
            raise RefusalError(422, 'This object did not arrive')
        return {}

    @_route('POST', '/api/models/{repo}/commit/{rev}', write=True)
    def _commit(self, repo, rev):
        header, *operations = (json.loads(line) for line in self.body.splitlines())
        head, changes = repo.at(rev), {}
        if rev not in repo.branches or self._flag('create_pr'):
            raise RefusalError(400, 'This server commits to branches only')
        if not head.oid.startswith(header['value'].get('parentCommit', '')):
            raise RefusalError(412, 'A commit has happened since. Please refresh and try again.')
        for kind, value in ((operation['key'], operation['value']) for operation in operations):
            if kind == 'file':
                changes[value['path']] = File(base64.b64decode(value['content']), lfs=False)
            elif kind == 'lfsFile' and value['oid'] in repo.stored:
                changes[value['path']] = File(repo.stored[value['oid']], lfs=True)
            elif kind in ('deletedFile', 'deletedFolder') and head.below(value['path'].rstrip('/')):
                changes.update(dict.fromkeys(head.below(value['path'].rstrip('/'))))
            else:
                raise RefusalError(400, f'Cannot do {kind} for {value["path"]}')
        commit = repo.add_commit(rev, changes, header['value']['summary'])
        url = f'{self.hub.endpoint}/{repo.name}/commit/{commit.oid}'
        return {'success': True, 'commitUrl': url, 'commitOid': commit.oid, 'pullRequestUrl': None}

    @_route('GET', '/{repo}/resolve/{rev}/(?P<path>.+)')
    def _resolve(self, repo, rev, path):
        if repo.gated and repo.name.split('/')[0] not in self.namespaces:
            raise RefusalError(403 if self.namespaces else 401, f'Access to {repo.name} is restricted.', 'GatedRepo')
        commit = repo.at(rev)
        headers = {'X-Repo-Commit': commit.oid, 'Accept-Ranges': 'bytes'}
        if path not in commit.files:
            # With the commit in the answer the client remembers that there is no such file.
            raise RefusalError(404, 'Entry not found', 'EntryNotFound', headers)
        file = commit.files[path]
        headers['ETag'] = f'"{file.sha256 if file.lfs else file.blob_id}"'
        if file.lfs:
            headers.update({'X-Linked-Size': len(file.content), 'X-Linked-Etag': headers['ETag']})
        return 200, headers, file.content

    @_route('GET', '/api/models/{repo}(/revision/{rev})?')
    def _model_info(self, repo, rev):
        commit = repo.at(rev or 'main')
        readme = commit.files.get('README.md')
        card = readme and front_matter(readme.content.decode()) or {}
        siblings = [
            {'rfilename': path, **({'blobId': file.blob_id, **file.info} if self._flag('blobs') else {})}
            for path, file in commit.files.items()
        ]
        return {
            'id': repo.name, 'author': repo.name.split('/')[0], 'sha': commit.oid, 'lastModified': commit.date,
            'private': repo.private, 'gated': repo.gated, 'library_name': card.get('library_name'),
            'pipeline_tag': card.get('pipeline_tag'), 'tags': card.get('tags'), 'cardData': card, 'siblings': siblings,
        }

    @_route('GET', '/api/models/{repo}/tree/{rev}(/(?P<folder>.+))?')
    def _tree(self, repo, rev, folder):
        commit, prefix = repo.at(rev), f'{folder}/' if folder else ''
        entries = repo.entries(commit, self._flag('expand'))
        below = [path for path in entries if path.startswith(prefix)]
        if not below:
            raise RefusalError(404, f'{folder} does not exist', 'EntryNotFound', {'X-Repo-Commit': commit.oid})
        return [entries[path] for path in below if self._flag('recursive') or '/' not in path[len(prefix):]]

    @_route('POST', '/api/models/{repo}/paths-info/{rev}')
    def _paths_info(self, repo, rev):
        form = parse_qs(self.body.decode())
        entries = repo.entries(repo.at(rev), form.get('expand') == ['true'])
        return [entries[path] for path in form.get('paths', []) if path in entries]

    @_route('GET', '/api/models/{repo}/refs')
    def _refs(self, repo):
        def refs(kind, names):
            return [{'name': name, 'ref': f'refs/{kind}/{name}', 'targetCommit': oid} for name, oid in names.items()]

        return {'branches': refs('heads', repo.branches), 'tags': refs('tags', repo.tags), 'converts': []}

    @_route('POST', '/api/models/{repo}/tag/{rev}', write=True)
    def _create_tag(self, repo, rev):
        tag = json.loads(self.body)['tag']
        if tag in repo.tags:
            raise RefusalError(409, f'The tag {tag} exists')
        repo.tags[tag] = repo.at(rev).oid
        return {}

    @_route('POST', '/api/models/{repo}/branch/{rev}', write=True)
    def _create_branch(self, repo, rev):
        if rev in repo.branches:
            raise RefusalError(409, f'The branch {rev} exists')
        repo.branches[rev] = repo.at(json.loads(self.body).get('startingPoint', 'main')).oid
        return {}


class _Server(ThreadingHTTPServer):
    # Clients have several connections each; one that finds no place waits a second before it tries again.
    request_queue_size = 64

    def handle_error(self, request, client_address):
        # A client that ends in the middle of an answer is no news.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)
