"""Options from YAML files and from the folder of a run, in front of those of the command line."""

import argparse
import difflib
import hashlib
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, NoReturn, Optional

import yaml

# In the folder of a run: the recipe that it began with; see `recipe_text`.
RECIPE = 'recipe.yaml'


class Parser(argparse.ArgumentParser):
    """A parser whose errors are a line, not a page of all options."""

    def __init__(self, description: Optional[str]) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end."""
        self.exit(2, f'{self.prog}: error: {message}\nSee {self.prog} --help for all options.\n')


def parse(
        parser: argparse.ArgumentParser,
        argv: Optional[List[str]] = None,
        config: Optional[Path] = None,
) -> argparse.Namespace:
    """Parse a command line in front of which the options of a YAML file stand; the command line wins.

    Args:
        parser: A parser with `--config` and other options.
        argv: Command line; that of the process if None.
        config: The file when the command line names none.

    Returns:
        The options.
    """
    argv = sys.argv[1:] if argv is None else argv
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument('-c', '--config', type=Path)
    path = first.parse_known_args(argv)[0].config or config
    # As words of a command line, so that the parser checks values from a file as it checks those typed.
    words = words_of(parser, read_options(parser, path), f'--config {path}') if path is not None else []
    if words:
        # Alone first, so that an error says that it is the file's.
        with _errors_of(parser, path):
            parser.parse_known_args(words)
    args, unknown = parser.parse_known_args([*words, *argv])
    if unknown:
        names = [name for action in parser._actions for name in action.option_strings]
        near = difflib.get_close_matches(unknown[0].partition('=')[0], names, n=1)
        hint = f' Did you mean {near[0]}?' if near else ''
        parser.error(f'unrecognized arguments: {" ".join(unknown)}.{hint}')
    args.config = path
    return args


def recipe_text(path: Path) -> str:
    """The options that a recipe sets, as sorted YAML without comments: its SHA-256 does not depend on its header.

    Args:
        path: The recipe, which `parse` has taken.
    """
    return yaml.safe_dump(yaml.safe_load(path.read_text(encoding='utf-8')))


def sha256_of(recipe: str) -> str:
    """What stands for a recipe in tables of results.

    Args:
        recipe: See `recipe_text`.
    """
    return hashlib.sha256(recipe.encode()).hexdigest()


@contextmanager
def _errors_of(parser: argparse.ArgumentParser, path: Path) -> Iterator[None]:
    """Let the parser's errors name a file."""
    report = parser.error
    parser.error = lambda message: report(f'--config {path}: {message}')
    try:
        yield
    finally:
        del parser.error


def read_options(parser: argparse.ArgumentParser, path: Path) -> Dict[str, Any]:
    """Read a YAML file that maps names to values; ends the process, as the parser does, if it cannot."""
    try:
        values = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        parser.error(f'cannot read {path}: {error}')
    if not isinstance(values, dict):
        parser.error(f'{path} must map option names to values; it holds {values!r}.')
    return values


def words_of(parser: argparse.ArgumentParser, options: Mapping[str, Any], source: str) -> List[str]:
    """Options as words of a command line; ends the process, as the parser does, if it has no such option.

    Args:
        parser: The parser.
        options: Values by name.
        source: What sets them, for the message.
    """
    actions = {action.dest: action for action in parser._actions if action.dest not in ('config', 'help', 'resume')}
    words = []
    for key, value in options.items():
        key = str(key).replace('-', '_')
        if key not in actions:
            near = difflib.get_close_matches(key, actions, n=1)
            hint = f' Did you mean {near[0]!r}?' if near else ''
            parser.error(f'{source} sets {key!r}, which is no option.{hint}')
        name = f"--{key.replace('_', '-')}"
        if isinstance(actions[key], argparse.BooleanOptionalAction):
            if not isinstance(value, bool):
                parser.error(f'{source} sets {key!r} to {value!r}; it must be true or false.')
            words.append(name if value else f"--no-{key.replace('_', '-')}")
        elif isinstance(value, dict):
            words += [name, *(f'{inner}={content}' for inner, content in value.items())]
        elif isinstance(value, list):
            words += [name, *map(str, value)]
        elif value is not None:
            words.append(f'{name}={value}')
    return words


def positive_int(text: str) -> int:
    """An argparse type."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1; got {text}')
    return value


def fraction(text: str) -> float:
    """An argparse type: 0 <= value < 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f'must be at least 0 and less than 1; got {text}')
    return value
