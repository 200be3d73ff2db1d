"""Options as fields of dataclasses, taken from the command line and from YAML with the same checks."""

import argparse
import ast
import dataclasses
import difflib
import inspect
import sys
import typing
from pathlib import Path
from typing import Any, Callable, ClassVar, Dict, List, Mapping, NoReturn, Optional, Sequence, Tuple, Union

import yaml

_EXPECTED = {int: 'a whole number', float: 'a number', str: 'text', Path: 'a path', bool: 'true or false'}


@dataclasses.dataclass(frozen=True)
class OptionInfo:
    """What is known of an option beside its name, type and default.

    Attributes:
        help: A line for `--help`.
        metavar: What `--help` calls the value.
        choices: The values that there are.
        low: The lowest number.
        high: The highest.
        below: What the number must be less than.
        check: Refuses a text with `argparse.ArgumentTypeError`, else returns it.
        nargs: Of lists, how many values there are; else as of argparse.
        const: See argparse, of `nargs='?'`.
        short: The short flag.
        positional: Whether the value stands without a flag.
        several: Whether several may be named, of which each is done in turn.
        in_recipe: Whether a recipe may set it.
        may_change: Whether it may differ between a run and its continuation: it does not change the weights.
        is_experiment: Whether another value is another experiment.
        in_weights: Whether the weights of a run are of use only with it.
    """
    help: Optional[str] = None
    metavar: Union[str, Tuple[str, ...], None] = None
    choices: Sequence[str] = ()
    low: Optional[float] = None
    high: Optional[float] = None
    below: Optional[float] = None
    check: Callable[[str], str] = str
    nargs: Union[int, str, None] = None
    const: Optional[str] = None
    short: Optional[str] = None
    positional: bool = False
    several: bool = False
    in_recipe: bool = True
    may_change: bool = False
    is_experiment: bool = True
    in_weights: bool = False


def option(default: Any = dataclasses.MISSING, help: Optional[str] = None, **facts: Any) -> Any:
    """A field of a dataclass that is an option.

    Args:
        default: Its default, or what is called for it; a list or dict is copied for each instance. Without one the
            option must be named.
        help: See `OptionInfo`.
        **facts: See `OptionInfo`.
    """
    metadata = {'facts': OptionInfo(help, **facts)}
    if isinstance(default, (list, dict)) or callable(default):
        factory = default if callable(default) else default.copy
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def facts_of(config: type) -> Dict[str, OptionInfo]:
    """The facts of all options of a dataclass, by name."""
    return {field.name: field.metadata['facts'] for field in dataclasses.fields(config)}


class Options:
    """Base of dataclasses of options.

    Attributes:
        title: The heading above them in `--help`; none for those that stand first.
    """

    title: ClassVar[Optional[str]] = None


class _Switch(argparse.BooleanOptionalAction):
    """`--name` and `--no-name`, also where the name itself begins with `no-`."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, option_string == self.option_strings[0])


class _Option:
    """How the values of a field are read and checked."""

    def __init__(self, field: dataclasses.Field, annotation: Any) -> None:
        self.name, self.facts = field.name, field.metadata['facts']
        self.default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if typing.get_origin(annotation) is Union:
            annotation = typing.get_args(annotation)[0]
        # list, dict, or the type itself; and that of a single value.
        self.kind = typing.get_origin(annotation) or annotation
        self.type = typing.get_args(annotation)[0] if self.kind is list else annotation
        self.flag = f"--{self.name.replace('_', '-')}"

    def add_to(self, group: argparse._ActionsContainer) -> None:
        """Add the option to a group of a parser."""
        facts, names = self.facts, [name for name in (self.facts.short, self.flag) if name]
        kwargs: Dict[str, Any] = {'help': self._help()}
        if self.kind is bool:
            kwargs['action'] = _Switch
        else:
            choices = '{' + ','.join(facts.choices) + '}' if facts.choices else None
            nargs = '+' if facts.several or self.kind is list else '*' if self.kind is dict else None
            kwargs.update(
                type=_pair if self.kind is dict else self.read, metavar=facts.metavar or choices,
                nargs=facts.nargs or nargs,
            )
            if facts.const is not None:
                kwargs['const'] = facts.const
        group.add_argument(*([self.name] if facts.positional else names), **kwargs)

    def _help(self) -> Optional[str]:
        text, default = self.facts.help or '', self.default
        if 'default:' not in text and default not in (None, '', False, {}, dataclasses.MISSING):
            words = ' '.join(map(str, default)) if isinstance(default, list) else default
            text = f'{text} (default: {words})'.lstrip()
        return text.replace('%', '%%') or None

    def read(self, text: str) -> Any:
        """A single value.

        Raises:
            argparse.ArgumentTypeError: It is of another type, out of range, or not among the choices.
        """
        facts = self.facts
        try:
            value = self.type(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f'must be {_EXPECTED[self.type]}; got {text!r}') from None
        bounds = [
            words for words, holds in (
                (f'at least {facts.low}', facts.low is None or value >= facts.low),
                (f'at most {facts.high}', facts.high is None or value <= facts.high),
                (f'less than {facts.below}', facts.below is None or value < facts.below),
            ) if not holds
        ]
        if bounds:
            raise argparse.ArgumentTypeError(f'must be {" and ".join(bounds)}; got {text}')
        if facts.choices and value not in facts.choices:
            raise argparse.ArgumentTypeError(f'invalid choice: {value!r} (choose from {", ".join(facts.choices)})')
        return facts.check(value) if self.type is str else value

    def of_yaml(self, value: Any) -> Any:
        """The value of a file; null is the default.

        Raises:
            argparse.ArgumentTypeError: See `read`.
        """
        if value is None:
            return self.default
        if self.kind is list:
            values = value if isinstance(value, (list, tuple)) else [value]
            if isinstance(self.facts.nargs, int) and len(values) != self.facts.nargs:
                raise argparse.ArgumentTypeError(f'expected {self.facts.nargs} arguments; got {value!r}')
            return [self._single(item) for item in values]
        if self.kind is dict:
            if not isinstance(value, dict):
                raise argparse.ArgumentTypeError(f'must map names to values; got {value!r}')
            return value
        return self._single(value)

    def _single(self, value: Any) -> Any:
        if isinstance(value, (list, dict)) or isinstance(value, bool) != (self.type is bool):
            raise argparse.ArgumentTypeError(f'must be {_EXPECTED[self.type]}; got {value!r}')
        return value if self.type is bool else self.read(str(value))


def _pair(text: str) -> Tuple[str, Any]:
    """A name and its value, of Python where it is one, else text; as timm's `ParseKwargs` reads them."""
    name, equals, value = text.partition('=')
    if not equals:
        raise argparse.ArgumentTypeError(f'must be NAME=VALUE; got {text!r}')
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


class Parser(argparse.ArgumentParser):
    """A parser of the options of a dataclass; its errors are a line, not a page of all options.

    Args:
        config: The dataclass, made of parts that are `Options`.
        description: What the command does.
    """

    def __init__(self, config: type, description: Optional[str] = None) -> None:
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
        self.config = config
        annotations = typing.get_type_hints(config)
        self.options = {field.name: _Option(field, annotations[field.name]) for field in dataclasses.fields(config)}
        # An option that a part redefines stands where it was.
        owners = {name: part for part in config.__mro__ for name in inspect.get_annotations(part)}
        for part in config.__mro__:
            group = self.add_argument_group(part.title) if vars(part).get('title') else self
            for name, known in self.options.items():
                if owners[name] is part:
                    known.add_to(group)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end."""
        self.exit(2, f'{self.prog}: error: {message}\nSee {self.prog} --help for all options.\n')

    def given(self, argv: Optional[Sequence[str]] = None) -> Dict[str, Any]:
        """The options that a command line names, that of the process if None; the process ends if it is wrong."""
        found, unknown = self.parse_known_args(sys.argv[1:] if argv is None else argv)
        if unknown:
            names = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(unknown[0].partition('=')[0], names, n=1)
            hint = f' Did you mean {near[0]}?' if near else ''
            self.error(f'unrecognized arguments: {" ".join(unknown)}.{hint}')
        return {name: dict(value) if self.options[name].kind is dict else value for name, value in vars(found).items()}

    def read(self, path: Path) -> Dict[str, Any]:
        """Read a YAML file that maps names to values; the process ends if it cannot."""
        try:
            values = yaml.safe_load(path.read_text(encoding='utf-8'))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            self.error(f'cannot read {path}: {error}')
        if not isinstance(values, dict):
            self.error(f'{path} must map option names to values; it holds {values!r}.')
        return values

    def checked(self, values: Mapping[str, Any], source: str, known: Optional[List[str]] = None) -> Dict[str, Any]:
        """Options of a file, checked as those of the command line; the process ends if one is wrong.

        Args:
            values: By name.
            source: What sets them, for the message.
            known: The options that it may set; those of recipes if None.
        """
        known = [name for name, one in self.options.items() if one.facts.in_recipe] if known is None else known
        checked = {}
        for key, value in values.items():
            name = str(key).replace('-', '_')
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f' Did you mean {near[0]!r}?' if near else ''
                self.error(f'{source} sets {name!r}, which is no option.{hint}')
            try:
                checked[name] = self.options[name].of_yaml(value)
            except argparse.ArgumentTypeError as error:
                self.error(f'{source}: argument {self.options[name].flag}: {error}')
        return checked
