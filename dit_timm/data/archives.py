"""Archives of images, which are read from their middle: whole and uncompressed .tar files."""

import tarfile
from pathlib import Path
from typing import Optional

from ..errors import InvalidInputError

# How compressed files begin, and how their names end.
_BEGINNINGS = {b'\x1f\x8b': 'gzip', b'BZh': 'bzip2', b'\xfd7zXZ\0': 'xz', b'\x28\xb5\x2f\xfd': 'zstd', b'PK\3\4': 'zip'}
_COMPRESSED = ('.tar.gz', '.tgz', '.tar.bz2', '.tbz2', '.tar.xz', '.txz', '.tar.zst', '.zip')
# Every archive ends with two blocks of zeros.
_END = bytes(1024)


def compressed(root: Path, name: str) -> Optional[Path]:
    """The compressed archive of a name in a folder, if there is one."""
    return next((path for path in (root / f'{name}{ending}' for ending in _COMPRESSED) if path.is_file()), None)


def check_archive(path: Path) -> None:
    """Refuse an archive that is compressed, cut short, or none. Only its ends are read, whatever its size.

    Raises:
        InvalidInputError: It is.
    """
    with path.open('rb') as file:
        beginning = file.read(8)
        file.seek(max(0, path.stat().st_size - len(_END)))
        end = file.read()
    kind = next((kind for magic, kind in _BEGINNINGS.items() if beginning.startswith(magic)), None)
    if kind is not None:
        raise InvalidInputError(
            f'{path} is compressed ({kind}), and images cannot be read from the middle of it. Unpack it into a folder, '
            f'or decompress it to a plain .tar.'
        )
    if not tarfile.is_tarfile(path):
        raise InvalidInputError(f'{path} is no .tar archive.')
    if end != _END:
        raise InvalidInputError(f'{path} is cut short: the end that every .tar has is not there. Copy it again.')
