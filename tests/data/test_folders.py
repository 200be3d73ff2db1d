"""Folders as people have them: links, hidden files, nested folders, images of every kind."""

import multiprocessing
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dit_timm.cli import predict, train, validate
from dit_timm.data.dataset import Images
from dit_timm.data.loaders import eval_loader, train_loader
from dit_timm.data.resident import ResidentSplits
from dit_timm.data.splits import class_names, data_config, labels, open_split
from dit_timm.training.model import build_model
from hub.pictures import read_picture

SMALL = ['--model', 'test_dit_resnet', '--img-size', '32', '--batch-size', '4', '--workers', '0', '--lr', '0.01',
         '--epochs', '1', '--warmup-epochs', '0']


def write_image(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (32, 32), (shade, 0, 0)).save(path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """`train` with three images of each of two classes, whose shades are 10 to 12 and 20 to 22, and `validation`."""
    for split in ('train', 'validation'):
        for label, name in enumerate(('cat', 'dog')):
            for number in range(3):
                write_image(tmp_path / 'data' / split / name / f'{number}.png', 10 * (label + 1) + number)
    return tmp_path / 'data'


def opened(root: Path, *options: str, split: str = 'train'):
    return open_split(train.parse_args(['--data-dir', str(root), *options]), split)


def contents(dataset) -> dict:
    """The shades of the images of each class, sorted, by its name."""
    found = {name: [] for name in class_names(dataset)}
    for index in range(len(dataset)):
        image, label = Images(dataset)._read(index)
        found[class_names(dataset)[label]].append(image.getpixel((0, 0))[0])
    return {name: sorted(shades) for name, shades in found.items()}


def pack(folder: Path, arcname: str = '.') -> None:
    """Put an archive in the place of a split's folder."""
    with tarfile.open(folder.with_suffix('.tar'), 'w') as tar:
        tar.add(folder, arcname=arcname)
    shutil.rmtree(folder)


TWO_CLASSES = {'cat': [10, 11, 12], 'dog': [20, 21, 22]}


def test_links_are_followed(data, tmp_path):
    cats, dogs = data / 'train' / 'cat', data / 'train' / 'dog'
    # A class, a folder in a class, and an image.
    shutil.move(cats, tmp_path / 'cats')
    cats.symlink_to(tmp_path / 'cats')
    (tmp_path / 'more').mkdir()
    shutil.move(dogs / '1.png', tmp_path / 'more' / '1.png')
    (dogs / 'more').symlink_to(tmp_path / 'more')
    shutil.move(dogs / '2.png', tmp_path / '2.png')
    (dogs / '2.png').symlink_to(tmp_path / '2.png')
    assert contents(opened(data)) == TWO_CLASSES
    train.main(['--data-dir', str(data), *SMALL, '--output', str(tmp_path / 'out')])


def test_loops_of_links_end(data, caplog):
    caplog.set_level('INFO')
    places = {
        'cat/self': 'cat', 'cat/root': '..', 'cat/above': '../..', 'dog/all': str(data.parent), 'again': '.',
        'dog/a': 'b', 'dog/b': 'a',
    }
    for place, target in places.items():
        (data / 'train' / place).symlink_to(Path('..') / target if place == 'cat/self' else target)
    # Through another class and back: one round.
    (data / 'train' / 'cat' / 'dogs').symlink_to('../dog')
    (data / 'train' / 'dog' / 'cats').symlink_to('../cat')
    assert contents(opened(data)) == {'cat': [10, 11, 12, 20, 21, 22], 'dog': [10, 11, 12, 20, 21, 22]}
    line, = (record.message for record in caplog.records if 'links' in record.message)
    assert 'lead nowhere or back are not followed' in line and all(str(data / 'train' / place) in line for place in (
        'again', 'cat/above', 'cat/dogs/cats', 'cat/root', 'cat/self', 'dog/a',
    ))


def test_a_class_that_is_a_broken_link_is_named(data):
    (data / 'train' / 'bird').symlink_to(data / 'nowhere')
    with pytest.raises(ValueError, match=f'without an image: {data / "train" / "bird"}'):
        opened(data)


def hide(split: Path) -> None:
    """What editors, git, macOS and network disks leave in a split."""
    for folder in (split, split / 'cat', split / 'dog'):
        write_image(folder / '.ipynb_checkpoints' / '0-checkpoint.png', 200)
        write_image(folder / '@eaDir' / '0.png', 201)
        write_image(folder / '__MACOSX' / 'cat' / '0.png', 202)
        (folder / '._0.png').write_bytes(b'no image')
        (folder / '.DS_Store').write_bytes(b'')
    (split / '.git').mkdir()


def test_hidden_folders_and_those_of_systems_are_ignored(data, caplog):
    hide(data / 'train')
    caplog.set_level('INFO')
    assert contents(opened(data)) == TWO_CLASSES
    opened(data)
    line, = (record.message for record in caplog.records if 'ignored' in record.message)
    assert line == (
        f"{data / 'train'}: ignored what is hidden or a system's: .DS_Store (3), ._* (3), .ipynb_checkpoints (3), "
        f"@eaDir (3), __MACOSX (3), .git (1)"
    )
    pack(data / 'train')
    assert contents(opened(data)) == TWO_CLASSES
    assert 'train.tar: ignored what is hidden' in caplog.records[-1].message


def test_a_folder_below_a_hidden_one_is_a_folder(data, tmp_path):
    shutil.move(data, tmp_path / '.cache' / '@eaDir')
    assert contents(opened(tmp_path / '.cache' / '@eaDir')) == TWO_CLASSES


def nest(split: Path) -> None:
    for name, inner in (('cat', ('indoor', 'outdoor')), ('dog', ('outdoor', 'indoor/night'))):
        for number, folder in enumerate(inner):
            (split / name / folder).mkdir(parents=True)
            (split / name / f'{number}.png').rename(split / name / folder / f'{number}.png')


@pytest.mark.parametrize('archive', [False, True])
def test_the_class_is_the_folder_below_the_split(data, archive, tmp_path):
    nest(data / 'train')
    if archive:
        pack(data / 'train')
    dataset = opened(data)
    assert contents(dataset) == TWO_CLASSES
    assert sorted(labels(dataset).tolist()) == [0, 0, 0, 1, 1, 1]
    train.main(['--data-dir', str(data), *SMALL, '--output', str(tmp_path / 'out'), '--experiment', 'run'])
    assert validate.main(['--checkpoint', str(tmp_path / 'out' / 'run')]) == 0


@pytest.mark.parametrize('archive', [False, True])
def test_with_a_class_map_the_class_is_the_folder_of_the_image(data, archive, tmp_path, caplog):
    caplog.set_level('INFO')
    nest(data / 'train')
    (tmp_path / 'map.txt').write_text('outdoor\ncat\nindoor\n')
    if archive:
        pack(data / 'train')
    dataset = opened(data, '--class-map', str(tmp_path / 'map.txt'))
    # timm's own: dogs in `night` and in no folder of theirs have no class.
    assert contents(dataset) == {'outdoor': [11, 20], 'cat': [12], 'indoor': [10]}
    assert 'left out 2 images in folders that --class-map does not name: dog, night' in caplog.text
    (tmp_path / 'map.txt').write_text('bird\n')
    with pytest.raises(ValueError, match='no image in a folder that --class-map names; it has cat, dog'):
        opened(data, '--class-map', str(tmp_path / 'map.txt'))


@pytest.mark.parametrize('archive', [False, True])
def test_a_folder_around_the_classes_is_no_class(data, archive, caplog):
    caplog.set_level('INFO')
    inner = data / 'train' / 'my' / 'pets'
    inner.mkdir(parents=True)
    for name in ('cat', 'dog'):
        (data / 'train' / name).rename(inner / name)
    nest(inner)
    if archive:
        pack(data / 'train')
    assert contents(opened(data)) == TWO_CLASSES
    assert 'all images lie in my/pets, whose folders are the classes' in caplog.text


def test_archives_in_an_archive_are_classes(data):
    nest(data / 'train')
    for name in ('cat', 'dog'):
        pack(data / 'train' / name)
    pack(data / 'train', arcname='train')
    assert contents(opened(data)) == TWO_CLASSES


def test_names_alike_to_timm_have_one_order(data):
    for name in ('Cat', 'a01', 'a1', 'a001'):
        write_image(data / 'train' / name / '0.png')
    assert class_names(opened(data)) == ['a001', 'a01', 'a1', 'Cat', 'cat', 'dog']


@pytest.mark.parametrize('archive', [False, True])
@pytest.mark.parametrize('alone', [False, True])
def test_an_image_in_no_class_is_named(data, archive, alone, tmp_path):
    if alone:
        for name in ('cat', 'dog'):
            shutil.rmtree(data / 'validation' / name)
    write_image(data / 'validation' / 'b.png')
    loose = write_image(data / 'validation' / 'a.png')
    if archive:
        pack(data / 'validation')
        loose = 'a.png'
    with pytest.raises(SystemExit, match=rf'^error: {loose} lies in no folder of a class, and 1 other images: .*Move'):
        train.main(['--data-dir', str(data), *SMALL, '--output', str(tmp_path / 'out')])


def test_predict_takes_a_folder_without_classes(data):
    hide(data / 'validation')
    write_image(data / 'validation' / 'b.PNG')
    (data / 'validation' / 'linked').symlink_to(data / 'train' / 'cat')
    (data / 'validation' / 'cat' / 'loop').symlink_to('..')
    found = predict.find_images([str(data / 'validation')])
    assert [str(Path(name).relative_to(data / 'validation')) for name in found] == [
        'b.PNG', *(f'{name}/{number}.png' for name in ('cat', 'dog', 'linked') for number in range(3)),
    ]


def test_files_that_are_no_images_are_counted(data, caplog):
    caplog.set_level('INFO')
    (data / 'train' / 'labels.json').write_text('{}')
    for name in ('cat', 'dog'):
        (data / 'train' / name / 'notes.TXT').write_text('no image')
    assert contents(opened(data)) == TWO_CLASSES
    assert f'{data / "train"}: left out 3 files that are no images: .txt (2), .json (1)' in caplog.messages


def test_what_is_no_archive_is_named(data):
    shutil.rmtree(data / 'train')
    (data / 'train.tar').write_bytes(b'no archive')
    with pytest.raises(ValueError, match='train.tar is no .tar archive'):
        opened(data)
    with tarfile.open(data / 'train.tar', 'w') as tar:
        tar.add(data / 'validation' / 'cat' / '0.png', arcname='cat/notes.txt')
    with pytest.raises(ValueError, match='train.tar is no archive with images'):
        opened(data)


def test_an_archive_that_ends_too_early_is_named(data):
    pack(data / 'train')
    dataset = opened(data)
    with (data / 'train.tar').open('r+b') as file:
        file.truncate(3000)
    with pytest.raises(Exception, match='cannot be read') as raised:
        [Images(dataset)._read(index) for index in range(6)]
    assert type(raised.value).__name__ == 'UnreadableImageError'


def test_processes_do_not_read_an_archive_through_one_file(data):
    generator = np.random.default_rng(0)
    for path in (data / 'train').rglob('*.png'):
        # Larger than what Python reads ahead.
        Image.fromarray(generator.integers(0, 256, (256, 256, 3), np.uint8)).save(path)
    pack(data / 'train')
    dataset = opened(data)

    def read():
        return [Images(dataset)._read(index)[0].tobytes() for index in range(6)]

    expected = read()
    file = dataset.reader.tar_state.tf.fileobj
    place = os.lseek(file.fileno(), 0, os.SEEK_CUR)
    child = multiprocessing.get_context('fork').Process(target=Images(dataset)._read, args=(0,))
    child.start()
    child.join()
    assert child.exitcode == 0 and os.lseek(file.fileno(), 0, os.SEEK_CUR) == place
    # Processes that are not forked get the data set without its open files.
    dataset = pickle.loads(pickle.dumps(dataset))
    assert read() == expected


def upright() -> np.ndarray:
    """32 x 32 pixels whose upper half is white."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255
    return pixels


def kinds(folder: Path) -> dict:
    """Writes images of every kind; returns what each looks like, by name, or None where loss changes the pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    white_above, shades = Image.fromarray(upright()), np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64
    exif = Image.Exif()
    # Held so that the upper side is on the left in the file.
    exif[0x0112] = 6
    lying = white_above.transpose(Image.Transpose.ROTATE_90)
    for name in ('exif.jpg', 'exif.PNG', 'exif.webp', 'exif.tiff'):
        lying.save(folder / name, exif=exif, **({'lossless': True} if name.endswith('webp') else {}))
    for name in ('plain.bmp', 'plain.TIF', 'plain.JPG', 'plain.gif', 'plain.jpeg'):
        white_above.save(folder / name)
    for name in ('deep.png', 'deep.tif'):
        Image.fromarray(shades).save(folder / name)
    grey = (shades // 256).astype(np.uint8)[..., None].repeat(3, axis=2)
    return {path.name: grey if path.stem == 'deep' else upright() for path in folder.iterdir()}


def test_every_kind_of_image_is_seen_alike_by_all(tmp_path):
    looks = kinds(tmp_path / 'data' / 'train' / 'cat')
    kinds(tmp_path / 'data' / 'train' / 'dog')
    shutil.copytree(tmp_path / 'data' / 'train', tmp_path / 'data' / 'validation')
    args = train.parse_args([
        '--data-dir', str(tmp_path / 'data'), '--data-cache', str(tmp_path / 'cache'), '--model', 'dit_resnet20',
        '--batch-size', '11', '--workers', '0', '--device', 'cpu', '--crop-pct', '1', '--no-aug', '--num-classes', '2',
    ])
    config = {**data_config(args, build_model(args)), 'mean': (0., 0., 0.), 'std': (1., 1., 1.)}
    resident = ResidentSplits('cpu', tmp_path / 'cache')
    files = [Path(name).name for name in opened(tmp_path / 'data').filenames()]
    assert len(files) == 2 * len(looks) == 22
    expected = np.stack([looks[name] for name in files])

    def assert_alike(images, what, to_expected):
        # JPEG rings at the edge, by a little.
        difference = np.abs(images.astype(int) - to_expected.astype(int)).reshape(len(images), -1).max(axis=1)
        bad = {files[number] for number in np.flatnonzero(difference > 8)}
        assert not bad, (what, bad)

    for there in (None, resident):
        batches, order = train_loader(args, opened(tmp_path / 'data'), config, resident=there)
        order.set_position(0)
        numbers = order.order().flatten().numpy()
        images = np.concatenate([images.numpy() for images, _ in batches])
        assert_alike((images * 255).round().transpose(0, 2, 3, 1)[numbers.argsort()], 'training', expected)
        batches = eval_loader(args, opened(tmp_path / 'data', split='validation'), config, resident=there,
                              split='validation')
        images = np.concatenate([images.numpy() for images, _ in batches])
        assert_alike((images * 255).round().transpose(0, 2, 3, 1), 'evaluation', expected)
    paths = predict.find_images([str(tmp_path / 'data' / 'validation')])
    assert sorted(Path(path).name for path in paths) == sorted(files)
    for read in (predict.read_image, lambda name: read_picture(Path(name))):
        images = np.stack([np.array(read(path)) for path in paths])
        assert_alike(images, read, np.stack([looks[Path(path).name] for path in paths]))
