"""Options: where each value comes from, what is refused, and what is known of a field."""

import json
from dataclasses import fields

import pytest
import yaml

from dit_timm.cli import predict, sweep, train, validate
from dit_timm.config.options import Parser, facts_of
from dit_timm.config.recipe import differences
from dit_timm.config.training import TrainingConfig
from dit_timm.data.inputs import OPTIONS, options_metadata


@pytest.fixture
def run(tmp_path):
    """The folder of a run that has begun."""
    folder = tmp_path / 'run'
    folder.mkdir()
    train.write_options(train.parse_args(['--data-dir', 'x', '--lr', '0.3', '--mean', '0.1', '-b', '6']), folder)
    return folder


def recipe_of(tmp_path, **options):
    path = tmp_path / 'recipe.yaml'
    path.write_text(yaml.safe_dump(options))
    return str(path)


def refusal(capsys, function, words):
    """What a wrong command line prints."""
    with pytest.raises(SystemExit) as ended:
        function(words)
    message, hint = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and hint.endswith('--help for all options.')
    return message


def test_each_source_gives_way_to_the_next(tmp_path, run):
    assert train.parse_args(['--data-dir', 'x']).workers == 2
    change = {'workers': 3, 'output': 'recipe'}
    options = yaml.safe_load((run / 'args.yaml').read_text())
    (run / 'args.yaml').write_text(yaml.safe_dump({**options, 'workers': 4, 'output': 'run', 'experiment': 'run'}))
    words = ['--resume', str(run), '--config', recipe_of(tmp_path, **change), '--workers', '5']
    args = train.parse_args(words)
    assert (args.workers, args.output, args.experiment, args.lr, args.batch_size) == (5, 'recipe', 'run', 0.3, 6)


def test_options_of_a_run_are_read_as_they_were_written(tmp_path, run):
    words = [
        '--data-dir', 'x', '--model-kwargs', 'dendrites=layer1.0.conv2', 'act_layer=silu', 'zero=(1, 2)', '--opt-betas',
        '0.9', '0.99', '--no-cuda-graph', '--scale', '1', '1', '--class-map', 'y', '--no-aug', '--aa', 'rand-m9',
    ]
    args = train.parse_args(words)
    assert args.model_kwargs == {'dendrites': 'layer1.0.conv2', 'act_layer': 'silu', 'zero': (1, 2)}
    args.model_kwargs['zero'] = [1, 2]
    train.write_options(args, run)
    resumed = train.parse_args(['--resume', str(run)])
    for field in fields(TrainingConfig):
        if field.name != 'resume':
            value, expected = getattr(resumed, field.name), getattr(args, field.name)
            assert type(value) is type(expected) and value == expected, field.name


def test_a_run_keeps_its_options_but_those_that_change_no_weights(capsys, run):
    other = {int: '7', float: '0.45', bool: '', str: 'other'}
    free = set()
    for name, known in Parser(TrainingConfig).options.items():
        if name in ('resume', 'config', 'dry_run', 'model', 'variant', 'aa', 'opt', 'data_cache'):
            continue
        value = known.facts.choices[-1] if known.facts.choices else other[str if known.kind is dict else known.type]
        value = 'nearest' if 'interpolation' in name else 'a=1' if known.kind is dict else value
        count = known.facts.nargs if isinstance(known.facts.nargs, int) else 1
        try:
            train.parse_args(['--resume', str(run), known.flag, *[value] * (count if value else 0)])
            free.add(name)
        except SystemExit:
            assert f'--resume keeps the options of the run: {known.flag} is ' in capsys.readouterr().err
    assert free == {
        'device', 'workers', 'cache_images', 'cuda_graph', 'checkpoint_interval', 'checkpoint_seconds',
        'log_tensorboard', 'log_wandb', 'output', 'experiment', 'data_dir', 'test_split',
    }


def test_what_says_of_a_run_that_it_is_another_experiment(tmp_path):
    recipe = recipe_of(tmp_path, lr=0.5, data_dir='x')
    plain = vars(train.parse_args(['--config', recipe]))
    assert differences(plain, recipe) == ''
    same = {'seed': 3, 'num_classes': 7, 'workers': 9, 'device': 'cuda', 'test_split': 'test', 'output': 'y'}
    assert differences({**plain, **same}, recipe) == ''
    assert differences({**plain, **same, 'lr': 0.25, 'amp': True}, recipe, {'processes': '2'}) == (
        'amp=True lr=0.25 processes=2')
    assert {name for name, facts in facts_of(TrainingConfig).items() if not facts.is_experiment} == {
        'model', 'num_classes', 'variant', 'seed',
    }


def test_what_a_file_of_weights_says(run):
    args = train.parse_args(['--resume', str(run)])
    assert json.loads(options_metadata(vars(args))[OPTIONS]) == {'mean': [0.1], 'variant': 'dit'}
    assert {name for name, facts in facts_of(TrainingConfig).items() if facts.in_weights} == {
        'num_classes', 'model_kwargs', 'variant', 'in_chans', 'input_size', 'img_size', 'mean', 'std', 'input_img_mode',
        'interpolation', 'crop_pct', 'crop_mode',
    }


@pytest.mark.parametrize('words, message', [
    (['--epochs', 'many'], "argument --epochs: must be a whole number; got 'many'"),
    (['--lr', 'fast'], "argument --lr: must be a number; got 'fast'"),
    (['-b', '0'], 'argument -b/--batch-size: must be at least 1; got 0'),
    (['--hflip', '1.5'], 'argument --hflip: must be at most 1; got 1.5'),
    (['--val-fraction', '1'], 'argument --val-fraction: must be less than 1; got 1'),
    (['--scale', '0.5'], 'argument --scale: expected 2 arguments'),
    (['--model-kwargs', 'quadratic'], "argument --model-kwargs: must be NAME=VALUE; got 'quadratic'"),
    # A flag is named in full.
    (['--epoch', '3'], 'unrecognized arguments: --epoch 3. Did you mean --epochs?'),
])
def test_a_wrong_value_names_its_flag_and_what_is_expected(capsys, words, message):
    assert message in refusal(capsys, train.parse_args, ['--data-dir', 'x', *words])


@pytest.mark.parametrize('options, message', [
    ({'scale': [0.5]}, 'argument --scale: expected 2 arguments; got [0.5]'),
    ({'opt_betas': [0.9, 'x']}, "argument --opt-betas: must be a number; got 'x'"),
    ({'model_kwargs': 'a=1'}, "argument --model-kwargs: must map names to values; got 'a=1'"),
    ({'variant': False}, 'argument --variant: must be text; got False'),
    ({'workers': True}, 'argument --workers: must be a whole number; got True'),
    ({'resume': 'x'}, "sets 'resume', which is no option."),
    ({'dry_run': True}, "sets 'dry_run', which is no option."),
])
def test_a_wrong_value_of_a_recipe_names_the_file_too(tmp_path, capsys, options, message):
    recipe = recipe_of(tmp_path, **options)
    printed = refusal(capsys, train.parse_args, ['--config', recipe])
    assert f'--config {recipe}' in printed and message in printed


def test_a_run_with_an_unknown_option_does_not_resume(capsys, run):
    with (run / 'args.yaml').open('a') as file:
        file.write('weight_decai: 0.1\n')
    message = refusal(capsys, train.parse_args, ['--resume', str(run)])
    assert f"{run / 'args.yaml'} sets 'weight_decai', which is no option. Did you mean 'weight_decay'?" in message


def test_null_is_the_default(tmp_path):
    args = train.parse_args(['--config', recipe_of(tmp_path, aa=None, smoothing=None, opt='adamw')])
    assert (args.aa, args.smoothing, args.opt) == (None, 0.1, 'adamw')


def test_lists_and_dicts_are_each_ones_own():
    first, second = TrainingConfig(), TrainingConfig()
    first.scale.append(2.)
    first.model_kwargs['a'] = 1
    assert (second.scale, second.model_kwargs) == ([0.08, 1.0], {})


@pytest.mark.parametrize('config', [
    TrainingConfig, validate.ValidationConfig, predict.PredictionConfig, sweep.SweepConfig,
])
def test_each_part_has_its_heading_in_help_and_each_option_its_flag(config):
    parser = Parser(config)
    headings = [group.title for group in parser._action_groups]
    assert headings[2:] == [part.title for part in config.__mro__ if vars(part).get('title')]
    for name, known in parser.options.items():
        words = [name] if known.facts.positional else [known.flag]
        assert [action.dest for action in parser._actions if {*words} & {action.dest, *action.option_strings}] == [name]
    assert parser.format_help()
