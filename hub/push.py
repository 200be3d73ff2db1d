"""Push: an export becomes one commit of a repository on the Hub, or none if nothing changed."""

import difflib
import hashlib
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

from dit_timm.errors import InvalidInputError

from .card import read_card, read_notes
from .export import CARD, CONFIG, GOLDEN, NOTES, OPTIONS, WEIGHTS

# NOTES.md is not among them: the card has its text.
_FILES = (WEIGHTS, CONFIG, GOLDEN, OPTIONS, CARD)


class NotAnExportError(InvalidInputError):
    """A folder is not what `export` and `card` write."""


class StaleCardError(InvalidInputError):
    """A card was made before what stands in NOTES.md now."""


class RefusedCardError(InvalidInputError):
    """The Hub takes no card with this metadata, such as a licence that it does not know."""


class File(NamedTuple):
    """A file to publish.

    Attributes:
        name: Its name in the repository.
        path: Where it is.
        size: In bytes.
        sha256: Of its content.
        changed: Whether the repository has another, or none.
    """
    name: str
    path: Path
    size: int
    sha256: str
    changed: bool


class Plan(NamedTuple):
    """What a push would do.

    Attributes:
        repo_id: The repository.
        revision: The branch.
        parent: The commit that it would follow; None where the repository is new.
        files: The files of the export.
        card_diff: How the card would change, as lines.
    """
    repo_id: str
    revision: str
    parent: Optional[str]
    files: List[File]
    card_diff: List[str]

    @property
    def changed(self) -> List[File]:
        """The files that would be committed."""
        return [file for file in self.files if file.changed]


def plan(folder: Path, repo_id: str, revision: str = 'main', token: Optional[str] = None) -> Plan:
    """Compare an export with the repository.

    Args:
        folder: The export, with its card.
        repo_id: The repository, `owner/name`.
        revision: The branch.
        token: Of the Hub; from the usual places if None.

    Raises:
        NotAnExportError: A file is missing, or there is one that would not be published.
        StaleCardError: The card does not have the text of NOTES.md.
        InvalidInputError: See `read_card`.
        RefusedCardError: The Hub takes no card with this metadata.
        HfHubHTTPError: The Hub refuses.
    """
    present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    missing = [name for name in _FILES if name not in present]
    other = [name for name in present if name not in (*_FILES, NOTES)]
    if missing or other:
        raise NotAnExportError(
            f'{folder} is no complete export: missing {missing}, not of an export {other}. `python -m hub export` '
            f'writes one, `python -m hub card` its card.'
        )
    _check_card(folder)
    api = HfApi(token=token)
    try:
        info = api.model_info(repo_id, revision=revision, files_metadata=True)
    except RepositoryNotFoundError:
        parent, remote = None, {}
    else:
        parent = info.sha
        remote = {
            sibling.rfilename: sibling.lfs.sha256 if sibling.lfs else sibling.blob_id for sibling in info.siblings
        }
    files = [_file(folder / name, remote) for name in _FILES]
    return Plan(repo_id, revision, parent, files, _card_diff(folder / CARD, repo_id, parent, token))


def _check_card(folder: Path) -> None:
    path = folder / CARD
    card = read_card(path)
    if read_notes(folder) not in card.text:
        raise StaleCardError(f'{path} does not have the text of {NOTES}: make it again, with `python -m hub card`.')
    try:
        card.validate()
    except ValueError as error:
        raise RefusedCardError(
            f'the Hub refuses the metadata of {path}: {error} A licence comes from --license of `python -m hub export`.'
        ) from error


def _file(path: Path, remote: Dict[str, str]) -> File:
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    # What git calls a file that is not in large file storage.
    blob_id = hashlib.sha1(f'blob {len(content)}\0'.encode() + content).hexdigest()
    return File(path.name, path, len(content), sha256, remote.get(path.name) not in (sha256, blob_id))


def _card_diff(path: Path, repo_id: str, parent: Optional[str], token: Optional[str]) -> List[str]:
    old: List[str] = []
    if parent is not None:
        try:
            old = Path(hf_hub_download(repo_id, CARD, revision=parent, token=token)).read_text().splitlines()
        except EntryNotFoundError:
            pass
    return list(difflib.unified_diff(old, path.read_text().splitlines(), 'published', 'new', lineterm='', n=1))


def push(
        planned: Plan, message: str, private: bool = True, tag: Optional[str] = None, token: Optional[str] = None,
) -> Optional[str]:
    """Carry out a plan: one commit, on top of the one that the plan was made on.

    Args:
        planned: The plan.
        message: Of the commit.
        private: Whether a new repository is private.
        tag: A tag for the commit.
        token: Of the Hub; from the usual places if None.

    Returns:
        The commit; None if nothing had changed.

    Raises:
        HfHubHTTPError: The Hub refuses; status 412 where somebody else has committed since the plan was made.
    """
    api = HfApi(token=token)
    if planned.parent is None:
        api.create_repo(planned.repo_id, private=private)
        # The Hub begins a repository with a commit of its own.
        parent = api.model_info(planned.repo_id).sha
        if planned.revision != 'main':
            api.create_branch(planned.repo_id, branch=planned.revision)
    else:
        parent = planned.parent
    commit = None
    if planned.changed:
        operations = [CommitOperationAdd(file.name, str(file.path)) for file in planned.changed]
        commit = api.create_commit(
            planned.repo_id, operations, commit_message=message, revision=planned.revision, parent_commit=parent,
        ).oid
    if tag is not None:
        api.create_tag(planned.repo_id, tag=tag, revision=commit or planned.parent, exist_ok=commit is None)
    return commit
