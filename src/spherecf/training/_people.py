"""Whom a backbone learns to tell apart."""

from dataclasses import dataclass

import numpy as np

from spherecf.data import ImageSource
from spherecf.errors import InputError
from spherecf.training._task import Rows


@dataclass(frozen=True, eq=False)
class People:
    """Whom to learn: images (rows of the source), their classes 0 .. n - 1, and the classes' names."""

    rows: Rows
    classes: Rows  # by row of the source, -1 for those left out
    names: list[str]
    left_out: dict[str, int]

    @classmethod
    def of(cls, source: ImageSource, least: int) -> "People":
        labels = source.labels
        counts = np.bincount(labels[labels >= 0], minlength=len(source.identities))
        kept = np.flatnonzero(counts >= least)
        if len(kept) < 2:
            raise InputError(
                f"{source.name}: expected at least two identities with {least} or more images, got "
                f"{len(kept)} (of {len(source.identities)} identities, {len(source)} images)"
            )
        number = np.full(len(counts) + 1, -1)  # the last stands for label -1
        number[kept] = np.arange(len(kept))
        classes = number[labels]
        left_out = {
            "images_without_identity": int((labels < 0).sum()),
            "identities_without_images": int((counts == 0).sum()),
            "identities_with_too_few_images": int(((counts > 0) & (counts < least)).sum()),
            "their_images": int(counts[(counts > 0) & (counts < least)].sum()),
        }
        return cls(np.flatnonzero(classes >= 0), classes, [source.identities[i] for i in kept], left_out)
