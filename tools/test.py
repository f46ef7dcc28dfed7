"""Evaluates a checkpoint: python tools/test.py configs/mask_rcnn_convneur_t_coco.py CHECKPOINT"""

from __future__ import annotations

from mmconvneur.utils import environment

environment.exit_unless_good()  # before the imports below can fail

import os
from copy import deepcopy
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmconvneur.apis.model_zoo import find_weights
from mmconvneur.checks.look import hand_over, look
from mmconvneur.engine.hooks import LoadReportHook, ProgressBarHook
from mmconvneur.engine.outputs import LabelMapHook, PictureHook
from mmconvneur.errors import UsageError
from mmconvneur.utils.arguments import common_parser, one_line_errors, parse
from mmconvneur.utils.configs import (
    FAMILIES,
    datasets,
    is_subclass,
    load_config,
    resolve,
    scope_of,
)
from mmconvneur.utils.runner import build_runner, set_work_dir


@one_line_errors
def main() -> None:
    parser = common_parser(__doc__.split(':')[0])
    parser.add_argument('checkpoint', help='path, URL, or the name of a released model')
    parser.add_argument(
        '--out', help='keep the predictions: a folder (segmentation) or a .pkl file (all others)'
    )
    parser.add_argument('--show-dir', help='folder for pictures: ground truth beside predictions')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    args = parse(parser)
    cfg = load_config(args)
    set_work_dir(cfg, args)
    cfg.load_from, cfg.resume = str(find_weights(args.checkpoint)), False
    is_file = args.out and cfg.default_scope != 'mmseg'
    if is_file and not args.out.endswith(('.pkl', '.pickle')):
        task = FAMILIES[cfg.default_scope]
        raise UsageError(f'--out {args.out}: for {task} give the name of a .pkl file')
    run = look(
        cfg,
        args,
        'test',
        to_folders={
            '--work-dir': cfg.work_dir,
            '--show-dir': args.show_dir,
            '--out': None if is_file else args.out,
        },
        to_files={'--out': args.out if is_file else None},
    )
    hooks = [LoadReportHook(complete=True), ProgressBarHook()]
    if args.show_dir:
        hooks.append(PictureHook(args.show_dir, **drawing_options(cfg)))
    if args.out and not is_file:
        hooks.append(LabelMapHook(args.out))
    if args.tta:
        augment(cfg)
    runner = build_runner(cfg, args, hooks)
    if not args.tta:  # which has a pipeline of its own
        hand_over(run, runner)
    if is_file:
        test_and_dump(runner, Path(args.out), cfg.default_scope)
    else:
        runner.test()


def drawing_options(cfg: Config) -> dict:
    """What the config's own drawing hook would do."""
    hook = (cfg.get('default_hooks') or {}).get('visualization') or {}
    options = dict(backend_args=hook.get('backend_args'))
    if cfg.default_scope == 'mmdet':
        options.update(pred_score_thr=hook.get('score_thr', 0.3))
    return options


def augment(cfg: Config) -> None:
    """Wrap the model for test-time augmentation: as the config says, else a horizontal flip."""
    if 'tta_model' not in cfg:
        if cfg.default_scope == 'mmdet':
            import mmconvneur.evaluation.tta  # noqa: F401  registers InstanceTTAModel; needs mmdet

            nms = dict(type='nms', iou_threshold=0.5)
            cfg.tta_model = dict(type='InstanceTTAModel', tta_cfg=dict(nms=nms, max_per_img=100))
        else:
            averages = dict(mmseg='SegTTAModel', mmpretrain='AverageClsScoreTTA')
            cfg.tta_model = dict(type=averages[cfg.default_scope])
    for dataset in datasets(cfg.test_dataloader):
        dataset.pipeline = cfg.get('tta_pipeline') or flipped(dataset.pipeline)
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    # An EMAHook does not know the wrapper; the weights of a checkpoint are the averages.
    hooks = cfg.get('custom_hooks') or ()
    cfg.custom_hooks = [hook for hook in hooks if not is_subclass(kind_of(cfg, hook), EMAHook)]


def kind_of(cfg: Config, hook: dict | Hook) -> object | None:
    return resolve(HOOKS, hook['type'], scope_of(cfg)) if isinstance(hook, dict) else type(hook)


def flipped(pipeline: list[dict]) -> list[dict]:
    """A test pipeline that gives an image and its mirror image."""
    *steps, pack = deepcopy(pipeline)
    pack.pop('meta_keys', None)  # the defaults hold the flip
    flips = [dict(type='RandomFlip', prob=prob) for prob in (0.0, 1.0)]
    return [*steps, dict(type='TestTimeAug', transforms=[flips, [pack]])]


def test_and_dump(runner: Runner, out: Path, scope: str) -> None:
    """Evaluate, and keep the predictions; masks of detections are run-length encoded."""
    if scope == 'mmdet':
        from mmdet.evaluation import DumpDetResults as DumpResults
    else:
        from mmengine.evaluator import DumpResults

    partial = out.with_suffix('.partial.pkl')
    dump = DumpResults(str(partial))
    runner.test_evaluator.metrics.append(dump)
    try:
        runner.test()
        if hasattr(runner.test_evaluator, 'dataset_prefixes'):  # it leaves out further metrics
            dump.evaluate(len(runner.test_dataloader.dataset))
        if runner.rank == 0:
            os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)


if __name__ == '__main__':
    main()
