"""How fast many networks are trained at once: `python scripts/benchmark_sweep.py --data-dir DIR --csv FILE`.

For each number of runs it trains that many, each of the variants in turn, with the recipe and in the way of
scripts/sweep.py: images on the device, a step of each after the other. Then the same runs repeat what a step computes,
forward to update, on one batch and nothing else: what all else takes is the ratio of the two.
"""

import argparse
import resource
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import torch

from dit_timm.cli import train
from dit_timm.config.choices import positive_int
from dit_timm.config.parts import DIT, PLAIN, default_device
from dit_timm.data.resident import ResidentSplits
from dit_timm.training.environment import environment
from dit_timm.training.logs import write_csv
from dit_timm.training.pool import Job
from dit_timm.training.process_group import ProcessGroup

_RECIPE = Path(__file__).parent / 'recipes' / 'cifar_resnet20.yaml'
_WARMUP_TURNS = 5


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data-dir', required=True, metavar='DIR', help='folder with train and test')
    parser.add_argument('--recipe', type=Path, default=_RECIPE, metavar='FILE', help='default: %(default)s')
    parser.add_argument('--together', type=positive_int, nargs='+', default=[1, 10], metavar='N', help='runs at once')
    parser.add_argument('--variants', nargs='+', default=[PLAIN, DIT], metavar='NAME', help='of the runs, in turn')
    parser.add_argument('--turns', type=positive_int, default=500, metavar='N', help='steps of each run')
    parser.add_argument('--device', default=default_device())
    parser.add_argument('--csv', type=Path, metavar='FILE', help='write a row for each number of runs')
    return parser.parse_args(argv)


def measure(args: argparse.Namespace, together: int, resident: ResidentSplits, folder: Path) -> Dict[str, Any]:
    """Train so many runs at once; returns a row of results."""
    on_gpu = torch.device(args.device).type == 'cuda'
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    jobs = [_job(args, number, resident, folder / str(number)) for number in range(together)]
    for job in jobs:
        job.stream = torch.cuda.Stream() if on_gpu else None
    steps = min(job.run.epochs * job.run.sampler.batches for job in jobs)
    if steps <= args.turns + _WARMUP_TURNS:
        raise SystemExit(f'error: a run of {args.recipe} has {steps} steps: lower --turns, {args.turns}.')
    batches = {job: next(iter(job.run.train_batches)) for job in jobs}
    if on_gpu:
        torch.cuda.synchronize()
    training = _seconds(args, jobs, Job.step)
    computing = _seconds(args, jobs, lambda job: job.run.steps.compute(*batches[job]))
    images = args.turns * sum(job.images for job in jobs)
    return {
        'together': together, 'variants': ' '.join(args.variants), 'recipe': args.recipe.name, 'turns': args.turns,
        'images_per_second': round(images / training), 'computing_alone': round(images / computing),
        'time_over_computing': round(training / computing, 3),
        'host_gb_so_far': round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20, 2),
        'device_gb': round(torch.cuda.max_memory_reserved() / 1e9, 2) if on_gpu else '',
        **environment(args.device),
    }


def _job(args: argparse.Namespace, number: int, resident: ResidentSplits, folder: Path) -> Job:
    folder.mkdir(parents=True)
    options = train.parse_args([
        '--config', str(args.recipe), '--data-dir', args.data_dir, '--device', args.device, '--seed', str(number),
        '--variant', args.variants[number % len(args.variants)], '--checkpoint-seconds', '1e9',
    ])
    processes = ProcessGroup(args.device)
    run = train.seeded_run(options, processes, resident=resident, show=False)
    return Job(folder.name, run, folder, macs=1.)


def _seconds(args: argparse.Namespace, jobs: List[Job], work: Callable[[Job], Any]) -> float:
    """Time of the turns, after some that are not counted."""
    def turns(count: int) -> None:
        for _ in range(count):
            for job in jobs:
                with torch.cuda.stream(job.stream) if job.stream is not None else nullcontext():
                    work(job)
        if torch.device(args.device).type == 'cuda':
            torch.cuda.synchronize()

    turns(_WARMUP_TURNS)
    start = time.perf_counter()
    turns(args.turns)
    return time.perf_counter() - start


def main(argv: Optional[List[str]] = None) -> None:
    """Measure, print and write."""
    args = parse_args(argv)
    cache = train.parse_args(['--config', str(args.recipe)]).data_cache
    resident, rows = ResidentSplits(args.device, cache), []
    for together in args.together:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(args, together, resident, Path(folder)))
        print('  '.join(f'{name} {value}' for name, value in rows[-1].items()), flush=True)
        if args.csv is not None:
            # After each, so that what was measured is there whatever the next one does.
            write_csv(rows, args.csv)


if __name__ == '__main__':
    main()
