"""Class-mean prototypes for data whose features are not kept: one pass that keeps directions alone."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spherecf.data import ImageSource, View
from spherecf.extract import KeepDirection
from spherecf.models import FrozenBackbone
from spherecf.training._ranks import Ranks
from spherecf.training._targets import MeanPrototypes
from spherecf.training._together import run_together


def mean_prototypes(
    backbone: FrozenBackbone,
    source: ImageSource,
    folder: str | Path,
    leave_one_out: bool = True,
    ranks: Ranks | None = None,
) -> MeanPrototypes:
    """One resumable pass over the clean images, which keeps dim numbers of each, and the means of identities.

    Raises:
        StorageError: not enough disk space for the directions.
    """
    recorder, place = KeepDirection(backbone.dim), Path(folder) / "directions"
    store = run_together(
        ranks or Ranks(), backbone, source, [View()], recorder, place, description="directions"
    )
    mu: NDArray[np.float32] = store.arrays["mu"]
    skipped = dict(store.notes["skipped"])
    return MeanPrototypes(source.labels, mu, store.arrays["valid"], leave_one_out, skipped)
