"""Spatial Bias: maps of global context from a small grid, without attention.

Source: "Spatial Bias for Attention-free Non-local Neural Networks" (arXiv 2302.12505).
"""

from __future__ import annotations

from collections.abc import Sequence

from mmcv.cnn import build_norm_layer
from torch import Tensor, nn
from torch.nn import functional as F

from ...registry import MIXERS
from .base import GlobalMixer, on_valid_part

GRID = 10  # cells to a side, whatever the size of the image
NUM_REDUCED, NUM_BIASES = 5, 3
BATCH_NORM = dict(type='BN')


class SpatialBiasMaps(nn.Module):
    """Three maps in which every pixel depends on the whole image.

        r = avgpool_{10x10}(ReLU(BN(W a))),   W: C -> 5 maps
        bias = upsample(conv1d(r)): the 100 cells are the channels of a convolution 100 -> 100 whose
        kernel of 3 slides over the 5 maps, so 3 are left

    Args:
        dim: Channels C.
        norm_cfg: The norm of the 5 maps.
    """

    def __init__(self, dim: int, norm_cfg: dict = BATCH_NORM) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(dim, NUM_REDUCED, 1, bias=False)
        self.norm = build_norm_layer(norm_cfg, NUM_REDUCED)[1]
        self.mix = nn.Conv1d(GRID**2, GRID**2, NUM_REDUCED - NUM_BIASES + 1)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """``(B, C, H, W) -> (B, 3, *size)``, any H and W, also smaller than the grid."""
        return self.spread(self.reduced(x), size)

    def reduced(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """ReLU(BN(W x)), ``(B, 5, H, W)``; with a mask the norm takes its statistics from valid
        pixels only."""
        # Five maps are cheap to copy; of a channels_last norm torch.export would fix the width.
        maps = self.reduce(x).contiguous()
        if mask is None:
            return self.norm(maps).relu()
        valid = mask.squeeze(1).bool()  # (B, H, W)
        pixels = maps.permute(0, 2, 3, 1)[valid]  # (number of valid pixels, 5)
        normed = self.norm(pixels.T[None, ..., None])[0, ..., 0].T.relu()
        filled = normed.new_zeros(*valid.shape, NUM_REDUCED).index_put((valid,), normed)
        return filled.permute(0, 3, 1, 2)

    def spread(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        """Among the cells of the grid and back to pixels, ``(B, 5, H, W) -> (B, 3, *size)``."""
        cells = F.adaptive_avg_pool2d(maps, GRID).flatten(2)  # (B, 5, 100)
        cells = self.mix(cells.transpose(1, 2)).transpose(1, 2)  # (B, 3, 100)
        grid = cells.unflatten(2, (GRID, GRID))
        return F.interpolate(grid, size, mode='bilinear', align_corners=False)


@MIXERS.register_module()
class SpatialBias(GlobalMixer):
    """G = W_out bias(x), with the three maps of :class:`SpatialBiasMaps`.

    The projection W_out from 3 to C channels, which starts at zero, is this project's: the paper
    concatenates the maps inside a ResNet's bottleneck (:class:`SpatialBiasResNet`). In training the
    batch norm makes an image depend on its batch-mates, as every batch norm does.

    Args:
        dim: Channels C of the block.
        norm_cfg: The norm of the 5 maps, e.g. ``dict(type='SyncBN')``.

    Raises:
        UsageError: In ``forward``, as :func:`on_valid_part`.
    """

    def __init__(self, dim: int, norm_cfg: dict = BATCH_NORM) -> None:
        super().__init__(NUM_BIASES, dim)
        self.bias = SpatialBiasMaps(dim, norm_cfg)
        self.reset_parameters()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """As :meth:`GlobalMixer.forward`: the grid lies over the valid part of each image."""
        maps = self.bias.reduced(x, mask)
        biases = on_valid_part(lambda part: self.bias.spread(part, part.shape[-2:]), maps, mask)
        return self.project_out(biases)
