"""scripts/arrange_tiny_imagenet.py: the folder as published becomes one that timm reads."""

import arrange_tiny_imagenet
from PIL import Image

from dit_timm.cli import train
from dit_timm.data.splits import class_names, open_split


def test_classes_are_folders(tmp_path, capsys):
    source, target = tmp_path / 'tiny-imagenet-200', tmp_path / 'data'
    assert arrange_tiny_imagenet.main([str(source), str(target)]) == 1
    assert 'has no train and val/val_annotations.txt' in capsys.readouterr().err
    lines = []
    for shade, label in enumerate(('n02', 'n01')):
        for kind, folder in (('train', source / 'train' / label / 'images'), ('val', source / 'val' / 'images')):
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(2):
                name = f'{kind}_{label}_{index}.JPEG'
                Image.new('L', (64, 64), 100 * shade).save(folder / name)
                if kind == 'val':
                    lines.append(f'{name}\t{label}\t0\t0\t62\t62')
    (source / 'val' / 'val_annotations.txt').write_text('\n'.join(lines) + '\n')
    for _ in range(2):
        assert arrange_tiny_imagenet.main([str(source), str(target)]) == 0
    args = train.parse_args(['--data-dir', str(target)])
    for split in ('train', 'validation'):
        dataset = open_split(args, split)
        assert class_names(dataset) == ['n01', 'n02'] and len(dataset) == 4
        for image, label in (dataset[index] for index in range(4)):
            assert image.getpixel((0, 0))[0] == (100 if label == 0 else 0)
