from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmconvneur import ConvNeur

WORLD_SIZE = 2


class Segmentor(nn.Module):
    """A backbone and a linear head on its last map; the output is a loss per image."""

    def __init__(self, mixer: str, frozen_trunk: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        arch = dict(channels=(16, 24), depths=(2, 1))
        self.backbone = ConvNeur(
            arch=arch,
            out_indices=(0, 1),
            global_mixer=dict(type=mixer),
            frozen_trunk=frozen_trunk,
        )
        self.head = nn.ModuleList([nn.Linear(16, 1), nn.Linear(24, 1)])
        for parameter in self.parameters():
            if parameter.ndim > 1:  # the zero-initialised layers too
                nn.init.normal_(parameter, std=0.2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        maps = self.backbone(x)
        return sum(
            head(x.permute(0, 2, 3, 1)).square().mean((1, 2, 3))
            for head, x in zip(self.head, maps, strict=True)
        )


def images() -> Tensor:
    return torch.randn(4, 3, 37, 41, generator=torch.manual_seed(5), dtype=torch.float64)


def train_twice(rank: int, address: str, folder: str, *options) -> None:
    """Two steps, because DDP complains of unused parameters in the second one."""
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=address, rank=rank, world_size=WORLD_SIZE)
    model = DistributedDataParallel(Segmentor(*options), find_unused_parameters=False)
    mine = images().chunk(WORLD_SIZE)[rank]
    for _ in range(2):
        model.zero_grad()
        model(mine).mean().backward()
    gradients = {name: p.grad for name, p in model.module.named_parameters() if p.requires_grad}
    torch.save(gradients, os.path.join(folder, f'{rank}.pth'))
    # Gloo's thread needs the GIL to let go of the last all-reduce, and the end of the group, which
    # holds the GIL, waits for that thread. Waiting here lets it have it.
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(
    ('mixer', 'frozen_trunk'),
    [('NeuralMemory', False), ('NeuralMemory', True), ('PublishedNeuralMemory', False)],
)
def test_two_processes_have_the_gradients_of_one(mixer, frozen_trunk, tmp_path):
    address = f'file://{tmp_path}/rendezvous'
    mp.spawn(train_twice, (address, str(tmp_path), mixer, frozen_trunk), nprocs=WORLD_SIZE)
    model = Segmentor(mixer, frozen_trunk)
    model(images()).mean().backward()
    for rank in range(WORLD_SIZE):
        gradients = torch.load(tmp_path / f'{rank}.pth')
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                assert name not in gradients
                continue
            # One chunk per map: the published form writes after all have read.
            unread = mixer == 'PublishedNeuralMemory' and '.rates.' in name
            assert (parameter.grad.abs().sum() > 0) == (not unread), name
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-10, atol=1e-12)
