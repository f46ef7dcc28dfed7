"""Evaluates a checkpoint: python tools/test.py configs/mask_rcnn_convneur_t_coco.py CHECKPOINT"""

from __future__ import annotations

from mmconvneur.utils import environment

environment.exit_unless_good()  # before the imports below can fail

import os
from copy import deepcopy
from pathlib import Path

from mmengine.config import Config, ConfigDict

from mmconvneur.apis.model_zoo import find_weights
from mmconvneur.engine.hooks import LoadReportHook, PredictionsHook, ProgressBarHook
from mmconvneur.errors import UsageError
from mmconvneur.utils.arguments import common_parser, one_line_errors, parse
from mmconvneur.utils.configs import check_data, datasets, family, load_config
from mmconvneur.utils.runner import build_runner, set_work_dir

DRAWING = {  # hook and visualizer
    'mmdet': ('mmdet.DetVisualizationHook', 'mmdet.DetLocalVisualizer'),
    'mmseg': ('mmseg.SegVisualizationHook', 'mmseg.SegLocalVisualizer'),
}


@one_line_errors
def main() -> None:
    parser = common_parser(__doc__.split(':')[0])
    parser.add_argument('checkpoint', help='path, URL, or the name of a released model')
    parser.add_argument(
        '--out', help='keep the predictions: a .pkl file (detection) or a folder (segmentation)'
    )
    parser.add_argument('--show-dir', help='folder for pictures: ground truth beside predictions')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    args = parse(parser)
    cfg = load_config(args)
    set_work_dir(cfg, args)
    check_data(cfg, 'test')
    cfg.load_from, cfg.resume = str(find_weights(args.checkpoint)), False
    scope = family(cfg)
    if scope is None and (args.out or args.show_dir or args.tta):
        raise UsageError('--out, --show-dir and --tta need a model of mmdet or of mmseg')
    if args.out and scope == 'mmdet' and not args.out.endswith(('.pkl', '.pickle')):
        raise UsageError(f'--out {args.out}: for detection give the name of a .pkl file')
    if args.show_dir:
        show(cfg, scope, args.show_dir)
    if args.tta:
        augment(cfg, scope)
    hooks = [LoadReportHook(complete=True), ProgressBarHook()]
    if not args.out:
        build_runner(cfg, args, hooks).test()
    elif scope == 'mmdet':
        from mmdet.evaluation import DumpDetResults

        # With run-length encoded masks. It takes no other suffix.
        partial = Path(args.out).with_suffix('.partial.pkl')
        runner = build_runner(cfg, args, [*hooks, PredictionsHook(DumpDetResults(str(partial)))])
        runner.test()
        if runner.rank == 0:
            os.replace(partial, args.out)
    else:
        from mmseg.evaluation import IoUMetric

        writer = PredictionsHook(IoUMetric(output_dir=args.out, format_only=True))
        build_runner(cfg, args, [*hooks, writer]).test()


def show(cfg: Config, scope: str, folder: str) -> None:
    """Switch on the drawing hook of mmdet or mmseg."""
    hook, visualizer = DRAWING[scope]
    cfg.default_hooks = cfg.get('default_hooks') or {}
    hook = cfg.default_hooks.get('visualization') or dict(type=hook)
    cfg.visualizer = cfg.get('visualizer') or dict(type=visualizer)
    cfg.default_hooks.visualization = dict(hook, draw=True)
    if scope == 'mmdet':
        # A relative one would go under the work folder.
        cfg.default_hooks.visualization.test_out_dir = os.path.abspath(folder)
    else:
        # mmseg's hook leaves the files to the backend, which appends a folder of its own.
        cfg.visualizer.save_dir = folder
        cfg.visualizer.vis_backends = [dict(type='LocalVisBackend', img_save_dir='..')]


def augment(cfg: Config, scope: str) -> None:
    """Wrap the model for test-time augmentation: as the config says, else a horizontal flip."""
    if 'tta_model' not in cfg:
        if scope == 'mmdet':
            import mmconvneur.evaluation.tta  # noqa: F401  registers InstanceTTAModel; needs mmdet

            nms = dict(type='nms', iou_threshold=0.5)
            cfg.tta_model = dict(type='InstanceTTAModel', tta_cfg=dict(nms=nms, max_per_img=100))
        else:
            cfg.tta_model = dict(type='mmseg.SegTTAModel')
    for dataset in datasets(cfg.test_dataloader):
        dataset.pipeline = cfg.get('tta_pipeline') or flipped(dataset.pipeline, scope)
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def flipped(pipeline: list[dict], scope: str) -> list[dict]:
    """A test pipeline that gives an image and its mirror image."""
    *steps, pack = deepcopy(pipeline)
    pack.pop('meta_keys', None)  # the defaults hold the flip
    flips = [dict(type=f'{scope}.RandomFlip', prob=prob) for prob in (0.0, 1.0)]
    return [*steps, dict(type='TestTimeAug', transforms=[flips, [pack]])]


if __name__ == '__main__':
    main()
