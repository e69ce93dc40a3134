"""Verification accuracy while a backbone trains: the usual number, exactly, on pair files."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from spherecf.common.progress import console
from spherecf.data import PairBin
from spherecf.evaluation import tenfold
from spherecf.models import FrozenBackbone

_BATCH = 64


def verification(files: Sequence[str | Path]) -> Callable[[FrozenBackbone], dict[str, float]]:
    """A function that gives the ten-fold accuracy of a backbone on pair files, with test-time flip.

    For ``train_backbone(validate=...)``; the names are those of the files: ``lfw_accuracy`` for ``lfw.bin``.

    Raises:
        FileFormatError: not a pair file, now and not after the first epoch.
    """
    sets = [PairBin(path) for path in files]
    for source in sets:
        for note in source.notes:
            console.print(f"{source.path}: {note}", highlight=False, markup=False)

    def validate(backbone: FrozenBackbone) -> dict[str, float]:
        return {f"{source.name}_accuracy": _accuracy(backbone, source) for source in sets}

    return validate


def _accuracy(backbone: FrozenBackbone, source: PairBin) -> float:
    size = backbone.preprocessing.size
    parts = []
    for start in range(0, len(source), _BATCH):
        images = np.stack([source.image(i, size) for i in range(start, min(start + _BATCH, len(source)))])
        both = [backbone(shown).embedding for shown in (images, np.ascontiguousarray(images[:, :, ::-1]))]
        parts.append((both[0] + both[1]).cpu().numpy())
    mu = np.concatenate(parts)
    mu /= np.linalg.norm(mu, axis=1, keepdims=True)
    scores = (mu[::2] * mu[1::2]).sum(1)
    return tenfold(scores, source.pairs.mated, source.pairs.fold).mean
