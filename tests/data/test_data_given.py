"""Archives and class maps as people have them: compressed, cut short, from Windows, missing."""

import bz2
import gzip
import pickle
import tarfile

import pytest

from dit_timm.cli import train, validate
from dit_timm.data.class_map import read_class_map
from dit_timm.data.labels import read_valid_labels
from dit_timm.data.splits import class_names, labels, open_split

WORDS = [
    '--model', 'test_dit_resnet', '--img-size', '32', '--batch-size', '6', '--workers', '0', '--epochs', '1',
    '--device', 'cpu', '--lr', '0.01',
]


@pytest.fixture
def packed(write_greys):
    """A folder of splits as .tar files."""
    root = write_greys(train=(4, 4, 4), validation=(2, 2, 2))
    for split in ('train', 'validation'):
        with tarfile.open(root / f'{split}.tar', 'w') as tar:
            tar.add(root / split, arcname='.')
        (root / split).rename(root / f'unpacked-{split}')
    return root


def member_ends(path):
    with tarfile.open(path) as tar:
        return [member.offset_data + -(-member.size // 512) * 512 for member in tar]


def rename_compressed(root, ending, compress):
    path = root / 'train.tar'
    (root / f'train{ending}').write_bytes(compress(path.read_bytes()))
    path.unlink()


def cut(root, where):
    path = root / 'train.tar'
    path.write_bytes(path.read_bytes()[:where(member_ends(path))])


@pytest.mark.parametrize('spoil, name, message', [
    (lambda root: rename_compressed(root, '.tar.gz', gzip.compress), 'train.tar.gz', r'is compressed \(gzip\)'),
    (lambda root: rename_compressed(root, '.tgz', gzip.compress), 'train.tgz', r'is compressed \(gzip\)'),
    (lambda root: rename_compressed(root, '.tar.bz2', bz2.compress), 'train.tar.bz2', r'is compressed \(bzip2\)'),
    (lambda root: (root / 'train.tar').write_bytes(gzip.compress((root / 'train.tar').read_bytes())), 'train.tar',
     r'is compressed \(gzip\)'),
    # Just after an image, in the middle of one, and in the middle of a header.
    (lambda root: cut(root, lambda ends: ends[-2]), 'train.tar', 'is cut short'),
    (lambda root: cut(root, lambda ends: ends[-2] - 700), 'train.tar', 'is cut short'),
    (lambda root: cut(root, lambda ends: ends[-2] + 100), 'train.tar', 'is cut short'),
    (lambda root: (root / 'train.tar').write_bytes(b''), 'train.tar', 'is no .tar archive'),
    (lambda root: (root / 'train.tar').write_bytes(b'<html>' * 999), 'train.tar', 'is no .tar archive'),
])
def test_an_archive_that_cannot_be_read_is_one_line(packed, tmp_path, spoil, name, message):
    spoil(packed)
    with pytest.raises(SystemExit, match=f'^error: {packed / name} {message}.*$'):
        train.main(['--data-dir', str(packed), *WORDS, '--output', str(tmp_path / 'out')])


def test_a_folder_beside_a_compressed_archive_is_taken(packed):
    rename_compressed(packed, '.tar.gz', gzip.compress)
    (packed / 'unpacked-train').rename(packed / 'train')
    assert len(open_split(train.parse_args(['--data-dir', str(packed), *WORDS]), 'train')) == 12


NAMES = 'class2\nclass0\nclass1'


@pytest.mark.parametrize('content', [
    NAMES.encode(), f'{NAMES}\n\n'.encode(), NAMES.encode('utf-8-sig'), NAMES.replace('\n', '\r\n').encode('utf-8-sig'),
    NAMES.replace('\n', '\r\n').encode('utf-16'),
])
def test_class_maps_of_any_editor(write_greys, tmp_path, content):
    root, names = write_greys(train=(1, 2, 3)), tmp_path / 'names.txt'
    names.write_bytes(content)
    dataset = open_split(train.parse_args(['--data-dir', str(root), '--class-map', str(names)]), 'train')
    assert class_names(dataset) == ['class2', 'class0', 'class1'] and labels(dataset).tolist() == [1, 2, 2, 0, 0, 0]


def test_a_class_map_beside_the_data_and_one_of_python(write_greys, tmp_path):
    root = write_greys(train=(1, 1, 1))
    (root / 'names.txt').write_text(NAMES)
    assert read_class_map('names.txt', str(root)) == {'class2': 0, 'class0': 1, 'class1': 2}
    (root / 'names.pkl').write_bytes(pickle.dumps({'class1': 0, 'class2': 1}))
    assert read_class_map('names.pkl', str(root)) == {'class1': 0, 'class2': 1}


class Harmful:
    def __reduce__(self):
        return exec, ('raise AssertionError("code was run")',)


@pytest.mark.parametrize('name, content, message', [
    ('missing.txt', None, 'is no file, and there is none in'),
    ('names.txt', b'', 'is empty'),
    ('names.txt', b'class0\n\nclass1\nclass2', 'line 2 is empty'),
    ('names.txt', b'class0\nclass1\nclass0', "'class0' is in lines 1 and 3"),
    ('names.txt', b'class0\n\xe9t\xe9', 'is not in UTF-8'),
    ('names.csv', b'class0', 'must be a .txt with a class in each line, or a .pkl'),
    ('names.pkl', b'class0', 'is no pickled dict of plain values'),
    ('names.pkl', pickle.dumps(Harmful()), 'is no pickled dict of plain values'),
    ('names.pkl', pickle.dumps(['class0']), 'is no pickled dict of plain values'),
])
def test_a_class_map_that_cannot_be_used_is_one_line(write_greys, tmp_path, name, content, message):
    root, path = write_greys(train=(2, 2, 2)), tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit, match=f'^error: --class-map {path}:? {message}.*$'):
        train.main(['--data-dir', str(root), *WORDS, '--class-map', str(path), '--output', str(tmp_path / 'out')])


def test_a_run_finds_its_class_map_from_any_folder(write_greys, tmp_path, monkeypatch):
    root = write_greys(train=(4, 4, 4), validation=(2, 2, 2))
    (tmp_path / 'names.txt').write_text(NAMES)
    monkeypatch.chdir(tmp_path)
    train.main(['--data-dir', str(root), *WORDS, '--class-map', 'names.txt', '--output', '.', '--experiment', 'run'])
    monkeypatch.chdir('/')
    assert validate.main(['--checkpoint', str(tmp_path / 'run')]) == 0


def test_valid_labels_from_windows(tmp_path):
    (tmp_path / 'labels.txt').write_bytes('3\r\n5\r\n'.encode('utf-8-sig'))
    assert read_valid_labels(str(tmp_path / 'labels.txt')) == [3, 5]
