"""What the tests of the server let a client do, and what they publish."""

import json
import struct

CARD = b'''---
library_name: timm
license: "apache-2.0"
tags:
- image-classification
- dendrites
datasets:
  - imagenet-1k
model-index:
- name: x
  results:
  - task:
      type: image-classification
---
# x
'''


def safetensors(*values):
    """A file with one tensor."""
    data = struct.pack(f'<{len(values)}f', *values)
    header = json.dumps({'weight': {'dtype': 'F32', 'shape': [len(values)], 'data_offsets': [0, len(data)]}}).encode()
    return struct.pack('<Q', len(header)) + header + data


FILES = {
    'README.md': CARD,
    'config.json': b'{"architecture": "x"}',
    'empty.txt': b'',
    'logs/run 1/\xe9poques.csv': b'epoch\n1\n',
    'model.safetensors': safetensors(1., 2., 3.),
}

PUSH = '''
    import sys
    from pathlib import Path
    from huggingface_hub import CommitOperationAdd, HfApi

    folder, parent = Path(sys.argv[1]), (sys.argv[2:] or [None])[0]
    api = HfApi()
    url = api.create_repo('me/x', exist_ok=True)
    assert url.repo_id == 'me/x', url
    operations = [
        CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in folder.rglob('*') if path.is_file()
    ]
    print(api.create_commit('me/x', operations, commit_message='Add the model', parent_commit=parent).oid)
'''

DOWNLOAD = '''
    import json, sys
    from pathlib import Path
    from huggingface_hub import HfApi, snapshot_download

    folder = Path(snapshot_download('me/x', revision=(sys.argv[1:] or [None])[0]))
    paths = [path for path in folder.rglob('*') if path.is_file()]
    print(json.dumps([folder.name, {path.relative_to(folder).as_posix(): path.read_bytes().hex() for path in paths}]))
'''

FETCH = '''
    import sys
    from huggingface_hub import hf_hub_download

    print(hf_hub_download('me/x', sys.argv[1]))
'''

VERIFY = '''
    import json
    from huggingface_hub import HfApi

    found = HfApi().verify_repo_checksums('me/x')
    print(json.dumps([found.checked_count, [item['path'] for item in found.mismatches], found.missing_paths]))
'''


def output(run):
    """What a client printed last, once it went well."""
    assert run.returncode == 0, run.stderr
    return run.stdout.strip().splitlines()[-1]


def downloaded(run):
    """The commit and the files that DOWNLOAD printed."""
    commit, files = json.loads(output(run))
    return commit, {path: bytes.fromhex(content) for path, content in files.items()}


def asked(hub, method, part=''):
    """The paths of the requests of one method whose path has a part in it."""
    return [request.path for request in hub.requests if request.method == method and part in request.path]
