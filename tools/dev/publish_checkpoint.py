"""Releases a trained model: python tools/dev/publish_checkpoint.py CONFIG work_dirs/NAME/CHECKPOINT

Writes into checkpoints/, under the name NAME-<first 8 digits of the sha256 of the weights>:

    .pth       the weights (those of the moving average, where there is one) in float16
    .py        the flat config of the training: tools/train.py repeats it
    .log.json  its log, one JSON object per line
    .npz       the backbone's maps of a fixed image (model_index.golden_maps)
    .json      seed, command, versions, hardware, and the metrics of the stored weights

and brings configs/metafile.yml and the table in README.md up to date. A release of the same name is
replaced. Run it in the root of the repository, with the data of the config's test split, on the
machine and in the environment of the training: it is these that it writes down.
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
from torch import nn

import mmconvneur
from mmconvneur.apis.model_zoo import sha256
from mmconvneur.engine.hooks import ProgressBarHook
from mmconvneur.errors import UsageError
from mmconvneur.utils.arguments import add_trust, one_line_errors
from mmconvneur.utils.configs import check_data, datasets, find_config, load_config
from mmconvneur.utils.files import write_atomically
from mmconvneur.utils.runner import build_runner
from mmconvneur.weights.reading import locate, read_checkpoint
from mmconvneur.weights.report import compare
from model_index import METAFILE, golden_maps, release

DATASETS = {'coco': 'COCO', 'ADEChallengeData2016': 'ADE20K', 'sample': 'Sample data'}
METRICS = {  # what the evaluators return: task, name of the metric, factor to percent
    'coco/bbox_mAP': ('Object Detection', 'box AP', 100),
    'coco/segm_mAP': ('Instance Segmentation', 'mask AP', 100),
    'mIoU': ('Semantic Segmentation', 'mIoU', 1),
}


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0])
    parser.add_argument('config', help='path of the config, or the name of a shipped one')
    parser.add_argument('checkpoint', help='what tools/train.py wrote, in its work folder')
    parser.add_argument('--name', help='short name of the model; default: that of the config')
    add_trust(parser)
    parser.set_defaults(cfg_options={}, launcher='none', local_rank=0)
    args = parser.parse_args()
    cfg = load_config(args)
    config = path_of_config(args.config)
    name = args.name or config.stem
    if not re.fullmatch(r'[\w-]+', name):
        raise UsageError(f'--name {name}: use letters, digits, _ and - alone')
    check_data(cfg, 'test')
    checkpoint = locate(args.checkpoint)
    training = read_training(checkpoint, args.trust_checkpoint)
    log, processes = read_log(checkpoint.parent)
    meta, flat = training['meta'], flat_config(training['meta'])
    check_same(cfg, flat)

    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / 'weights.pth'
        torch.save(slim(training), weights)
        metrics, model = evaluate(cfg, weights, args)
        digest, content = sha256(weights), weights.read_bytes()
    stem = f'checkpoints/{name}-{digest[:8]}'
    by_epoch = 'max_epochs' in flat.train_cfg
    record = dict(
        name=name,
        config=str(config),
        sha256=digest,
        command=training_command(f'{stem}.py', processes),
        seed=meta['seed'],
        length={'Epochs': meta['epoch']} if by_epoch else {'Iterations': meta['iter']},
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        metrics=metrics,
        software=software(),
        hardware=hardware(processes),
    )
    files = {
        '.pth': content,
        '.py': flat.pretty_text.encode(),
        '.log.json': log,
        '.npz': golden(model.backbone),
        '.json': json.dumps(record, indent=1).encode(),
    }
    for suffix, data in files.items():
        write_atomically(stem + suffix, data)
    release(Path.cwd(), index_entry(record, cfg, f'{stem}.pth', len(content)))
    print(f'{stem}.pth: {len(content) / 1e6:.1f} MB, {metrics}')


def path_of_config(name: str) -> Path:
    """A config's path in the repository, which has to be the working directory."""
    if not Path(METAFILE).is_file():
        raise UsageError(f'{METAFILE} does not exist: run this in the root of the repository')
    path, folder = find_config(name).resolve(), Path('configs')
    if folder.resolve() not in path.parents:
        raise UsageError(f'{name} is not of this repository: put it into {folder}/')
    return folder / path.relative_to(folder.resolve())


# ----------------------------------------------------------------------------------- what is given
def read_training(checkpoint: Path, trust: bool) -> dict:
    """A training checkpoint, with all that a release needs of it."""
    training = read_checkpoint(checkpoint, trust)
    missing = {'cfg', 'seed', 'dataset_meta', 'epoch', 'iter'} - set(training.get('meta', {}))
    if missing or 'state_dict' not in training:
        raise UsageError(
            f'checkpoint {checkpoint} is not of a training (it has no '
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
    return dict(
        meta=dict(dataset_meta=named, mmconvneur_version=mmconvneur.__version__), state_dict=state
    )


def check_same(cfg: Config, training: Config) -> None:
    """Raise ``UsageError`` where the config is not the one of the training."""
    for key in ('model', 'test_dataloader', 'test_evaluator'):
        if cfg.get(key) != training.get(key):
            raise UsageError(
                f'{key} of the config is not that of the training of the checkpoint: '
                'give the config it was trained with'
            )


def flat_config(meta: dict) -> Config:
    """The config of the training without what belongs to the machine, and with its seed."""
    flat = Config.fromstring(meta['cfg'], '.py')
    if flat.get('resume'):
        flat.update(load_from=None, resume=False)
    for key in ('work_dir', 'launcher'):
        flat.pop(key, None)
    flat.randomness = dict(flat.get('randomness') or {}, seed=meta['seed'])
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
        raise UsageError(f'the checkpoint is not of the model of the config: {report}')
    metrics = {name: float(value) for name, value in runner.test().items()}
    if not METRICS.keys() & metrics.keys():
        given = ', '.join(metrics) or 'nothing, as for a model that finds nothing'
        raise UsageError(f'test_evaluator gives {given}: a release needs {" or ".join(METRICS)}')
    return metrics, runner.model


def golden(backbone: nn.Module) -> bytes:
    """The golden maps as a file: map_0, map_1 ... in float32."""
    buffer = io.BytesIO()
    maps = golden_maps(backbone.cpu())
    np.savez_compressed(buffer, **{f'map_{i}': feature.numpy() for i, feature in enumerate(maps)})
    return buffer.getvalue()


def training_command(flat_config: str, processes: int) -> str:
    launch = 'python' if processes == 1 else f'torchrun --nproc_per_node {processes}'
    launcher = '' if processes == 1 else ' --launcher pytorch'
    return f'{launch} tools/train.py {flat_config}{launcher}'


def software() -> dict[str, str]:
    owners = environment.installed(sys.path)
    versions = {name: ' and '.join(map(environment.label, o)) for name, o in owners.items() if o}
    versions |= dict(torch=torch.__version__)  # with the build
    return dict(python=platform.python_version(), mmconvneur=mmconvneur.__version__, **versions)


def hardware(processes: int) -> dict:
    info = Path('/proc/cpuinfo')
    named = re.search(r'model name\s*: (.*)', info.read_text()) if info.is_file() else None
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return dict(
        cpu=named[1] if named else platform.processor() or platform.machine(),
        cpu_cores=os.cpu_count(),
        gpus=gpus[:processes],
        processes=processes,
    )


def index_entry(record: dict, cfg: Config, weights: str, size: int) -> dict:
    """What the index says of a release, in OpenMMLab's format."""
    root = Path(next(datasets(cfg.test_dataloader)).data_root).name
    data, used = DATASETS.get(root, root), record['hardware']
    cpu, gpus = f'{used["cpu_cores"]} CPU cores ({used["cpu"]})', used['gpus']
    return {
        'Name': record['name'],
        'In Collection': 'ConvNeur',
        'Config': record['config'],
        'Metadata': {
            'Training Data': data,
            **record['length'],
            'Training Resources': f'{len(gpus)}x {gpus[0]}' if gpus else cpu,
            'Parameters': record['parameters'],
            'File Size (MB)': round(size / 1e6, 1),
            'SHA256': record['sha256'],
        },
        'Results': [
            {
                'Task': task,
                'Dataset': data,
                'Metrics': {metric: round(factor * record['metrics'][key], 4)},
            }
            for key, (task, metric, factor) in METRICS.items()
            if key in record['metrics']
        ],
        'Weights': weights,
    }


if __name__ == '__main__':
    main()
