"""Stage 2 as a task of the training loop: a head, its objective and, for fine-tuning, the backbone."""

import math
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from spherecf.common.arrays import to_device
from spherecf.data import split_identities
from spherecf.errors import InputError
from spherecf.losses import (
    certainty_ratio_loss,
    gaussian_confidence_loss_from_cosine,
    initial_kappa,
    pfe_gaussian_loss,
    pfe_vmf_loss,
    probface_loss,
    random_temperature_loss,
    sphere_confidence_loss_from_cosine,
)
from spherecf.models import ConfidenceHead, Preprocessing
from spherecf.training.batches import grouped_batches, shuffled_batches
from spherecf.training.checkpoint import identity_of
from spherecf.training.config import ConfidenceConfig, LossSettings
from spherecf.training.distributed import Ranks, gather_rows
from spherecf.training.features import Features, Prototypes, Sample, StreamedFeatures
from spherecf.training.loop import Forward, Loss, Part, Rows, Run, run_training
from spherecf.training.optim import make_optimizer


@dataclass(frozen=True)
class Objective:
    """A training objective for a head.

    Attributes:
        loss: function of output (n,) or (n, outputs), cos(mu, prototype) (n,), mu (n, dim) and labels (n,);
            it returns one loss per sample (n,), or per genuine pair (m,).
        best_constant: function of cosines (n,); it returns the constant ``exp(output)`` that minimises the
            loss, at least approximately.
        outputs: numbers that the head outputs per image.
        pairwise: whether the loss compares samples of the same identity, using ``mu`` and ``labels``.
        against_others: whether the loss compares samples with the prototypes of other identities, using
            ``mu`` and ``labels``.
    """

    loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    best_constant: Callable[[Tensor], float]
    outputs: int = 1
    pairwise: bool = False
    against_others: bool = False

    @property
    def directions(self) -> bool:
        """Whether the loss uses the samples' ``mu``."""
        return self.pairwise or self.against_others


def make_objective(settings: LossSettings, dim: int, prototypes: Prototypes | None = None) -> Objective:
    """Create the objective of a recipe for embeddings of dimension ``dim``.

    - "scf": -log of the vMF density at the prototype; the head outputs log kappa.
    - "scf-gaussian": the same for an isotropic Gaussian; the head outputs its log precision.
    - "pfe-vmf", "pfe-gaussian": minus the mutual likelihood score of genuine pairs; the head outputs log
      kappa, or ``dim`` log precisions.
    - "probface": as "pfe-gaussian" with a single log precision, and regularised.
    - "cr-fiqa": the head outputs the certainty ratio in place of log kappa.
    - "rts": the head outputs minus the log variance of a random temperature.

    The losses of "cr-fiqa" and "rts" need ``prototypes``.
    """
    radius, variant = settings.radius, settings.variant

    def best_kappa(cosine: Tensor) -> float:
        return initial_kappa(cosine, dim)

    def best_precision(cosine: Tensor) -> float:
        return dim / _mean_square(cosine)

    def scf(output: Tensor, cosine: Tensor, mu: Tensor, labels: Tensor) -> Tensor:
        return sphere_confidence_loss_from_cosine(cosine, output.exp(), dim, radius, variant, "none")

    def scf_gaussian(output: Tensor, cosine: Tensor, mu: Tensor, labels: Tensor) -> Tensor:
        return gaussian_confidence_loss_from_cosine(cosine, output, dim, "none")

    def pfe_vmf(output: Tensor, cosine: Tensor, mu: Tensor, labels: Tensor) -> Tensor:
        return pfe_vmf_loss(mu, output, labels, radius, "none")

    def pfe_gaussian(output: Tensor, cosine: Tensor, mu: Tensor, labels: Tensor) -> Tensor:
        # Larger outputs mean more confidence for every head, so it outputs log precisions; the loss takes log
        # variances.
        return pfe_gaussian_loss(mu, -output, labels, "none")

    def probface(output: Tensor, cosine: Tensor, mu: Tensor, labels: Tensor) -> Tensor:
        return probface_loss(mu, -output, labels, "none")

    @cache
    def all_prototypes(device: torch.device) -> Tensor:
        assert prototypes is not None  # the features from which a loss is computed have prototypes
        return prototypes.all().to(device)  # (identities, dim)

    def other_cosines(mu: Tensor, labels: Tensor) -> Tensor:
        """Cosines to other identities' prototypes (n, identities); -inf for the true or absent one."""
        weights = all_prototypes(mu.device)
        cosine = (mu @ weights.T).masked_fill(~weights.any(1), -torch.inf)
        return cosine.scatter(1, to_device(labels, mu.device)[:, None], -torch.inf)

    def cr_fiqa(output: Tensor, cosine: Tensor, mu: Tensor, labels: Tensor) -> Tensor:
        return certainty_ratio_loss(output, cosine, other_cosines(mu, labels).amax(1), "none")

    def rts(output: Tensor, cosine: Tensor, mu: Tensor, labels: Tensor) -> Tensor:
        return random_temperature_loss(-output, cosine, other_cosines(mu, labels), "none")

    def mean_ratio(cosine: Tensor) -> float:
        # The mean ratio if the nearest other prototype is at 90 degrees.
        return math.exp(float(cosine.double().mean()))

    return {
        "scf": Objective(scf, best_kappa),
        "scf-gaussian": Objective(scf_gaussian, best_precision),
        "pfe-vmf": Objective(pfe_vmf, best_kappa, pairwise=True),
        "pfe-gaussian": Objective(pfe_gaussian, best_precision, outputs=dim, pairwise=True),
        "probface": Objective(probface, lambda cosine: best_precision(cosine) / dim, pairwise=True),
        "cr-fiqa": Objective(cr_fiqa, mean_ratio, against_others=True),
        "rts": Objective(rts, lambda cosine: 1.0, against_others=True),
    }[settings.objective]


def _mean_square(cosine: Tensor) -> float:
    """Mean squared distance |mu - w|^2 = 2 (1 - cos)."""
    mean = float(cosine.double().mean())
    if not -1 <= mean < 1:
        raise InputError(f"the mean cosine to the prototypes is {mean:.4f}, expected within [-1, 1)")
    return 2 * (1 - mean)


_CHUNK = 4096
_SAMPLE = 8192  # number of entries from which a head's input normalisation is fitted


class TunedNetwork(nn.Module):
    """Backbone and head as one network that maps pixels to (output, mu), with frozen batch statistics."""

    def __init__(self, backbone: nn.Module, head: ConfidenceHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def train(self, mode: bool = True) -> "TunedNetwork":
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map pixels (n, 3, h, w) to the head's output (n,) or (n, outputs) and directions (n, dim)."""
        embedding, features = self.backbone(x)  # (n, dim), (n, channels, height, width)
        summary = self.head.pool_features(features.float(), embedding.float())
        return self.head(summary), normalize(embedding.float())


class ConfidenceTask:
    """Stage 2 as a `Task`: a head, its training data, and its best epoch on held-out identities."""

    classifier: None = None

    def __init__(
        self,
        head: ConfidenceHead,
        features: Features,
        config: ConfidenceConfig,
        ranks: Ranks,
        tuned: tuple[nn.Module, Preprocessing] | None = None,
        measures: bool = False,
    ) -> None:
        if tuple(features.summary_shape) != tuple(head.summary_shape):
            raise InputError(
                f"{head.kind} head: expected summaries {tuple(head.summary_shape)}, but the cache contains "
                f"{tuple(features.summary_shape)}: it was computed for another head"
            )
        self.head, self.features, self._config, self._ranks = head, features, config, ranks
        self.objective = make_objective(config.loss, features.dim, features.prototypes)
        self._measures = measures
        self._split()
        if self.objective.pairwise:  # fail before the first epoch if either set has no pairs
            self.batches(0)
            if len(self.held_out):
                self._grouped(self.held_out, 0)
        self.initial = self._initialise_head()
        head.to(ranks.device)
        self._preprocessing = None if tuned is None else tuned[1]
        self.network: nn.Module = head if tuned is None else TunedNetwork(tuned[0], head).to(ranks.device)
        self.optimizer = make_optimizer(self.network.parameters(), config.optimizer)
        # Epoch 0 is the constant head, which later epochs must beat.
        weights = self._copy_weights() if len(self.held_out) else {}
        self.best: dict[str, Any] = {"loss": self._constant_loss(), "epoch": 0, "network": weights}

    def _split(self) -> None:
        identities, share = self.features.identities, self._config.fit.held_out
        if share:
            self.train, self.held_out = split_identities(identities, share, self._config.seed)
        else:
            self.train, self.held_out = np.arange(len(identities)), np.zeros(0, np.int64)
        if len(self.train) < 2:
            raise InputError(f"expected at least 2 views to train on, got {len(self.train)}")

    def _initialise_head(self) -> float:
        """Fit the head's input normalisation, set its output to the best constant, and return that."""
        selected = np.linspace(0, len(self.train) - 1, min(len(self.train), _SAMPLE)).astype(int)
        sample = self._sample(self.train[selected])
        cosine = sample.cosine.cpu()
        if self.features.cosine is not None:  # available without the backbone: use all entries
            cosine = torch.from_numpy(self.features.cosine)[torch.from_numpy(self.train)]
        self.head.fit_normalisation(sample.summary.cpu())
        initial = self.objective.best_constant(cosine)
        self.head.init_constant(initial)
        return initial

    def _sample(self, entries: Rows) -> Sample:
        """Samples of these entries on every rank; each rank computes a part of them."""
        parts = np.array_split(entries, max(1, math.ceil(len(entries) / _CHUNK)))
        local = [part[self._ranks.share(len(part))] for part in parts]
        # Before the first step, features come from the frozen backbone even if it is fine-tuned later.
        streamed = isinstance(self.features, StreamedFeatures)
        features = self.features.frozen() if streamed else self.features  # type: ignore[attr-defined]
        with closing(features.load(local)) as loaded:
            columns = zip(*(part.data for part in loaded), strict=True)
            return Sample(*(self._ranks.gather(torch.cat(column)) for column in columns))

    def _constant_loss(self) -> float:
        """Held-out loss of the constant head; infinite if it cannot be computed."""
        if not len(self.held_out) or self.objective.directions or self.features.cosine is None:
            return math.inf
        cosine = torch.from_numpy(self.features.cosine)[torch.from_numpy(self.held_out)]  # (m,)
        output = torch.full_like(cosine, self.initial).log()  # (m,)
        unused = torch.zeros(0, 1)
        return float(self.objective.loss(output, cosine, unused, unused[:, 0]).mean())

    def counts(self) -> dict[str, int]:
        """Rows and identities in the training and in the validation set."""
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
            rows = self._one_view_each(rows, epoch)
        if self.objective.pairwise:
            return self._grouped(rows, epoch)
        return shuffled_batches(rows, fit.batch_size, seed, epoch)

    def _grouped(self, rows: Rows, epoch: int) -> list[Rows]:
        fit, labels = self._config.fit, self.features.identities[rows]
        batches = grouped_batches(rows, labels, fit.per_identity, fit.batch_size, self._config.seed, epoch)
        if not batches:
            raise InputError(
                f"loss.objective {self._config.loss.objective}: no identity has fit.per_identity = "
                f"{fit.per_identity} rows, so there are no pairs to compare; lower it, or use more views"
            )
        return batches

    def _one_view_each(self, rows: Rows, epoch: int) -> Rows:
        """Select one random view of each image, a function of seed, epoch and image."""
        _, first, count = np.unique(self.features.images[rows], return_index=True, return_counts=True)
        draw = np.random.default_rng([self._config.seed, epoch, 2]).random(len(first))
        return rows[first + (draw * count).astype(np.int64)]

    def cut(self, batch: Rows, parts: int) -> list[Rows]:
        if not self.objective.pairwise:
            return np.array_split(batch, parts)
        groups = batch.reshape(-1, self._config.fit.per_identity)  # do not divide groups
        return [part.reshape(-1) for part in np.array_split(groups, parts)]

    def load(self, epoch: int, parts: Iterable[Rows]) -> Generator[Part, None, None]:
        return self.features.load(parts, self.objective.directions)

    def begin(self, rows: Rows, step: int) -> None:
        pass

    def loss(self, forward: Forward, part: Part) -> Loss:
        ranks = self._ranks
        output, sample = self._outputs(forward, part)  # (n_r,) or (n_r, outputs)
        labels = torch.from_numpy(self.features.identities[part.rows])  # (n_r,), on the CPU
        if self.objective.pairwise:
            # The samples of a pair may be on different ranks, so every rank computes the loss of all pairs
            # from the rows of all ranks.
            output, mu = (gather_rows(rows, ranks, replicated=True) for rows in (output, sample.mu))
            labels = ranks.gather(labels)  # (n,)
            if len(set(labels.tolist())) == len(labels):  # no pair is left after unreadable images
                zero = output.sum() * 0
                return Loss(zero, zero.detach())
            loss = self.objective.loss(output, sample.cosine, mu, labels).mean()
            return Loss(loss, loss.detach())
        # Divide by the number of samples on all ranks: the ranks' shares add up to the batch's mean.
        losses = self.objective.loss(output, sample.cosine, sample.mu, labels)  # (n_r,)
        count = max(1, sum(ranks.counts(len(losses))))
        loss = losses.sum() / count
        value = ranks.sum_(loss.detach().clone())
        if not self._measures:
            return Loss(loss, value)
        return Loss(loss, value, self._terms(value, output.detach(), sample.cosine, count))

    @torch.no_grad()
    def _terms(self, loss: Tensor, output: Tensor, cosine: Tensor, count: int) -> dict[str, Tensor]:
        """Batch means of kappa, the loss and its terms, under the names of the SCF reference.

        The loss is L = -kappa cos(mu, w) - (d/2 - 1) log kappa + log I_{d/2-1}(kappa) + d/2 log(2 pi r^2)
        (section 3 of S. Li et al., CVPR 2021). The Bessel term is computed as L minus the other terms, in
        either variant.
        """
        kappa, dim = output.exp(), self.features.dim  # (n_r,)
        sums = torch.stack([kappa.sum(), -(kappa * cosine).sum(), (1 - dim / 2) * output.sum()])
        mean, first, second = self._ranks.sum_(sums / count)
        constant = dim / 2 * math.log(2 * math.pi * self._config.loss.radius**2)
        return {
            "kappa": mean,
            "total_loss": loss,
            "neg_kappa_times_cos_theta": first,
            "neg_dim_scalar_times_log_kappa": second,
            "log_iv_kappa": loss - first - second - constant,
        }

    def _outputs(self, forward: Forward, part: Part) -> tuple[Tensor, Sample]:
        """The head's output in float32, and the sample with the target cosines."""
        if self._preprocessing is None or not isinstance(self.features, StreamedFeatures):
            sample: Sample = part.data
            return forward(sample.summary).float(), sample
        # Fine-tuning changes directions, and hence cosines, in every step; prototypes are fixed.
        pixels = self._preprocessing(to_device(part.data, self._ranks.device))  # (n_r, 3, height, width)
        output, mu = forward(pixels)
        prototypes = to_device(self.features.prototypes_of(part.rows), mu.device)  # (n_r, dim)
        cosine = (mu * prototypes).sum(1).clamp(-1, 1)  # (n_r,)
        return output.float(), Sample(output.detach(), mu, cosine)

    def keys(self, rows: Rows) -> list[str]:
        return self.features.keys(rows)

    @torch.no_grad()
    def end_epoch(self, epoch: int) -> dict[str, float]:
        if not len(self.held_out):
            return {}
        metrics = self._validate()
        if (loss := metrics["held_out_loss"]) < self.best["loss"]:
            self.best = {"loss": loss, "epoch": epoch + 1, "network": self._copy_weights()}
        return metrics

    def _validate(self) -> dict[str, float]:
        ranks = self._ranks
        if self.objective.pairwise:
            parts = self._grouped(self.held_out, 0)
        else:
            chunk = _CHUNK if self.features.cosine is not None else self._config.fit.batch_size
            parts = np.array_split(self.held_out, max(1, math.ceil(len(self.held_out) / chunk)))
        local = [part[ranks.share(len(part))] for part in parts]
        losses, kappas = [], []
        with closing(self.features.load(local, self.objective.directions)) as loaded:
            for part in loaded:
                output, sample = self._outputs(self.network, part)
                labels = torch.from_numpy(self.features.identities[part.rows])
                # Gather all rows on every rank, so that ranks agree on the best epoch; on the CPU, like the
                # loss of the constant head.
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

    def finish(self) -> int:
        """Load the weights of the best epoch and return its number, 0 for the constant head.

        Without held-out identities, keep the last epoch and return 0.
        """
        if len(self.held_out):
            self.network.load_state_dict(self.best["network"])
        self.network.eval()
        return int(self.best["epoch"])

    def _copy_weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}

    def state(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state(self, state: dict[str, Any]) -> None:
        self.best = state["best"]


@dataclass
class FitResult:
    """The head with the lowest loss on held-out identities, and the history of its training.

    Attributes:
        head: in evaluation mode.
        initial_kappa: the best constant, with which training started.
        history: ``train_loss``, ``lr``, ``held_out_loss`` and ``held_out_median_kappa`` of each epoch.
        best_epoch: counted from 1; 0 if no epoch beat the constant head on the held-out identities, or none
            were held out.
        counts: ``train_rows``, ``held_out_rows``, ``train_identities``, ``held_out_identities``.
        skipped: reason by key of images that were unusable while streaming.
    """

    head: ConfidenceHead
    initial_kappa: float
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class FitState:
    """State of `fit_head` after an epoch. Training modifies it further, so copy what you need later.

    Attributes:
        epoch: the epoch just finished, counted from 0.
        step: number of steps so far.
        head: after this epoch, which need not be the best one.
        optimizer: of the head's parameters and, if it is fine-tuned, the backbone's.
        backbone: if it is fine-tuned, else None.
    """

    epoch: int
    step: int
    head: ConfidenceHead
    optimizer: torch.optim.Optimizer
    backbone: nn.Module | None = None


@dataclass(frozen=True)
class Monitor:
    """Monitoring of a fit, in addition to its history.

    Attributes:
        tensorboard: True to write event files to ``folder/runs``; "reference" to add the curves of the SCF
            reference's ``train.py``, for every step and under its names.
        each_epoch: called on rank 0 after each epoch, before its checkpoint is written.
    """

    tensorboard: bool | Literal["reference"] = False
    each_epoch: Callable[[FitState], None] | None = None


def fit_head(
    head: ConfidenceHead,
    features: Features,
    config: ConfidenceConfig,
    folder: str | Path | None = None,
    *,
    ranks: Ranks | None = None,
    tuned: tuple[nn.Module, Preprocessing] | None = None,
    identity: Mapping[str, Any] | None = None,
    monitor: Monitor | None = None,
) -> FitResult:
    """Train a head and return its best epoch on held-out identities.

    The order of an epoch depends only on (seed, epoch), and the state of dropout is saved: a run interrupted
    by Ctrl-C or kill -9 resumes from its last checkpoint, on the CPU bit-identically.

    Args:
        head: new, for the features' summaries; modified in place.
        features: `CachedFeatures` or `StreamedFeatures`.
        config: of which ``loss``, ``fit``, ``optimizer``, ``schedule``, ``engine`` and ``seed`` are used.
        folder: for checkpoints and logs; None writes neither, so that the run cannot be resumed.
        ranks: the processes that train together; a single one by default.
        tuned: a backbone to fine-tune, and its preprocessing; ``features`` must then load images.
        identity: further facts that the checkpoints depend on (hashes of data and backbone).
        monitor: writes event files, or is called after each epoch.

    Raises:
        InputError: too few identities to hold some out, or features for another kind of head.
        SpherecfError: the loss became NaN; the message names the epoch and the keys of the batch.
    """
    ranks, monitor = ranks or Ranks(), monitor or Monitor()
    tensorboard, each_epoch = monitor.tensorboard, monitor.each_epoch
    if tensorboard == "reference" and config.loss.objective != "scf":
        raise InputError(f"the reference's curves are those of objective scf, got {config.loss.objective}")
    task = ConfidenceTask(head, features, config, ranks, tuned, measures=tensorboard == "reference")
    settings = {name: value for name, value in config.to_dict().items() if name != "engine"}
    run_identity = identity_of({"config": settings, "rows": features.digest(), **(identity or {})})

    def after_epoch(epoch: int, step: int) -> None:
        if each_epoch is not None:
            network = None if tuned is None else tuned[0]
            each_epoch(FitState(epoch, step, head, task.optimizer, network))

    run = Run(
        config.fit.epochs, config.seed, config.optimizer, config.schedule, config.engine,
        None if folder is None else Path(folder), run_identity, "fitting the head", bool(tensorboard),
        after_epoch,
    )  # fmt: skip
    outcome = run_training(task, run, ranks)
    best = task.finish()
    return FitResult(head, task.initial, outcome.history, best, task.counts(), outcome.skipped)
