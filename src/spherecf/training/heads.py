"""Stage 2 as a task of the training loop: the head, its objective, and the backbone where it is tuned too."""

import math
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from spherecf.data import split_identities
from spherecf.errors import InputError
from spherecf.losses import (
    Variant,
    gaussian_confidence_loss_from_cosine,
    initial_kappa,
    pfe_gaussian_loss,
    pfe_vmf_loss,
    sphere_confidence_loss_from_cosine,
)
from spherecf.models import ConfidenceHead, Preprocessing
from spherecf.training.checkpoint import identity_of
from spherecf.training.config import ConfidenceConfig, LossSettings
from spherecf.training.distributed import Ranks, gather_rows
from spherecf.training.features import Features, Sample, StreamedFeatures
from spherecf.training.loop import Forward, Loss, Part, Rows, Run, run_training
from spherecf.training.optim import make_optimizer
from spherecf.training.sampling import grouped_batches, shuffled_batches


@runtime_checkable
class Objective(Protocol):
    """A loss of a head's output.

    Attributes:
        pairwise: it compares samples of one identity with each other, and needs batches that hold such.
    """

    pairwise: bool

    def outputs(self, dim: int) -> int:
        """How many numbers the head gives per image."""
        ...

    def start(self, cosine: Tensor) -> float:
        """The constant, in the head's ``exp(output)``, that fits cosines to prototypes (n,) best."""
        ...

    def loss(self, output: Tensor, cosine: Tensor, mu: Tensor, labels: Tensor) -> Tensor:
        """One loss per sample, or per genuine pair (m,).

        Args:
            output: of the head, (n,) or (n, outputs).
            cosine: cos(mu, prototype) (n,).
            mu: (n, dim) unit; only pairwise objectives look at it.
            labels: (n,) likewise.
        """
        ...


class SphereConfidence:
    """SCF: surprise of the vMF at the prototype; exact, or as the released code computes it."""

    pairwise = False

    def __init__(self, dim: int, radius: float, variant: Variant) -> None:
        self._dim, self._radius, self._variant = dim, radius, variant

    def outputs(self, dim: int) -> int:
        return 1

    def start(self, cosine: Tensor) -> float:
        return initial_kappa(cosine, self._dim)

    def loss(self, output: Tensor, cosine: Tensor, mu: Tensor, labels: Tensor) -> Tensor:
        return sphere_confidence_loss_from_cosine(
            cosine, output.exp(), self._dim, self._radius, self._variant, "none"
        )


class GaussianConfidence:
    """SCF-G: surprise of an isotropic Gaussian at the prototype; the head gives the log precision."""

    pairwise = False

    def __init__(self, dim: int) -> None:
        self._dim = dim

    def outputs(self, dim: int) -> int:
        return 1

    def start(self, cosine: Tensor) -> float:
        return self._dim / _mean_square(cosine)

    def loss(self, output: Tensor, cosine: Tensor, mu: Tensor, labels: Tensor) -> Tensor:
        return gaussian_confidence_loss_from_cosine(cosine, output, self._dim, "none")


class PairwiseVmf:
    """PFE-v: minus the mutual likelihood score of genuine pairs; the head gives log kappa."""

    pairwise = True

    def __init__(self, dim: int, radius: float) -> None:
        self._dim, self._radius = dim, radius

    def outputs(self, dim: int) -> int:
        return 1

    def start(self, cosine: Tensor) -> float:
        return initial_kappa(cosine, self._dim)

    def loss(self, output: Tensor, cosine: Tensor, mu: Tensor, labels: Tensor) -> Tensor:
        return pfe_vmf_loss(mu, output, labels, self._radius, "none")


class PairwiseGaussian:
    """PFE-G: minus the mutual likelihood score of genuine pairs; the head gives log precisions."""

    pairwise = True

    def __init__(self, dim: int) -> None:
        self._dim = dim

    def outputs(self, dim: int) -> int:
        return dim

    def start(self, cosine: Tensor) -> float:
        return self._dim / _mean_square(cosine)

    def loss(self, output: Tensor, cosine: Tensor, mu: Tensor, labels: Tensor) -> Tensor:
        # Precisions, not variances, so that larger is surer for every head of this library.
        return pfe_gaussian_loss(mu, -output, labels, "none")


def make_objective(settings: LossSettings, dim: int) -> Objective:
    """The objective of a recipe.

    Raises:
        InputError: an unknown one.
    """
    variant: Variant = "exact" if settings.variant == "exact" else "released"
    makers: dict[str, Callable[[], Objective]] = {
        "scf": lambda: SphereConfidence(dim, settings.radius, variant),
        "scf-gaussian": lambda: GaussianConfidence(dim),
        "pfe-vmf": lambda: PairwiseVmf(dim, settings.radius),
        "pfe-gaussian": lambda: PairwiseGaussian(dim),
    }
    if settings.objective not in makers:
        raise InputError(f"loss.objective: expected one of {', '.join(makers)}, got {settings.objective!r}")
    return makers[settings.objective]()


def _mean_square(cosine: Tensor) -> float:
    """Mean squared distance |mu - w|^2 = 2 (1 - cos)."""
    mean = float(cosine.double().mean())
    if not -1 <= mean < 1:
        raise InputError(f"the mean cosine to the prototypes is {mean:.4f}, expected within [-1, 1)")
    return 2 * (1 - mean)


_CHUNK = 4096
_SAMPLE = 8192  # entries that tell a head how to normalise its input


class TunedNetwork(nn.Module):
    """Backbone and head in one, the backbone's batch statistics frozen: images to (output, mu)."""

    def __init__(self, backbone: nn.Module, head: ConfidenceHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def train(self, mode: bool = True) -> "TunedNetwork":
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Output of the head, and unit direction, of pixels (n, 3, h, w)."""
        embedding, features = self.backbone(x)
        summary = self.head.pool_features(features.float(), embedding.float())
        return self.head(summary), normalize(embedding.float())


class ConfidenceTask:
    """A head, what it learns from, and the best of its epochs on held-out people."""

    classifier: None = None

    def __init__(
        self,
        head: ConfidenceHead,
        features: Features,
        config: ConfidenceConfig,
        ranks: Ranks,
        tuned: tuple[nn.Module, Preprocessing] | None = None,
    ) -> None:
        if tuple(features.summary_shape) != tuple(head.summary_shape):
            raise InputError(
                f"{head.kind} head: expected summaries {tuple(head.summary_shape)}, the cache holds "
                f"{tuple(features.summary_shape)}: it was made for another head"
            )
        self.head, self.features, self._config, self._ranks = head, features, config, ranks
        self.objective: Objective = make_objective(config.loss, features.dim)
        self._split()
        if self.objective.pairwise:  # both sides must have pairs, and it is better to know now
            self.batches(0)
            if len(self.held_out):
                self._grouped(self.held_out, 0)
        self.start = self._start()
        head.to(ranks.device)
        self._preprocessing = None if tuned is None else tuned[1]
        self.network: nn.Module = head if tuned is None else TunedNetwork(tuned[0], head).to(ranks.device)
        self.optimizer = make_optimizer(self.network.parameters(), config.optimizer)
        loss = self._constant_loss()
        self.best: dict[str, Any] = {
            "loss": loss,
            "epoch": 0,
            "network": self._copy() if len(self.held_out) else {},
        }

    def _split(self) -> None:
        identities, share = self.features.identities, self._config.fit.held_out
        if share:
            self.train, self.held_out = split_identities(identities, share, self._config.seed)
        else:
            self.train, self.held_out = np.arange(len(identities)), np.zeros(0, np.int64)
        if len(self.train) < 2:
            raise InputError(f"expected at least 2 views to train on, got {len(self.train)}")

    def _start(self) -> float:
        """Normalise the head's input and make it the best constant."""
        chosen = np.linspace(0, len(self.train) - 1, min(len(self.train), _SAMPLE)).astype(int)
        sample = self._sample(self.train[chosen])
        known = self.features.cosine
        cosine = (
            sample.cosine.cpu() if known is None else torch.from_numpy(known)[torch.from_numpy(self.train)]
        )
        self.head.fit_normalisation(sample.summary.cpu())
        start = self.objective.start(cosine)
        self.head.init_constant(start)
        return start

    def _sample(self, entries: Rows) -> Sample:
        """These entries' features on every rank, each rank having computed a part."""
        parts = np.array_split(entries, max(1, math.ceil(len(entries) / _CHUNK)))
        mine = [part[self._ranks.share(len(part))] for part in parts]
        with closing(self._frozen_features().load(mine)) as loaded:
            columns = zip(*(part.data for part in loaded), strict=True)
            return Sample(*(self._ranks.gather(torch.cat(column)) for column in columns))

    def _frozen_features(self) -> Features:
        if isinstance(self.features, StreamedFeatures):
            return self.features.frozen()
        return self.features

    def _constant_loss(self) -> float:
        """Of the head before the first step, on held-out people; no epoch need beat it if there are none."""
        if not len(self.held_out) or self.objective.pairwise or self.features.cosine is None:
            return math.inf
        cosine = torch.from_numpy(self.features.cosine)[torch.from_numpy(self.held_out)]
        output = torch.full_like(cosine, self.start).log()
        nothing = torch.zeros(0, 1)
        return float(self.objective.loss(output, cosine, nothing, nothing[:, 0]).mean())

    def counts(self) -> dict[str, int]:
        """Rows and identities that teach, and that validate."""
        identities = self.features.identities
        return {
            "train_rows": len(self.train),
            "held_out_rows": len(self.held_out),
            "train_identities": len(np.unique(identities[self.train])),
            "held_out_identities": len(np.unique(identities[self.held_out])),
        }

    def batches(self, epoch: int) -> list[Rows]:
        fit, seed, rows = self._config.fit, self._config.seed, self.train
        if self._config.views.per_epoch == "one":
            rows = self._one_of_each(rows, epoch)
        if self.objective.pairwise:
            return self._grouped(rows, epoch)
        return shuffled_batches(rows, fit.batch_size, seed, epoch)

    def _grouped(self, rows: Rows, epoch: int) -> list[Rows]:
        fit, labels = self._config.fit, self.features.identities[rows]
        batches = grouped_batches(rows, labels, fit.per_identity, fit.batch_size, self._config.seed, epoch)
        if not batches:
            raise InputError(
                f"loss.objective {self._config.loss.objective}: nobody has fit.per_identity = "
                f"{fit.per_identity} rows, so there are no pairs to compare; lower it, or show more views"
            )
        return batches

    def _one_of_each(self, rows: Rows, epoch: int) -> Rows:
        """One view of each image, by seed, epoch and image."""
        _, first, count = np.unique(self.features.images[rows], return_index=True, return_counts=True)
        draw = np.random.default_rng([self._config.seed, epoch, 2]).random(len(first))
        return rows[first + (draw * count).astype(np.int64)]

    def cut(self, batch: Rows, parts: int) -> list[Rows]:
        if not self.objective.pairwise:
            return np.array_split(batch, parts)
        groups = batch.reshape(-1, self._config.fit.per_identity)  # pairs stay together
        return [part.reshape(-1) for part in np.array_split(groups, parts)]

    def load(self, epoch: int, parts: Iterable[Rows]) -> Generator[Part, None, None]:
        return self.features.load(parts, self.objective.pairwise)

    def begin(self, rows: Rows, step: int) -> None:
        pass

    def loss(self, forward: Forward, part: Part) -> Loss:
        output, sample = self._outputs(forward, part)
        ranks = self._ranks
        labels = torch.from_numpy(self.features.identities[part.rows]).to(ranks.device)
        if self.objective.pairwise:
            # Every rank computes the loss of all pairs, which may lie on two ranks, from rows of d numbers.
            output, mu = (gather_rows(rows, ranks, replicated=True) for rows in (output, sample.mu))
            labels = ranks.gather(labels)
            if len(set(labels.tolist())) == len(labels):  # broken images have left nobody a partner
                nothing = output.sum() * 0
                return Loss(nothing, nothing.detach())
            loss = self.objective.loss(output, sample.cosine, mu, labels).mean()
            return Loss(loss, loss.detach())
        losses = self.objective.loss(output, sample.cosine, sample.mu, labels)
        total = sum(ranks.counts(len(losses)))
        loss = losses.sum() / max(1, total)
        return Loss(loss, ranks.sum_(loss.detach().clone()))

    def _outputs(self, forward: Forward, part: Part) -> tuple[Tensor, Sample]:
        """What the head says, in float32, and what it is compared with."""
        if self._preprocessing is None or not isinstance(self.features, StreamedFeatures):
            sample: Sample = part.data
            return forward(sample.summary).float(), sample
        pixels = self._preprocessing(part.data.to(self._ranks.device))
        output, mu = forward(pixels)
        prototypes = self.features.prototypes_of(part.rows).to(mu.device)
        cosine = (mu * prototypes).sum(1).clamp(-1, 1)
        return output.float(), Sample(output.detach(), mu, cosine)

    def keys(self, rows: Rows) -> list[str]:
        return self.features.keys(rows)

    @torch.no_grad()
    def end_epoch(self, epoch: int) -> dict[str, float]:
        if not len(self.held_out):
            return {}
        facts = self._validate()
        if facts["held_out_loss"] < self.best["loss"]:
            self.best = {"loss": facts["held_out_loss"], "epoch": epoch + 1, "network": self._copy()}
        return facts

    def _validate(self) -> dict[str, float]:
        ranks = self._ranks
        if self.objective.pairwise:
            parts = self._grouped(self.held_out, 0)
        else:
            parts = np.array_split(self.held_out, max(1, math.ceil(len(self.held_out) / self._chunk())))
        mine = [part[ranks.share(len(part))] for part in parts]
        losses, kappas = [], []
        with closing(self.features.load(mine, self.objective.pairwise)) as loaded:
            for part in loaded:
                output, sample = self._outputs(self.network, part)
                labels = torch.from_numpy(self.features.identities[part.rows])
                output, mu, cosine, labels = (
                    ranks.gather(rows).cpu()
                    for rows in (output, sample.mu, sample.cosine, labels.to(ranks.device))
                )
                losses.append(self.objective.loss(output, cosine, mu, labels))
                kappas.append(self.head.to_log_kappa(output))
        kappa = torch.cat(kappas).exp()
        return {
            "held_out_loss": float(torch.cat(losses).mean()),
            "held_out_median_kappa": float(kappa.median()),
        }

    def _chunk(self) -> int:
        return _CHUNK if self.features.cosine is not None else self._config.fit.batch_size

    def finish(self) -> int:
        """Take the best epoch, 0 if none beat the constant; the last one where nobody was held out."""
        if len(self.held_out):
            self.network.load_state_dict(self.best["network"])
        self.network.eval()
        return int(self.best["epoch"])

    def _copy(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}

    def state(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state(self, state: dict[str, Any]) -> None:
        self.best = state["best"]


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
