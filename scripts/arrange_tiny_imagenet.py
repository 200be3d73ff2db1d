"""Arrange Tiny-ImageNet-200 as folders of classes: `python scripts/arrange_tiny_imagenet.py tiny-imagenet-200 DIR`.

As published, the images of a training class lie in a folder `images` of it, which timm's own scripts take for the
class, and the classes of the validation images stand in a text file. DIR gets `train` and `validation` with a folder
for each class, of links to the files.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Iterator, List, Optional, Tuple


def places(source: Path) -> Iterator[Tuple[Path, Path]]:
    """Each image, and where it belongs below the target."""
    for image in sorted(source.glob('train/*/images/*.JPEG')):
        yield image, Path('train', image.parts[-3], image.name)
    for line in (source / 'val' / 'val_annotations.txt').read_text().splitlines():
        name, label = line.split('\t')[:2]
        yield source / 'val' / 'images' / name, Path('validation', label, name)


def main(argv: Optional[List[str]] = None) -> int:
    """Make the links; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, help='the folder as published, with train and val')
    parser.add_argument('target', type=Path, metavar='DIR')
    args = parser.parse_args(argv)
    if not (args.source / 'val' / 'val_annotations.txt').is_file() or not (args.source / 'train').is_dir():
        print(f'error: {args.source} has no train and val/val_annotations.txt, as Tiny-ImageNet has.', file=sys.stderr)
        return 1
    count = 0
    for image, place in places(args.source.absolute()):
        link = args.target / place
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            os.symlink(image, link)
        count += 1
    print(f'{args.target}: {count:,} images')
    return 0


if __name__ == '__main__':
    sys.exit(main())
