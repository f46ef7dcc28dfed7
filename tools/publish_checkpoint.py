"""Releases a trained model: python tools/publish_checkpoint.py CONFIG work_dirs/NAME/CHECKPOINT

docs/release.md lists the files that it writes. Run it in the root of the repository, with the data
of the config's test split, on the machine and in the environment of the training, which it records.
"""

from __future__ import annotations

from mmconvneur.utils import environment

environment.exit_unless_good()  # before the imports below can fail

import argparse
import copy
import io
import json
import os
import platform
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

import mmconvneur
from mmconvneur.engine.hooks import ProgressBarHook
from mmconvneur.errors import UsageError
from mmconvneur.evaluation.names import METRICS
from mmconvneur.utils.arguments import add_trust, one_line_errors
from mmconvneur.utils.configs import check_data, datasets, find_config, load_config
from mmconvneur.utils.files import write_atomically
from mmconvneur.utils.flat import read_flat
from mmconvneur.utils.runner import build_runner
from mmconvneur.weights.files import file_hash, locate
from mmconvneur.weights.reading import read_checkpoint
from mmconvneur.weights.report import compare
from mmconvneur.weights.trunk import put_back
from model_index import METAFILE, index_entry, release

DATASETS = {
    'coco': 'COCO',
    'ADEChallengeData2016': 'ADE20K',
    'imagenet': 'ImageNet-1K',
    'fashion': 'Fashion-MNIST',
    'sample': 'Sample data',
}


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0])
    parser.add_argument('config', help='path of the config, or the name of a shipped one')
    parser.add_argument('checkpoint', help='a checkpoint of tools/train.py, in its work folder')
    parser.add_argument('--name', help='short name of the model; default: that of the config')
    add_trust(parser)
    parser.set_defaults(cfg_options={}, launcher='none', local_rank=0)
    args = parser.parse_args()
    if not Path(METAFILE).is_file():
        raise UsageError(f'{METAFILE} does not exist: run this in the root of the repository')
    cfg, config = load_config(args), find_config(args.config).resolve()
    if Path('configs').resolve() not in config.parents:
        raise UsageError(f'{args.config} is not of this repository: put it into configs/')
    name = args.name or config.stem
    if not re.fullmatch(r'[\w-]+', name):
        raise UsageError(f'--name {name}: use letters, digits, _ and - alone')
    check_data(cfg, 'test')
    checkpoint = locate(args.checkpoint)
    training = read_training(checkpoint)
    log, processes = read_log(checkpoint.parent)
    meta, flat = training['meta'], flat_config(training['meta'])
    for key in ('model', 'test_dataloader', 'test_evaluator'):
        if cfg.get(key) != flat.get(key):
            raise UsageError(
                f'{key} of the config is not the one the checkpoint was trained with: '
                'give the config it was trained with'
            )
    init_default_scope(cfg.default_scope)
    put_back(training['state_dict'], MODELS.build(cfg.model))  # a release stands alone

    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / 'weights.pth'
        torch.save(slim(training), weights)
        metrics, model = evaluate(cfg, weights, args)
        digest, content = file_hash(weights), weights.read_bytes()
    stem = f'checkpoints/{name}-{digest[:8]}'
    launch, launcher = 'python', ''
    if processes > 1:
        launch, launcher = f'torchrun --nproc_per_node {processes}', ' --launcher pytorch'
    by_epoch = 'max_epochs' in flat.train_cfg
    record = dict(
        name=name,
        config=str(config.relative_to(Path.cwd())),
        sha256=digest,
        command=f'{launch} tools/train.py {stem}.py{launcher}',
        seed=meta['seed'],
        length={'Epochs': meta['epoch']} if by_epoch else {'Iterations': meta['iter']},
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        metrics=metrics,
        software=software(),
        hardware=hardware(processes),
    )
    files = {
        '.pth': content,
        '.py': flat.pretty_text,
        '.log.json': log,
        '.npz': golden(model.backbone),
        '.json': json.dumps(record, indent=1),
    }
    for suffix, data in files.items():
        write_atomically(stem + suffix, data)
    root = Path(next(datasets(cfg.test_dataloader)).data_root)
    data = root.parent.name if root.name == 'things' else root.name
    entry = index_entry(record, DATASETS.get(data, data), f'{stem}.pth', len(content))
    release(Path.cwd(), entry)
    print(f'{stem}.pth: {len(content) / 1e6:.1f} MB, {metrics}')


# ----------------------------------------------------------------------------------- what is given
def read_training(checkpoint: Path) -> dict:
    """A training checkpoint, with all that a release needs of it."""
    training = read_checkpoint(checkpoint)
    meta = training.get('meta')
    needed = {'cfg', 'seed', 'dataset_meta', 'epoch', 'iter'}
    missing = needed - set(meta if isinstance(meta, dict) else ())
    if missing or 'state_dict' not in training:
        raise UsageError(
            f'checkpoint {checkpoint} does not come from a training (it has no '
            f'{", ".join(sorted(missing)) or "state_dict"}): give one that tools/train.py wrote'
        )
    return training


def read_log(work_dir: Path) -> tuple[bytes, int]:
    """The logged values of all runs in a work folder, and the number of processes of the last."""
    scalars = sorted(work_dir.glob('*/vis_data/scalars.json'))
    if not scalars:
        raise UsageError(
            f'{work_dir} holds no training log (*/vis_data/scalars.json): '
            'give a checkpoint in the work folder of its training'
        )
    last = scalars[-1].parents[1]
    processes = re.search(r'GPU number: (\d+)', (last / f'{last.name}.log').read_text())[1]
    return b''.join(file.read_bytes() for file in scalars), int(processes)


def slim(training: dict) -> dict:
    """The weights in float16 and the names of the classes, in plain Python.

    MMEngine stores the moving averages of an EMAHook as the ``state_dict``.
    """
    state = training['state_dict']  # an OrderedDict that also holds the versions of the modules
    for key, value in state.items():
        if value.is_floating_point():
            state[key] = value.half()
            if not state[key].isfinite().all():
                raise UsageError(f'{key} has values that are not finite in float16: train again')
    given = training['meta']['dataset_meta']
    named = dict(classes=[str(name) for name in given['classes']])
    if given.get('palette') is not None:
        named['palette'] = [[int(value) for value in colour] for colour in given['palette']]
    meta = dict(dataset_meta=named, mmconvneur_version=mmconvneur.__version__)
    return dict(meta=meta, state_dict=state)


def flat_config(meta: dict) -> Config:
    """The config of the training without what belongs to the machine, and with its seed."""
    flat = Config(read_flat(meta['cfg']))
    if flat.get('resume'):
        flat.update(load_from=None, resume=False)
    for key in ('work_dir', 'launcher'):
        flat.pop(key, None)
    if flat.get('load_from') and os.path.isabs(flat.load_from):
        flat.load_from = os.path.basename(flat.load_from)  # the folder is of this machine
    flat.randomness = dict(flat.get('randomness') or {}, seed=meta['seed'])
    read_flat(flat.pretty_text)  # raises where a name in it would break out of its quotes
    return flat


# --------------------------------------------------------------------------------- what is measured
def evaluate(cfg: Config, weights: Path, args: argparse.Namespace) -> tuple[dict, nn.Module]:
    """Metrics of a file of weights, and the model that has them."""
    cfg = copy.deepcopy(cfg)
    cfg.load_from, cfg.resume, cfg.work_dir = str(weights), False, str(weights.parent)
    runner = build_runner(cfg, args, [ProgressBarHook()])
    stored = torch.load(weights, weights_only=True)['state_dict']
    report = compare(runner.model.state_dict(), stored)
    if not report.complete:
        raise UsageError(f'the checkpoint does not belong to the model of the config: {report}')
    metrics = {name: float(value) for name, value in runner.test().items()}
    if not METRICS.keys() & metrics.keys():
        given = ', '.join(metrics) or 'nothing, as for a model that finds nothing'
        raise UsageError(f'test_evaluator gives {given}: a release needs {" or ".join(METRICS)}')
    return metrics, runner.model


@torch.no_grad()
def golden_maps(backbone: nn.Module) -> list[Tensor]:
    """The maps of a fixed image: the same weights give the same ones on every machine."""
    image = torch.linspace(0, 99, 3 * 64 * 96).sin().reshape(1, 3, 64, 96)
    return [feature.clone() for feature in backbone.eval()(image)]


def golden(backbone: nn.Module) -> bytes:
    """The golden maps as a file: map_0, map_1 ... in float32."""
    file = io.BytesIO()
    maps = golden_maps(backbone.cpu())
    np.savez_compressed(file, **{f'map_{i}': map_.numpy() for i, map_ in enumerate(maps)})
    return file.getvalue()


def software() -> dict[str, str]:
    owners = environment.installed(sys.path)
    versions = {name: ' and '.join(map(environment.label, o)) for name, o in owners.items() if o}
    versions['torch'] = torch.__version__  # with the build
    return dict(python=platform.python_version(), mmconvneur=mmconvneur.__version__, **versions)


def hardware(processes: int) -> dict:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return dict(
        cpu=environment.cpu_name(),
        cpu_cores=os.cpu_count(),
        gpus=gpus[:processes],
        processes=processes,
    )


if __name__ == '__main__':
    main()
