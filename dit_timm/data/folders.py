"""The images of a split, a folder or an archive, and their classes.

The classes are the folders directly below the split, whatever lies in them; timm's own readers take the folder that an
image lies in. Where all images lie below one folder, as in an archive of a folder, the classes are the folders in that.
With a class map it is as timm does it: an image has the class of the folder that it lies in, and one whose folder the
map does not name is left out.
"""

import errno
import functools
import logging
import os
import tarfile
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import IO, Any, Dict, List, NamedTuple, Optional, Tuple, cast

import numpy as np
from timm.data import ImageDataset, add_img_extensions, get_img_extensions
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from timm.utils.misc import natural_key

from ..errors import InvalidInputError
from ..printing import first_of
from .images import ENDINGS

_logger = logging.getLogger(__name__)

# timm's reader of archives goes by its own list.
add_img_extensions(ENDINGS)

# What systems put beside files, apart from hidden names.
_OF_SYSTEMS = {
    '@eaDir', '#recycle', '__MACOSX', '$RECYCLE.BIN', 'System Volume Information', 'lost+found', 'Thumbs.db',
    'desktop.ini',
}
# Names of folders below the split, the outermost first.
_Folders = Tuple[str, ...]


class Found(NamedTuple):
    """What lies in a folder.

    Attributes:
        images: Paths, and the folders that they lie in.
        folders: All folders that are looked into.
        ignored: Names of what is hidden or a system's.
        others: Endings of files that are no images.
        links: Paths of links that lead nowhere, or back to a folder that they lie in.
    """
    images: List[Tuple[str, _Folders]]
    folders: List[_Folders]
    ignored: Counter
    others: Counter
    links: List[str]


def find_files(root: Path) -> Found:
    """Look for images in a folder and all folders below, through links, and say in the log what is left out.

    Raises:
        OSError: A folder cannot be read.
    """
    found = Found([], [], Counter(), Counter(), [])
    _walk(str(root), (), (root.resolve(),), found)
    _say_ignored(str(root), found.ignored)
    if found.others:
        total = sum(found.others.values())
        files = 'file that is no image' if total == 1 else 'files that are no images'
        _say(f'{root}: left out {total} {files}: {_counted(found.others)}')
    if found.links:
        _say(f'{root}: links that lead nowhere or back are not followed: {first_of(sorted(found.links))}')
    return found


def _walk(folder: str, inside: _Folders, above: Tuple[Path, ...], found: Found) -> None:
    """Add what lies in `folder`.

    Args:
        folder: Its path.
        inside: Its place below the root.
        above: Where it and the folders around it really are.
        found: What has been found.
    """
    extensions = get_img_extensions(as_set=True)
    with os.scandir(folder) as entries:
        for entry in entries:
            ending = os.path.splitext(entry.name)[1].lower()
            if _is_ignored(entry.name):
                found.ignored[_kind(entry.name)] += 1
            elif _is_folder(entry):
                real = Path(entry.path).resolve() if entry.is_symlink() else above[-1] / entry.name
                if any(path.is_relative_to(real) for path in above):
                    found.links.append(entry.path)
                else:
                    found.folders.append((*inside, entry.name))
                    _walk(entry.path, found.folders[-1], (*above, real), found)
            elif ending in extensions:
                found.images.append((entry.path, inside))
            elif not os.path.exists(entry.path):
                # In the place of a class, one without an image.
                found.links.append(entry.path)
                found.folders.append((*inside, entry.name))
            else:
                found.others[ending or 'without an ending'] += 1


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        # Links that lead to one another, and nowhere.
        if error.errno != errno.ELOOP:
            raise
        return False


def _is_ignored(name: str) -> bool:
    return name.startswith('.') or name in _OF_SYSTEMS


def _kind(name: str) -> str:
    # What macOS writes beside every file, on disks that are not its own.
    return '._*' if name.startswith('._') else name


def _say_ignored(root: str, names: Counter) -> None:
    if names:
        _say(f'{root}: ignored what is hidden or a system\'s: {_counted(names)}')


@functools.cache
def _say(message: str) -> None:
    """Say something once, though a split is opened for training and for what is held out of it."""
    _logger.info(message)


def _counted(counts: Counter) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return first_of([f'{name} ({count})' for name, count in ordered])


def _label(
        root: str, images: List[Tuple[str, _Folders]], class_map: Optional[Dict[str, int]],
) -> Tuple[List[Optional[int]], Dict[str, int], int]:
    """Give images their classes.

    Args:
        root: The split.
        images: Their names, and the folders that they lie in.
        class_map: Numbers of the classes by name, if they are given.

    Returns:
        Their classes, None for an image that the class map leaves out; the numbers of the classes by name; how many
        folders lie around those of the classes.

    Raises:
        InvalidInputError: There are no images, or one lies in no folder of a class.
    """
    if not images:
        raise InvalidInputError(f'{root} has no image. The files of images end in {", ".join(get_img_extensions())}.')
    folders, depth = {place for _, place in images}, 0
    if class_map is None:
        loose = [name for name, place in images if not place]
        if loose:
            others = f', and {len(loose) - 1} other images' if loose[1:] else ''
            raise InvalidInputError(
                f'{min(loose)} lies in no folder of a class{others}: {root} needs a folder for each class, with its '
                f'images. Move them there, or out of {root}.'
            )
        depth = min(len(os.path.commonprefix(list(folders))), min(map(len, folders)) - 1)
        if depth:
            _say(f'{root}: all images lie in {"/".join(min(folders)[:depth])}, whose folders are the classes')
        names = {place: place[depth] for place in folders}
        # Names that differ only in case or leading zeros are alike to natural_key.
        order = sorted(set(names.values()), key=lambda name: (natural_key(name), name))
        numbers = {name: number for number, name in enumerate(order)}
    else:
        names = {place: place[-1] if place else '' for place in folders}
        numbers = class_map
    labels = [numbers.get(names[place]) for _, place in images]
    unnamed = sorted({names[place] or root for place in folders if names[place] not in numbers})
    left_out = labels.count(None)
    if left_out == len(labels):
        raise InvalidInputError(f'{root} has no image in a folder that --class-map names; it has {first_of(unnamed)}.')
    if left_out:
        _say(f'{root}: left out {left_out} images in folders that --class-map does not name: {first_of(unnamed)}')
    return labels, numbers, depth


class FolderReader(ReaderImageFolder):
    """timm's reader of a folder, with the images and classes of this module.

    Args:
        root: The folder.
        class_map: Numbers of the classes by name, if they are given.

    Raises:
        InvalidInputError: There is no image, one lies in no folder of a class, or a class has none.
        OSError: A folder cannot be read.
    """

    def __init__(self, root: Path, class_map: Optional[Dict[str, int]] = None) -> None:
        # Not timm's own: it would look for images itself.
        self.root = str(root)
        found = find_files(root)
        labels, self.class_to_idx, depth = _label(self.root, found.images, class_map)
        used = {place[:length] for place in {place for _, place in found.images} for length in range(len(place) + 1)}
        empty = [place for place in found.folders if len(place) <= depth + 1 and place not in used]
        if empty:
            paths = sorted(os.path.join(root, *place) for place in empty)
            raise InvalidInputError(f'Folders of classes without an image: {first_of(paths)}. Fill or remove them.')
        samples = [(path, label) for (path, _), label in zip(found.images, labels) if label is not None]
        self.samples = sorted(samples, key=lambda sample: (natural_key(sample[0]), sample[0]))


class ArchiveReader(ReaderImageInTar):
    """timm's reader of an archive, with the classes of this module.

    Args:
        root: The .tar.
        class_map: Numbers of the classes by name, if they are given.

    Raises:
        InvalidInputError: It cannot be read, has no image, or one that lies in no folder of a class.
    """

    def __init__(self, root: Path, class_map: Optional[Dict[str, int]] = None) -> None:
        try:
            super().__init__(str(root))
        except (tarfile.TarError, ValueError) as error:
            raise InvalidInputError(
                f'{root} is no archive with images, or cannot be read: {error}. It must be whole, and not compressed.'
            ) from error
        places = [_place(member, archive) for member, _, archive in self.samples]
        ignored = [next(filter(_is_ignored, place), None) for place in places]
        _say_ignored(self.root, Counter(_kind(name) for name in ignored if name is not None))
        images = [('/'.join(place), place[:-1]) for place, name in zip(places, ignored) if name is None]
        labels, self.class_name_to_idx, _ = _label(self.root, images, class_map)
        taken = np.array([name is None for name in ignored])
        taken[taken] = [label is not None for label in labels]
        self.samples = self.samples[taken]
        self.targets = np.array([label for label in labels if label is not None])
        self.class_idx_to_name = {number: name for name, number in self.class_name_to_idx.items()}
        self.opened_by = os.getpid()

    def __getitem__(self, index: int) -> Tuple[Optional[IO[bytes]], np.ndarray]:
        if self.opened_by != os.getpid():
            # After a fork a file has one place for both processes, which they would move for each other.
            self._forget()
            self.opened_by = os.getpid()
        return super().__getitem__(index)

    def __getstate__(self) -> Dict[str, Any]:
        # Files go to no process that is not forked.
        self._forget()
        return self.__dict__

    def _forget(self) -> None:
        # timm's annotation is a dict.
        archive = cast(Any, self.tar_state)
        for state in (archive, *archive.children.values()):
            state.reset()


def _place(member: tarfile.TarInfo, archive: Optional[tarfile.TarInfo]) -> Tuple[str, ...]:
    """The folders of an image and its name; an archive in the archive is a folder."""
    parts = () if archive is None else PurePosixPath(archive.name).with_suffix('').parts
    return *(part for part in parts if part != '.'), *PurePosixPath(member.path).parts


def open_folder(path: Path, class_map: Optional[Dict[str, int]] = None) -> ImageDataset:
    """Open a split: a folder or an archive.

    Args:
        path: Its path.
        class_map: Numbers of the classes by name, if they are given.

    Raises:
        InvalidInputError: See the readers.
        OSError: A folder cannot be read.
    """
    reader = FolderReader if path.is_dir() else ArchiveReader
    return ImageDataset(str(path), reader=reader(path, class_map))
