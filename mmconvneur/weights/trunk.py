"""The trunk of a ConvNeur, which is a ConvNeXt, and the learned part beside it.

A checkpoint may hold the learned part alone: global branches, fusions, norms of the maps, neck and
heads. The metadata that its state dict carries for the backbone then tells the file of the trunk
and the hash of its tensors, and the trunk is added when the checkpoint is loaded.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, NamedTuple, cast

from torch import Tensor, nn

from ..errors import UsageError
from .layouts import Supplied, recognise
from .reading import read_state_dict

if TYPE_CHECKING:
    from ..models.backbones.base import StagedBackbone

NOT_IN_CONVNEXT = ('.global_branch.', '.fusion.')
TRUNK = 'trunk'  # in the metadata of a backbone
IN_TRUNK = re.compile(r'downsample_layers\.|stages\.\d+\.\d+\.local_branch\.')
LEARNED_PART = 'the checkpoint holds the learned part of a ConvNeur alone,'


class Trunk(NamedTuple):
    """Which trunk a learned part belongs to.

    Attributes:
        sha256: Hash of its tensors, whatever file they come from.
        checkpoint: The file that they came from, as in ``init_cfg``.
        prefix: The prefix of their names there, as in ``init_cfg``.
    """

    sha256: str
    checkpoint: str
    prefix: str | None


def trunk_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a ConvNeur's state dict that a ConvNeXt has too."""
    return {name: value for name, value in state.items() if IN_TRUNK.match(name)}


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and values in float32."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().float().contiguous()
        digest.update(f'{name} {tuple(value.shape)} '.encode())
        digest.update(value.numpy().data)
    return digest.hexdigest()


def read_backbone(checkpoint: str, prefix: str | None = None) -> dict[str, Tensor]:
    """The weights in a file, those alone that are under a prefix where one is given.

    Raises:
        UsageError: As :func:`read_state_dict`; if nothing is under the prefix.
    """
    state = read_state_dict(checkpoint)
    if not prefix:
        return state
    prefix = prefix.rstrip('.') + '.'
    inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if not inside:
        raise UsageError(
            f'checkpoint {checkpoint} has no key that starts with {prefix!r}: leave prefix '
            'out (init_cfg.prefix=None), it is found by looking at the keys'
        )
    return inside


def started(backbone: StagedBackbone, supplied: Supplied) -> tuple[dict[str, Tensor], list[str]]:
    """What starts the backbone, and the names of what the source's layout does not have.

    Where only the backbone has a global branch in a block, the block's layer scale is divided by
    what its fusion starts with. Without any, the source may be a classifier, which has no norms of
    its maps.
    """
    tensors, new = dict(supplied.tensors), []
    for name, block in backbone.named_modules():
        parts = tuple(f'{name}{part}' for part in NOT_IN_CONVNEXT)
        if hasattr(block, 'fusion') and not any(key.startswith(parts) for key in tensors):
            gamma = f'{name}.local_branch.gamma'
            if gamma in tensors:
                tensors[gamma] = tensors[gamma] / block.fusion.start
            new += [key for key in backbone.state_dict() if key.startswith(parts)]
    if supplied.may_lack_norms:
        new += [
            key for key in backbone.state_dict() if key.startswith('norm') and key not in tensors
        ]
    return tensors, new


def describe(backbone: StagedBackbone) -> Trunk:
    """The trunk of a backbone, and the file of its ``init_cfg`` that it comes from.

    Raises:
        UsageError: If it comes from none, so that nothing could complete a learned part.
    """
    sha256 = fingerprint(trunk_of(backbone.state_dict()))
    for cfg in backbone.pretrained_files:
        file = cfg['checkpoint'], cfg.get('prefix')
        if fingerprint(_read_trunk(backbone, *file)) == sha256:
            return Trunk(sha256, *file)
    raise UsageError(
        'the trunk of the backbone does not come from a file, so that a learned part alone could '
        "not be completed: set model.backbone.init_cfg=dict(type='Pretrained', checkpoint=...) or "
        'remove LearnedPartHook'
    )


def take_out(state: MutableMapping[str, Tensor], path: str, trunk: Trunk) -> None:
    """Leave the learned part alone in the state dict of a model whose backbone is at ``path``."""
    prefix = f'{path}.'
    for key in list(state):
        if key.startswith(prefix) and IN_TRUNK.match(key, len(prefix)):
            del state[key]
    vars(state)['_metadata'][path][TRUNK] = trunk._asdict()


def put_back(state: MutableMapping[str, Tensor], model: nn.Module) -> None:
    """Undo :func:`take_out` in the state dict of a model that is built like the trained one.

    Raises:
        UsageError: As :func:`find_trunk`.
    """
    for path, about in vars(state)['_metadata'].items():
        if TRUNK in about:
            backbone = cast('StagedBackbone', model.get_submodule(path))
            trunk = find_trunk(backbone, Trunk(**about.pop(TRUNK)))
            state.update({f'{path}.{name}': value for name, value in trunk.items()})


def find_trunk(backbone: StagedBackbone, wanted: Trunk) -> dict[str, Tensor]:
    """The trunk that a learned part was trained on: the backbone's own, or that of a file.

    The files are those of the backbone's ``init_cfg`` or, without any, the one of the training:
    MMDetection and MMSegmentation drop ``init_cfg`` where they build a model for inference.

    Raises:
        UsageError: If none has the hash, or a file cannot be read.
    """
    own = trunk_of(backbone.state_dict())
    if fingerprint(own) == wanted.sha256:
        return own
    files = [(cfg['checkpoint'], cfg.get('prefix')) for cfg in backbone.pretrained_files]
    files = files or [(wanted.checkpoint, wanted.prefix)]
    for file in files:
        tensors = _read_trunk(backbone, *file)
        if fingerprint(tensors) == wanted.sha256:
            return tensors
    raise UsageError(
        f'{LEARNED_PART} and {files[0][0]} is not the trunk it was trained on, '
        f'{wanted.checkpoint} (sha256 of the tensors {wanted.sha256[:8]}): give that as '
        'model.backbone.init_cfg.checkpoint, and the config of the training'
    )


def _read_trunk(backbone: StagedBackbone, checkpoint: str, prefix: str | None) -> dict[str, Tensor]:
    try:
        supplied = recognise(read_backbone(checkpoint, prefix))
    except UsageError as error:
        raise UsageError(
            f'{LEARNED_PART} and its trunk cannot be read: {error}; a trunk elsewhere is given as '
            'model.backbone.init_cfg.checkpoint'
        ) from None
    built = backbone.state_dict()
    tensors, _ = started(backbone, supplied)
    return {name: value for name, value in trunk_of(tensors).items() if name in built}
