"""Verification accuracy on pair files during the training of a backbone."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from spherecf.common.progress import console
from spherecf.data import PairBin
from spherecf.evaluation import tenfold
from spherecf.models import FrozenBackbone

_BATCH = 64


def verification(files: Sequence[str | Path]) -> Callable[[FrozenBackbone], dict[str, float]]:
    """Make a function that computes a backbone's ten-fold accuracy on pair files, with test-time flip.

    For ``train_backbone(validate=...)``. Each metric is named after its file: ``lfw_accuracy`` for
    ``lfw.bin``.

    Raises:
        FileFormatError: not a pair file; raised immediately, before training starts.
    """
    pair_sets = [PairBin(path) for path in files]
    for source in pair_sets:
        for note in source.notes:
            console.print(f"{source.path}: {note}", highlight=False, markup=False)

    def validate(backbone: FrozenBackbone) -> dict[str, float]:
        return {f"{source.name}_accuracy": _accuracy(backbone, source) for source in pair_sets}

    return validate


def _accuracy(backbone: FrozenBackbone, source: PairBin) -> float:
    size = backbone.preprocessing.size
    batches = []
    for start in range(0, len(source), _BATCH):
        images = np.stack([source.image(i, size) for i in range(start, min(start + _BATCH, len(source)))])
        # Test-time flip: add the raw embeddings of the image and its mirror image; normalised below.
        mirrored = np.ascontiguousarray(images[:, :, ::-1])
        batches.append((backbone(images).embedding + backbone(mirrored).embedding).cpu().numpy())
    mu = np.concatenate(batches)  # (images, dim)
    mu /= np.linalg.norm(mu, axis=1, keepdims=True)
    scores = (mu[::2] * mu[1::2]).sum(1)  # (pairs,): images 2i and 2i + 1 are pair i
    return tenfold(scores, source.pairs.mated, source.pairs.fold).mean
