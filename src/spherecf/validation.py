"""Verification accuracy on pair files during the training of a backbone."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from spherecf.common.progress import console
from spherecf.data import PairBin
from spherecf.errors import InputError
from spherecf.evaluation import tenfold
from spherecf.models import FrozenBackbone

_BATCH = 64


def verification(
    files: Sequence[str | Path], size: tuple[int, int] | None = None
) -> Callable[[FrozenBackbone], dict[str, float]]:
    """Make a function that computes a backbone's ten-fold accuracy on pair files, with test-time flip.

    For ``train_backbone(validate=...)``. Each metric is named after its file: ``lfw_accuracy`` for
    ``lfw.bin``. The files are checked immediately, so that they cannot end a training after its first epoch.

    Args:
        files: pair files (`PairBin`).
        size: (height, width) of the network's images, with which every image is decoded once; None checks
            the images only when they are used.

    Raises:
        FileFormatError: not a pair file, or an image in it is broken or of another size.
        InputError: pairs of one kind only, or two files of the same name.
    """
    pair_sets = [PairBin(path) for path in files]
    for position, source in enumerate(pair_sets):
        for note in source.notes:
            console.print(f"{source.path}: {note}", highlight=False, markup=False)
        if source.name in (other.name for other in pair_sets[:position]):
            raise InputError(f"{source.path}: another pair file is named {source.name}, too; rename one")
        _check(source, size)

    def validate(backbone: FrozenBackbone) -> dict[str, float]:
        return {f"{source.name}_accuracy": _accuracy(backbone, source) for source in pair_sets}

    return validate


def _check(source: PairBin, size: tuple[int, int] | None) -> None:
    try:
        tenfold(np.zeros(len(source.pairs.mated)), source.pairs.mated, source.pairs.fold)
    except InputError as error:
        raise InputError(f"{source.path}: {error}") from error
    for index in range(len(source) if size else 0):
        source.image(index, size)


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
