"""README and docs: links lead somewhere, commands have the options that are printed, snippets run."""

import importlib
import re
from pathlib import Path
from typing import List, NamedTuple

import pytest
import timm
from PIL import Image
from timm.models import get_pretrained_cfg

from dit_timm.training.sweep import read_sweep

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/*.md'), *ROOT.glob('hub/results/*.md')])
INDEX = ROOT / 'docs' / 'README.md'
# Where prose names options of the commands of the wheel.
OF_COMMANDS = [ROOT / 'docs' / name for name in ('training.md', 'evaluation.md', 'distributed.md')]
COMMANDS = ('train', 'validate', 'predict', 'sweep')
# A fence with the comment in front of it needs what a test does not have; the comment says what.
FENCE = re.compile(r'^(<!-- not run: [^\n]+ -->\n)?```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
LINK = re.compile(r'\[(?:[^][]|!\[[^]]*]\([^)]*\))*]\(([^)\s]+)\)')
COMMAND = re.compile(r'\bdit-(?P<cli>\w+)|scripts/(?P<script>\w+)\.py|-m hub (?P<hub>\w+)|^make (?P<make>.+)')
OPTION = re.compile(r'(?<![\w-])--[a-z][a-z0-9-]*')


class Block(NamedTuple):
    """A fenced block."""
    language: str
    content: str
    is_run: bool


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


each_page = pytest.mark.parametrize('page', PAGES, ids=name_of)


def blocks(page: Path) -> List[Block]:
    return [Block(language, content, not comment) for comment, language, content in FENCE.findall(page.read_text())]


def prose(page: Path) -> str:
    return FENCE.sub('', page.read_text())


def links(page: Path) -> List[str]:
    return [link for link in LINK.findall(prose(page)) if not re.match(r'[a-z]+:', link)]


def anchors(page: Path) -> List[str]:
    """What GitHub makes of the headings."""
    found = []
    for heading in re.findall(r'^#+ (.+)$', prose(page), re.MULTILINE):
        text = re.sub(r'\[([^]]*)]\([^)]*\)', r'\1', heading).lower()
        slug = re.sub(r'[^\w\- ]', '', text).replace(' ', '-')
        same = sum(re.fullmatch(rf'{re.escape(slug)}(-\d+)?', other) is not None for other in found)
        found.append(f'{slug}-{same}' if same else slug)
    return found


@each_page
def test_links_lead_somewhere(page):
    for link in links(page):
        path, _, anchor = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f'{name_of(page)} links to {link}: there is no such file.'
        if anchor:
            assert anchor in anchors(target), f'{name_of(page)} links to {link}: there is no such heading.'


def test_index_has_every_page():
    linked = {(INDEX.parent / link).resolve() for link in links(INDEX)}
    missing = [name_of(page) for page in PAGES if page.parent == INDEX.parent and page not in {INDEX, *linked}]
    assert not missing


def options_of(capsys, module: str, *words: str) -> List[str]:
    with pytest.raises(SystemExit):
        importlib.import_module(module).main([*words, '--help'])
    return OPTION.findall(capsys.readouterr().out)


@each_page
def test_commands_have_the_options(page, capsys):
    shell = '\n'.join(block.content for block in blocks(page) if block.language == 'bash').replace('\\\n', ' ')
    for line in shell.splitlines():
        line = line.partition(' # ')[0]
        command = COMMAND.search(line)
        if command is None:
            continue
        if command['make']:
            assert re.search(rf'^{re.escape(command["make"].strip())}:', (ROOT / 'Makefile').read_text(), re.M), line
            continue
        module = f'dit_timm.cli.{command["cli"]}' if command['cli'] else command['script'] or 'hub.__main__'
        known = options_of(capsys, module, *[command['hub']] * bool(command['hub']))
        unknown = set(OPTION.findall(line[command.end():])) - set(known)
        assert not unknown, f'{name_of(page)}: {line}'


@pytest.mark.parametrize('page', OF_COMMANDS, ids=name_of)
def test_options_in_prose_are_of_a_command(page, capsys):
    known = {option for name in COMMANDS for option in options_of(capsys, f'dit_timm.cli.{name}')}
    assert not set(OPTION.findall(prose(page))) - known


SNIPPETS = [
    pytest.param(block.content, id=f'{name_of(page)}-{number}') for page in PAGES
    for number, block in enumerate(block for block in blocks(page) if block.language == 'python') if block.is_run
]


@pytest.mark.parametrize('code', SNIPPETS)
def test_snippets_run(code, tmp_path, monkeypatch):
    create_model = timm.create_model

    def without_network(name, pretrained=False, **kwargs):
        # Weights that are not in the package would come from the Hub.
        return create_model(name, pretrained=pretrained and bool(get_pretrained_cfg(name).file), **kwargs)

    monkeypatch.setattr(timm, 'create_model', without_network)
    monkeypatch.chdir(tmp_path)
    Image.new('RGB', (48, 40), 'teal').save('photo.jpg')
    exec(compile(code, 'snippet', 'exec'), {'__name__': 'snippet'})


def test_sweep_of_the_docs_is_one(tmp_path):
    content, = (block.content for block in blocks(ROOT / 'docs' / 'training.md') if block.language == 'yaml')
    (tmp_path / 'recipes').symlink_to(ROOT / 'scripts' / 'recipes')
    path = tmp_path / 'sweeps' / 'sweep.yaml'
    path.parent.mkdir()
    path.write_text(content)
    assert [run.name for run in read_sweep(path).runs] == [
        'dit_resnet20-plain-s0', 'dit_resnet20-dit-s0', 'dit_resnet20-plain-s1', 'dit_resnet20-dit-s1',
        'dit_resnet20-mlp-s0',
    ]
