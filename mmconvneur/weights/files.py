"""Locations of checkpoint files: paths, URLs and lists of URLs, downloaded whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse

import mmengine
import torch
from mmengine.dist import is_main_process
from mmengine.runner.checkpoint import get_deprecated_model_names, get_external_models

from ..errors import UsageError, check_choice
from .containers import INDEX, SAFETENSORS, damaged, is_checkpoint, is_whole

# As torch.hub and OpenMMLab name files; a date is no hash.
HASH_IN_NAME = re.compile(r'-(?!20\d{6}\.)([0-9a-f]{8,64})\.\w+$')
SCHEMES = ('http://', 'https://')


def resolve(source: str) -> str:
    """The URL of ``torchvision://NAME`` or ``open-mmlab://NAME``; any other source as it is.

    MMEngine carries both lists. Torchvision itself is not needed.

    Raises:
        UsageError: For an unknown name.
    """
    scheme, separator, name = source.partition('://')
    if scheme not in LISTS or not separator:
        return source
    urls = LISTS[scheme]()
    name = get_deprecated_model_names().get(name, name)
    check_choice(f'model of {scheme}://', name, urls)
    return urls[name]


def _torchvision_urls() -> dict[str, str]:
    return mmengine.load(Path(mmengine.__file__).parent / 'hub' / 'torchvision_0.12.json')


LISTS = {'torchvision': _torchvision_urls, 'open-mmlab': get_external_models}


def locate(source: str | Path) -> Path:
    """The file of a path, a URL, ``torchvision://NAME`` or ``open-mmlab://NAME``.

    Raises:
        UsageError: If there is none, or it is damaged.
    """
    source = resolve(str(source))
    path = fetch(source) if source.startswith(SCHEMES) else Path(source).expanduser()
    if not path.is_file():
        problem = 'is a folder' if path.is_dir() else 'does not exist'
        raise UsageError(
            f'checkpoint {path} {problem}: give the path of a .pth, {SAFETENSORS} or '
            f'{SAFETENSORS}{INDEX} file'
        )
    if not path.name.endswith((SAFETENSORS, INDEX)) and not is_checkpoint(path):
        raise damaged(path)
    return path


def fetch(url: str, sha256: str | None = None) -> Path:
    """The file of a URL in PyTorch's cache, downloaded with a bar where it is not there yet.

    Args:
        url: Where it is.
        sha256: How its hash begins; default: what the name says, if it says so.
    """
    name = Path(urlparse(url).path).name
    named = HASH_IN_NAME.search(name)
    if sha256 is None and named:
        sha256 = named[1]
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    if not named:  # many files are called model.safetensors
        folder /= hashlib.sha256(url.encode()).hexdigest()[:8]
    path = folder / name
    if path.is_file():
        if not _has_hash(path, sha256):
            raise UsageError(f'{path} does not have the hash {sha256}: delete it and get it again')
        return path
    partial = path.with_name(f'partial-{name}')
    folder.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(partial), progress=is_main_process())
        if not _has_hash(partial, sha256):
            raise UsageError(f'what {url} sends does not have the hash {sha256}: get it elsewhere')
        if not is_whole(partial):
            raise UsageError(
                f'what {url} sends is not a complete checkpoint: try again, or check the URL'
            )
        os.replace(partial, path)
    except (URLError, OSError) as error:
        gated = getattr(error, 'code', None) in (401, 403)
        problem = 'is gated' if gated else 'cannot be downloaded'
        cure = 'accept its licence, download it' if gated else 'download it elsewhere'
        raise UsageError(f'{url} {problem} ({error}): {cure} and put it at {path}') from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _has_hash(path: Path, sha256: str | None) -> bool:
    return not sha256 or file_hash(path).startswith(sha256)


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
