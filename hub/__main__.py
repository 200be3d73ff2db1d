"""Command line: `python -m hub COMMAND --help`."""

import argparse
import re
import sys
from pathlib import Path
from typing import List, Optional, Tuple

from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from dit_timm.errors import MissingPackageError, UserError, message_of
from dit_timm.pretrained.hub_errors import ConnectionFailed, TransportFailed, remedy
from dit_timm.printing import set_up_printing

from . import __doc__ as _doc
from .card import check_card, write_card
from .export import export
from .push import plan, push
from .registry import registry_entry
from .run import AVERAGED, KEPT, PLAIN, read_run
from .verify import verify


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m hub', description=_doc)
    commands = parser.add_subparsers(dest='command', required=True)

    command = commands.add_parser('export', help='run folder to a folder of weights, config, golden outputs and card')
    command.add_argument('run', type=Path, metavar='RUN', help='folder that scripts/train.py wrote')
    command.add_argument('--out', type=Path, required=True, metavar='DIR')
    command.add_argument(
        '--tag', type=_tag, required=True, help='what the weights are called: says the data, such as cifar10',
    )
    command.add_argument(
        '--license', help='of the weights, such as apache-2.0; weights that the run began with bring theirs along',
    )
    command.add_argument('--weights', default=KEPT, choices=(KEPT, AVERAGED, PLAIN), help='default: those the run kept')
    _add_card_options(command)

    command = commands.add_parser('card', help='make the card of an export again, with what NOTES.md says')
    command.add_argument('run', type=Path, metavar='RUN')
    command.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder of the export')
    _add_card_options(command)

    command = commands.add_parser('push', help='publish an export; without --yes say what would be done')
    command.add_argument('folder', type=Path, metavar='DIR', help='folder of the export')
    command.add_argument('repo_id', type=_repo_id, metavar='OWNER/NAME')
    command.add_argument('--yes', action='store_true', help='do it')
    command.add_argument('--public', action='store_true', help='let a new repository be public (default: private)')
    command.add_argument('--revision', default='main', metavar='BRANCH')
    command.add_argument('--tag', help='git tag for the commit')
    command.add_argument('--message', default='Weights, config and card', help='of the commit')

    for name, text in (('verify', 'download a model afresh and look at all of it'),
                       ('registry', 'print the cfg entry of a published model')):
        command = commands.add_parser(name, help=text)
        command.add_argument('repo_id', type=_repo_id_at, metavar='OWNER/NAME[@REVISION]')

    command = commands.add_parser('page', help='serve a page that tries networks on photographs; needs the extra space')
    command.add_argument(
        '--models', nargs='+', metavar='NAME',
        help='names of timm\'s registry (dit_resnet50.a1_in1k_init) or repositories on the Hub (OWNER/NAME) '
             '(default: those whose weights ship with dit_timm)',
    )
    command.add_argument('--host', default='127.0.0.1')
    command.add_argument('--port', type=int, default=7860)
    return parser


def _add_card_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--repo-id', type=_repo_id, required=True, metavar='OWNER/NAME', help='repository that the card names',
    )
    parser.add_argument('--data', required=True, metavar='NAME', help='what the data are called')
    parser.add_argument('--dataset', metavar='ID', help='their id on the Hub, if they have one')


def _tag(text: str) -> str:
    if not re.fullmatch(r'[\w-]+', text):
        raise argparse.ArgumentTypeError(f'a tag has letters, digits, "_" and "-", as in cifar10; got {text!r}.')
    return text


def _repo_id(text: str) -> str:
    try:
        validate_repo_id(text)
        valid = text.count('/') == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise argparse.ArgumentTypeError(
            f'a repository is OWNER/NAME, as in me/my-model, of letters, digits, "-", "_" and "."; got {text!r}.'
        )
    return text


def _repo_id_at(text: str) -> Tuple[str, Optional[str]]:
    name, _, revision = text.partition('@')
    return _repo_id(name), revision or None


def _export(args: argparse.Namespace) -> int:
    run = read_run(args.run)
    # A card that is refused is refused before anything is written.
    check_card(args.out)
    export(run, args.out, args.tag, args.license, args.weights)
    card = write_card(run, args.out, args.repo_id, args.data, args.dataset)
    print(f'{args.out}: {", ".join(sorted(path.name for path in args.out.iterdir()))}. Read {card}, then push.')
    return 0


def _card(args: argparse.Namespace) -> int:
    print(write_card(read_run(args.run), args.out, args.repo_id, args.data, args.dataset))
    return 0


def _push(args: argparse.Namespace) -> int:
    planned = plan(args.folder, args.repo_id, args.revision)
    state = 'new repository' if planned.parent is None else f'on top of {planned.parent}'
    print(f'{args.repo_id}, {args.revision}, {state}')
    for file in planned.files:
        print(f'  {"changed  " if file.changed else "unchanged"} {file.size:>12,} bytes  {file.sha256}  {file.name}')
    print('\n'.join(planned.card_diff))
    if not args.yes:
        print('Nothing was sent. --yes publishes.')
        return 0
    commit = push(planned, args.message, private=not args.public, tag=args.tag)
    print(f'commit {commit}' if commit else 'Nothing had changed: no commit.')
    return _report(args.repo_id, commit or planned.parent)


def _verify(args: argparse.Namespace) -> int:
    return _report(*args.repo_id)


def _report(repo_id: str, revision: Optional[str]) -> int:
    found = verify(repo_id, revision)
    for text in found.passed:
        print(f'ok: {text}')
    for text in found.problems:
        print(f'PROBLEM: {text}')
    print(f'{repo_id}@{found.commit}: {"not what was published" if found.problems else "verified"}')
    return 1 if found.problems else 0


def _registry(args: argparse.Namespace) -> int:
    print(registry_entry(*args.repo_id))
    return 0


def _page(args: argparse.Namespace) -> int:
    try:
        # Here, because gradio is in no other command's extra.
        from .page import serve
    except ModuleNotFoundError as error:
        if error.name != 'gradio':
            raise
        raise MissingPackageError('The page needs gradio: pip install \'.[space]\' in the checkout.') from error
    serve(args.models, args.host, args.port)
    return 0


_COMMANDS = {
    'export': _export, 'card': _card, 'push': _push, 'verify': _verify, 'registry': _registry, 'page': _page,
}


def main(argv: Optional[List[str]] = None) -> int:
    """Run a command; returns the exit code."""
    set_up_printing()
    args = _parser().parse_args(argv)
    try:
        return _COMMANDS[args.command](args)
    except HfHubHTTPError as error:
        print(f'error: {str(error).strip().splitlines()[0]} {remedy(error)}', file=sys.stderr)
    except ConnectionFailed as error:
        print(f'error: the Hub cannot be reached ({error}). Is there a network?', file=sys.stderr)
    except TransportFailed as error:
        print(
            f'error: the connection to the Hub was lost ({error}). What was sent may have arrived: the same push again '
            f'makes no second commit.', file=sys.stderr,
        )
    except (UserError, OSError) as error:
        print(f'error: {message_of(error)}', file=sys.stderr)
    return 1


if __name__ == '__main__':
    sys.exit(main())
