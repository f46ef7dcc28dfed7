"""Networks as ONNX files that take any batch, height and width."""

from __future__ import annotations

import inspect
import io
import json
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UsageError
from ..models.mixers import ChunkedNeuralMemory

EXAMPLE = (160, 224)  # H, W of what the exporter sees


class FeatureMaps(nn.Module):
    """Backbone and neck of a detector: an image ``(B, 3, H, W)`` -> one map per level."""

    def __init__(self, detector: Any) -> None:  # a model of mmdet
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.detector.extract_feat(image))


class LabelMap(nn.Module):
    """A whole segmentor: an image ``(B, 3, H, W)`` -> the class of every pixel, ``(B, H, W)``.

    The image is looked at as a whole, also where the config slides a window over it.
    """

    def __init__(self, segmentor: Any) -> None:  # a model of mmseg
        super().__init__()
        self.segmentor = segmentor

    def forward(self, image: Tensor) -> tuple[Tensor]:
        shape = dict(img_shape=image.shape[2:])
        logits = self.segmentor.encode_decode(image, [shape])  # (B, classes, H, W)
        if logits.size(1) == 1:  # of two classes, the second alone
            return ((logits.sigmoid() > self.segmentor.decode_head.threshold).squeeze(1).long(),)
        return (logits.argmax(1),)


NETWORKS = dict(mmdet=FeatureMaps, mmseg=LabelMap)


def adaptive_avg_pool2d(x: Tensor, size: int | tuple[int | None, int | None]) -> Tensor:
    r"""PyTorch's function of this name as matrix products, which ONNX has for every image size.

    Cell i of n on a side of S pixels is the mean of the pixels j with
    :math:`\lfloor iS/n \rfloor \le j < \lceil (i+1)S/n \rceil`.
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    if rows is not None:
        x = cells(x, x.shape[2], rows) @ x
    return x if columns is None else x @ cells(x, x.shape[3], columns).transpose(0, 1)


def cells(x: Tensor, side: int, number: int) -> Tensor:
    """The weight of every pixel of a side in every cell, ``(number, side)``."""
    cell, pixel = torch.arange(number)[:, None], torch.arange(side)
    inside = (pixel >= cell * side // number) & (pixel * number < (cell + 1) * side)
    inside = inside.to(x)
    return inside / inside.sum(1, keepdim=True)


@torch.no_grad()
def to_onnx(network: nn.Module, image: Tensor, metadata: Mapping[str, object]) -> bytes:
    """The ONNX file of one of ``NETWORKS``, with dynamic batch, height and width.

    Its input is ``image``; its outputs are ``map_0``, ``map_1``, ..., or ``labels``.

    Args:
        network: In evaluation mode, on the CPU.
        image: What the network is made for, ``(1, 3, H, W)``.
        metadata: Name -> text, or what JSON can say.

    Raises:
        UsageError: If onnx is not installed, or the exporter cannot express the network.
    """
    require('onnx')
    import onnx

    for module in network.modules():
        if isinstance(module, ChunkedNeuralMemory):
            raise UsageError(
                f'{type(module).__name__} takes a step per chunk, more for a larger image, which a '
                'file for every size cannot hold: export NeuralMemory'
            )
    image = F.interpolate(image, EXAMPLE).repeat(2, 1, 1, 1)
    axes = {'image': {0: 'batch', 2: 'height', 3: 'width'}}
    if isinstance(network, FeatureMaps):
        for i in range(len(network(image))):
            axes[f'map_{i}'] = {0: 'batch', 2: f'height_{i}', 3: f'width_{i}'}
    else:
        axes['labels'] = {0: 'batch', 1: 'height', 2: 'width'}
    _, *outputs = axes
    file = io.BytesIO()
    options: dict[str, Any] = dict(
        f=file,
        input_names=['image'],
        output_names=outputs,
        dynamic_axes=axes,
        # Otherwise the exporter merges equal weights, and loses some: those of untrained memories.
        keep_initializers_as_inputs=True,
    )
    if 'dynamo' in inspect.signature(torch.onnx.export).parameters:  # PyTorch 2.5 or newer
        # Tracing takes seconds where the other exporter takes a minute, and gives the same values.
        options['dynamo'] = False
    pooling = mock.patch.object(F, 'adaptive_avg_pool2d', adaptive_avg_pool2d)
    with pooling, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of tracing; the file is compared with the network
        try:
            torch.onnx.export(network, (image,), **options)
        except RuntimeError as error:
            raise UsageError(f'PyTorch cannot export this network to ONNX: {error}') from error
    model = onnx.load_from_string(file.getvalue())
    del model.graph.input[1:]  # the weights
    for name, value in metadata.items():
        text = value if isinstance(value, str) else json.dumps(value)
        model.metadata_props.add(key=name, value=text)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def require(package: str) -> None:
    """Raise ``UsageError`` unless a package that only export needs is installed."""
    if find_spec(package) is None:
        raise UsageError(f'export to ONNX needs {package}: pip install onnx onnxruntime')
