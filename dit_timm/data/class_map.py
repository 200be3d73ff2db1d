"""Class maps: which class has which number."""

import io
import pickle
from pathlib import Path
from typing import Dict, List, Optional

from timm.data.readers.class_map import load_class_map

from ..errors import InvalidInputError, MissingFileError


def read_class_map(name: str, root: Optional[str]) -> Dict[str, int]:
    """Read a file with a class in each line (.txt), or a pickled dict of numbers by class (.pkl).

    Args:
        name: The file, or its name in the folder of the data.
        root: The folder of the data, if there is one.

    Raises:
        MissingFileError: There is none.
        InvalidInputError: It is neither, or a line is empty or comes twice.
    """
    path = next((path for path in (Path(name), Path(root or '', name)) if path.is_file()), None)
    if path is None:
        raise MissingFileError(f'--class-map {name} is no file{f", and there is none in {root}" if root else ""}.')
    if path.suffix.lower() == '.pkl':
        try:
            # timm's, which executes nothing.
            return load_class_map(str(path))
        except (pickle.UnpicklingError, ValueError, EOFError) as error:
            raise InvalidInputError(f'--class-map {path} is no pickled dict of plain values: {error}') from error
    if path.suffix.lower() != '.txt':
        raise InvalidInputError(f'--class-map {path} must be a .txt with a class in each line, or a .pkl.')
    names = _lines(path)
    if not names:
        raise InvalidInputError(f'--class-map {path} is empty.')
    for number, line in enumerate(names, 1):
        if not line:
            raise InvalidInputError(f'--class-map {path}: line {number} is empty, and each line has a class.')
        if names.index(line) + 1 < number:
            raise InvalidInputError(f'--class-map {path}: {line!r} is in lines {names.index(line) + 1} and {number}.')
    return {line: number for number, line in enumerate(names)}


def _lines(path: Path) -> List[str]:
    content = path.read_bytes()
    # Editors of Windows write UTF-16, or begin UTF-8 with a mark of their own.
    encoding = 'utf-16' if content.startswith((b'\xff\xfe', b'\xfe\xff')) else 'utf-8-sig'
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise InvalidInputError(f'--class-map {path} is not in UTF-8: {error}') from error
    return [line.strip() for line in io.StringIO(text.rstrip(), newline=None)]
