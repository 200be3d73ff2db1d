"""What a Hub keeps: repositories with commits, branches, tags and LFS objects; in memory."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import PurePosixPath
from typing import NamedTuple

LFS_SUFFIXES = {'.bin', '.ckpt', '.npz', '.onnx', '.pt', '.pth', '.safetensors', '.tar', '.zip'}
LFS_SIZE = 10 * 2 ** 20
# Of the Hub's list, a few.
LICENCES = ('apache-2.0', 'bsd-3-clause', 'cc-by-nc-4.0', 'mit', 'other')
# What the Hub itself commits to a new repository; here the list of suffixes decides.
GIT_ATTRIBUTES = b'*.safetensors filter=lfs diff=lfs merge=lfs -text\n'


class RefusalError(Exception):
    """Ends a request with an error; by `X-Error-Code` the client picks the class of its exception."""

    def __init__(self, status, message, code='', headers=(), **content):
        super().__init__(message)
        headers = {'X-Error-Message': message, **({'X-Error-Code': code} if code else {}), **dict(headers)}
        self.answer = status, headers, json.dumps({'error': message, **content}).encode()


class File:
    """A file of a commit. For LFS git has a pointer to the content, and the blob id is that of the pointer."""

    def __init__(self, content: bytes, lfs: bool):
        self.content, self.lfs, size = content, lfs, len(content)
        self.sha256 = hashlib.sha256(content).hexdigest()
        pointer = f'version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {size}\n'.encode()
        blob = pointer if lfs else content
        self.blob_id = hashlib.sha1(b'blob %d\0' % len(blob) + blob).hexdigest()
        self.info = {'size': size}
        if lfs:
            # The Hub calls the sha256 `oid` in trees and `sha256` in the list of a model's files.
            self.info['lfs'] = {'oid': self.sha256, 'sha256': self.sha256, 'size': size, 'pointerSize': len(pointer)}


class Commit(NamedTuple):
    """All files of a revision, by path."""
    oid: str
    parent: str | None
    title: str
    date: str
    files: Mapping[str, File]

    def below(self, path: str) -> dict[str, str]:
        """The blob ids of the file of this path, or of the files of a folder."""
        inside = (name for name in self.files if name == path or name.startswith(f'{path}/'))
        return {name: self.files[name].blob_id for name in inside}


@dataclass
class Repo:
    """A repository. LFS objects of `offered` may be uploaded without a token, those of `stored` have arrived."""
    name: str
    private: bool = False
    gated: bool | str = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    offered: set[str] = field(default_factory=set)
    stored: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self):
        self.add_commit('main', {'.gitattributes': File(GIT_ATTRIBUTES, lfs=False)}, 'Initial commit')

    def at(self, revision: str) -> Commit:
        """The commit of a branch, a tag or an oid."""
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits:
            raise RefusalError(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        return self.commits[oid]

    def add_commit(self, branch: str, changes: Mapping[str, File | None], title: str) -> Commit:
        """Puts a commit on a branch; None deletes a file."""
        parent = self.branches.get(branch)
        files = {**(self.commits[parent].files if parent else {}), **changes}
        files = {path: file for path, file in sorted(files.items()) if file is not None}
        # The number tells commits apart that are otherwise equal.
        parts = [self.name, len(self.commits), parent, title, [(path, file.blob_id) for path, file in files.items()]]
        oid = hashlib.sha1(json.dumps(parts).encode()).hexdigest()
        date = datetime.now(timezone.utc).strftime('%Y-%m-%dT%H:%M:%S.000Z')
        self.commits[oid] = Commit(oid, parent, title, date, files)
        self.branches[branch] = oid
        return self.commits[oid]

    def entries(self, commit: Commit, expand: bool) -> dict[str, dict]:
        """What trees say of all files and folders, by path; with `expand` also the last commit that changed each."""
        entries = {}
        for path, file in commit.files.items():
            for folder in map(str, reversed(PurePosixPath(path).parents[:-1])):
                oid = hashlib.sha1(json.dumps(commit.below(folder)).encode()).hexdigest()
                entries.setdefault(folder, {'type': 'directory', 'path': folder, 'oid': oid, 'size': 0})
            entries[path] = {'type': 'file', 'path': path, 'oid': file.blob_id, **file.info}
        for path in entries if expand else ():
            last = commit
            while last.parent and self.commits[last.parent].below(path) == commit.below(path):
                last = self.commits[last.parent]
            entries[path]['lastCommit'] = {'id': last.oid, 'title': last.title, 'date': last.date}
        return entries


def front_matter(text: str) -> dict | None:
    """Those keys of a card's YAML that have a scalar or a list of scalars; None where the YAML has no end."""
    if not text.startswith('---\n'):
        return {}
    block = re.match(r'---\n(.*?)^---$', text, re.DOTALL | re.MULTILINE)
    if block is None:
        return None
    pairs = re.findall(r'^([\w-]+):[ ]*([^\n[{|>]*)\n((?:[ ]*- [^:\n]*\n)*)', block[1], re.MULTILINE)
    found = ((key, value.strip(' \'"'), re.findall(r'- *[\'"]?(.*?)[\'"]? *\n', items)) for key, value, items in pairs)
    return {key: value or items for key, value, items in found if value or items}


def is_lfs(path: str, size: int, sample: bytes) -> bool:
    """Whether a file goes to LFS: by its suffix, its size, or because it is not text. Empty files never do."""
    return size > 0 and (size > LFS_SIZE or PurePosixPath(path).suffix in LFS_SUFFIXES or b'\0' in sample[:512])
