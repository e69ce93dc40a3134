"""The second stage on features: a head learns how far each face is from its prototype."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spherecf.models import ConfidenceHead, Preprocessing
from spherecf.training._checkpoint import identity_of
from spherecf.training._confidence_task import ConfidenceTask
from spherecf.training._config import ConfidenceConfig
from spherecf.training._features import Features
from spherecf.training._loop import run_training
from spherecf.training._ranks import Ranks
from spherecf.training._task import Run


@dataclass
class FitResult:
    """The head with the lowest loss on held-out identities, and how it came about.

    Attributes:
        head: in evaluation mode.
        initial_kappa: where it started, the constant that fits best.
        history: per epoch ``train_loss``, ``lr``, ``held_out_loss``, ``held_out_median_kappa``.
        best_epoch: from 1; 0 if no epoch beat the constant head on the held-out identities, or nobody was
            held out.
        counts: ``train_rows``, ``held_out_rows``, ``train_identities``, ``held_out_identities``.
        skipped: reason by key of images that could not be used while streaming.
    """

    head: ConfidenceHead
    initial_kappa: float
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class FitState:
    """What `fit_head` shows after an epoch; it goes on changing, so copy what you keep.

    Attributes:
        epoch: just finished, from 0.
        step: steps so far.
        head: as it is now, of this epoch and not of the best.
        optimizer: over the head's parameters, and the backbone's if it learns as well.
        backbone: that learns as well, or None.
    """

    epoch: int
    step: int
    head: ConfidenceHead
    optimizer: torch.optim.Optimizer
    backbone: nn.Module | None = None


EachEpoch = Callable[[FitState], None]


def fit_head(
    head: ConfidenceHead,
    features: Features,
    config: ConfidenceConfig,
    folder: str | Path | None = None,
    *,
    ranks: Ranks | None = None,
    tuned: tuple[nn.Module, Preprocessing] | None = None,
    identity: Mapping[str, Any] | None = None,
    tensorboard: bool = False,
    each_epoch: EachEpoch | None = None,
) -> FitResult:
    """Train a head and keep the epoch that is best on held-out identities.

    The order of an epoch depends on (seed, epoch) alone, and dropout's state is saved, so a run that was
    interrupted, by Ctrl-C or kill -9, continues from its last checkpoint to the bit-identical result on the
    CPU.

    Args:
        head: new, for the features' summaries; changed in place.
        features: `CachedFeatures` or `StreamedFeatures`.
        config: ``loss``, ``fit``, ``optimizer``, ``schedule``, ``engine`` and ``seed`` are used.
        folder: where checkpoints and logs live; None keeps nothing and cannot resume.
        ranks: who trains together; alone by default.
        tuned: a backbone that learns as well, and its preprocessing; features must be streamed for tuning.
        identity: further facts the checkpoints belong to (hashes of data and backbone).
        tensorboard: also write event files to ``folder/runs``.
        each_epoch: called on rank 0 after each epoch, before its checkpoint is written.

    Raises:
        InputError: too few identities to hold some out, or prototypes that do not belong to the data.
        SpherecfError: the loss became NaN; the epoch and the keys of the batch are named.
    """
    ranks = ranks or Ranks()
    task = ConfidenceTask(head, features, config, ranks, tuned)
    settings = {name: value for name, value in config.to_dict().items() if name != "engine"}
    mark = identity_of({"config": settings, "rows": features.digest(), **(identity or {})})

    def show(epoch: int, step: int) -> None:
        if each_epoch is not None:
            network = None if tuned is None else tuned[0]
            each_epoch(FitState(epoch, step, head, task.optimizer, network))

    run = Run(
        config.fit.epochs, config.seed, config.optimizer, config.schedule, config.engine,
        None if folder is None else Path(folder), mark, "fitting the head", tensorboard, show,
    )  # fmt: skip
    outcome = run_training(task, run, ranks)
    best = task.finish()
    return FitResult(head, task.start, outcome.history, best, task.counts(), outcome.skipped)
