"""Writes a model as an ONNX file: python tools/export.py CONFIG CHECKPOINT --out model.onnx"""

from __future__ import annotations

from mmconvneur.utils import environment

environment.exit_unless_good()  # before the imports below can fail

from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from torch import Tensor, nn

import mmconvneur
from mmconvneur.apis.export import NETWORKS, require, to_onnx
from mmconvneur.apis.inference import load_model, preprocess, read_image
from mmconvneur.apis.model_zoo import find_weights
from mmconvneur.checks.folders import check_file
from mmconvneur.errors import UsageError
from mmconvneur.utils.arguments import add_trust, config_parser, one_line_errors, parse
from mmconvneur.utils.configs import FAMILIES, check_data, datasets, load_config
from mmconvneur.utils.files import write_atomically
from mmconvneur.utils.timing import Spread, race, ratios, seconds

TOLERANCE = 1e-4  # of the largest value of a map, or of the pixels of a label map
ROUNDS = 11
CPU = torch.device('cpu')


@one_line_errors
def main() -> None:
    parser = config_parser(
        'Write backbone and neck of a detector, or a whole segmentor, as an ONNX file.'
    )
    parser.add_argument('checkpoint', help='path, URL, or the name of a released model')
    parser.add_argument('--out', type=Path, required=True, help='the .onnx file to write')
    parser.add_argument(
        '--image',
        type=Path,
        help='image for the comparison with PyTorch; default: the first test image',
    )
    parser.add_argument('--check', action='store_true', help='also time the file beside PyTorch')
    add_trust(parser)
    args = parse(parser)
    for package in ('onnx', 'onnxruntime'):
        require(package)
    if args.out.suffix != '.onnx':
        raise UsageError(f'--out {args.out}: give the name of a .onnx file')
    for mistake in check_file('--out', args.out):
        raise UsageError(mistake.text)
    cfg, weights = load_config(args), find_weights(args.checkpoint)
    scope = cfg.get('default_scope')
    if scope not in NETWORKS or 'model' not in cfg:
        tasks = ' or '.join(FAMILIES[name] for name in NETWORKS)
        what = 'has no model'
        if 'model' in cfg:
            what = f'is for {FAMILIES.get(scope, "another package")}'
        raise UsageError(f'{args.config} {what}: give a config for {tasks}')
    path = args.image or first_image(cfg)
    read_image(path)
    model = load_model(cfg, str(weights)).to(CPU)
    network = NETWORKS[scope](model).eval()
    image = preprocess(model, cfg, path)[0]
    with torch.no_grad():
        expected = network(image)
    content = to_onnx(network, image, metadata(model, cfg, args.config))
    feed = {'image': image.numpy()}
    try:
        session = start(content)
        found = session.run(None, feed)
    except Exception as error:  # onnxruntime's own kinds have no common base
        raise UsageError(f'onnxruntime cannot run this network: {error}') from error
    compare(found, expected, f'{path}, {image.size(2)} x {image.size(3)} pixels')
    write_atomically(args.out, content)
    print(f'{args.out}: {len(content) / 1e6:.1f} MB, opset {opset(content)}')
    for kind, nodes in (('input', session.get_inputs()), ('output', session.get_outputs())):
        for node in nodes:
            print(f'  {kind} {node.name}: {node.type}, {tuple(node.shape)}')
    if args.check:
        time(session, feed, network, image)


def first_image(cfg: Config) -> Path:
    """The first image of the data that the config tests on."""
    try:
        check_data(cfg, 'test')
    except UsageError as error:
        raise UsageError(f'{error}; or name any picture with --image') from None
    init_default_scope(cfg.default_scope)
    return Path(DATASETS.build(next(datasets(cfg.test_dataloader))).get_data_info(0)['img_path'])


def metadata(model: nn.Module, cfg: Config, name: str) -> dict[str, object]:
    """What is needed to prepare an image for the file, and to read what it gives."""
    prepare = cfg.model.get('data_preprocessor') or {}
    return dict(
        classes=list(model.dataset_meta['classes']),
        mean=list(prepare.get('mean') or [0.0] * 3),
        std=list(prepare.get('std') or [1.0] * 3),
        channels='RGB' if prepare.get('bgr_to_rgb') else 'BGR',
        config=Path(name).stem,
        mmconvneur=mmconvneur.__version__,
    )


def start(content: bytes) -> object:
    """An onnxruntime session on the CPU with as many threads as PyTorch takes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])


def compare(found: list[np.ndarray], expected: tuple[Tensor, ...], what: str) -> None:
    """Print how far the outputs of the file are from PyTorch's.

    Raises:
        UsageError: If that is more than the tolerance.
    """
    if expected[0].is_floating_point():
        kind = 'difference over the largest value of its map'
        errors = [
            (torch.from_numpy(a) - e).abs().max() / e.abs().max()
            for a, e in zip(found, expected, strict=True)
        ]
    else:
        kind = 'share of pixels with another label'
        errors = [(torch.from_numpy(found[0]) != expected[0]).float().mean()]
    worst = max(map(float, errors))
    line = f'{what}: {kind} {worst:.1e}, tolerance {TOLERANCE:.0e}'
    if not worst <= TOLERANCE:
        raise UsageError(
            f'onnxruntime and PyTorch differ, so nothing was written: {line}; on a picture of one '
            'colour, where norms magnify rounding, they may: name another with --image'
        )
    print(line)


def opset(content: bytes) -> int:
    import onnx

    domains = onnx.load_from_string(content).opset_import
    return next(domain.version for domain in domains if not domain.domain)


def time(session: object, feed: dict[str, np.ndarray], network: nn.Module, image: Tensor) -> None:
    """Print the time of the file beside that of eager PyTorch, in rounds that run both."""
    steps = {
        'PyTorch': torch.no_grad()(lambda: network(image)),
        'onnxruntime': lambda: session.run(None, feed),
    }
    race(steps, 2, lambda step: step())  # to warm up
    times = race(steps, ROUNDS, lambda step: seconds(step, CPU))
    for name, values in times.items():
        print(f'  {name}: {1e3 * Spread.of(values).median:.1f} ms')
    share = Spread.of(ratios(times['onnxruntime'], times['PyTorch']))
    print(
        f'  onnxruntime / PyTorch: {share.median:.2f} ({share.q1:.2f} to {share.q3:.2f}), '
        f'{ROUNDS} rounds, {torch.get_num_threads()} threads, {environment.cpu_name()}'
    )


if __name__ == '__main__':
    main()
