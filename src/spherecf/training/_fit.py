"""The second stage on a cache: only the head learns, towards the cosine to the prototype."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spherecf._progress import progress
from spherecf.data import split_identities
from spherecf.errors import InputError, SpherecfError
from spherecf.losses import Variant, sphere_confidence_loss_from_cosine
from spherecf.models import ConfidenceHead, initial_kappa
from spherecf.training._cache import FeatureCache
from spherecf.training._config import ConfidenceConfig
from spherecf.training._log import RunLog
from spherecf.training._state import identity_of, load_state, save_state
from spherecf.training._targets import Targets

_CHUNK = 4096
_MOST_GRADIENT = 100.0  # of dL / d log kappa = kappa (A_d - cos), which a few sure and wrong faces dominate


@dataclass
class FitResult:
    """The head with the lowest loss on held-out identities, and how it came about.

    Attributes:
        head: in evaluation mode.
        initial_kappa: where it started, the maximum-likelihood constant.
        history: per epoch ``train_loss``, ``held_out_loss``, ``held_out_median_kappa``, ``lr``.
        best_epoch: from 1; 0 if no epoch beat the constant head on the held-out identities.
        counts: ``train_rows``, ``held_out_rows``, ``train_identities``, ``held_out_identities``.
    """

    head: ConfidenceHead
    initial_kappa: float
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    counts: dict[str, int] = field(default_factory=dict)


def fit_head(
    head: ConfidenceHead,
    cache: FeatureCache,
    targets: Targets,
    config: ConfidenceConfig,
    folder: str | Path | None = None,
    *,
    identity: Mapping[str, Any] | None = None,
    tensorboard: bool = False,
) -> FitResult:
    """Train a head by the sphere confidence loss and keep the epoch that is best on held-out identities.

    Every epoch draws its order and its dropout from (seed, epoch) alone, so a run that was interrupted, by
    Ctrl-C or kill -9, continues from the last whole epoch to the bit-identical result on the CPU.

    Args:
        head: new, for the cache's summaries; changed in place.
        cache: features of all views.
        targets: from `prototype_targets`.
        config: ``loss``, ``fit`` and ``seed`` are used.
        folder: where state and logs live; None keeps nothing and cannot resume.
        identity: further facts the state belongs to (hashes of data and backbone).
        tensorboard: also write event files to ``folder/tensorboard``.

    Raises:
        InputError: too few identities to hold some out, or prototypes that do not belong to the data.
        SpherecfError: the loss became NaN; the epoch and the keys of the batch are named.
    """
    plan = _Plan.of(head, cache, targets, config)
    result = FitResult(head, plan.start, counts=plan.counts())
    place = None if folder is None else Path(folder)
    mark = identity_of({"config": config.to_dict(), "rows": plan.digest(), **(identity or {})})
    head.adapt(plan.sample())
    head.start_at(plan.start)
    optimizer = torch.optim.AdamW(_groups(head, config.fit.weight_decay), lr=config.fit.lr)
    best: dict[str, Any] = {"loss": plan.constant_loss(), "epoch": 0, "head": _copy(head)}
    state = None if place is None else load_state(place, mark)
    if state is not None:
        head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        best, result.history = state["best"], state["history"]
    done = len(result.history)
    with (
        progress("fitting the head", config.fit.epochs, done) as advance,
        RunLog(place, tensorboard, result.history) as log,
    ):
        for epoch in range(done, config.fit.epochs):
            facts = plan.epoch(head, optimizer, epoch)
            facts |= plan.validate(head)
            result.history.append(facts)
            if facts["held_out_loss"] < best["loss"]:
                best = {"loss": facts["held_out_loss"], "epoch": epoch + 1, "head": _copy(head)}
            if place is not None:
                state = {"head": head.state_dict(), "optimizer": optimizer.state_dict()}
                save_state(place, mark, {**state, "best": best, "history": result.history})
            log.epoch(facts)
            advance(note=f"held-out loss {facts['held_out_loss']:.3f}")
    head.load_state_dict(best["head"])
    head.eval()
    result.best_epoch = best["epoch"]
    return result


@dataclass(eq=False)
class _Plan:
    """The rows to learn from and to validate on, and one epoch of each."""

    cache: FeatureCache
    rows: NDArray[np.int64]
    cosine: Tensor
    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    identities: NDArray[np.int64]
    dim: int
    config: ConfidenceConfig
    start: float

    @classmethod
    def of(
        cls, head: ConfidenceHead, cache: FeatureCache, targets: Targets, config: ConfidenceConfig
    ) -> "_Plan":
        if tuple(cache.summary.shape[1:]) != tuple(head.summary_shape):
            raise InputError(
                f"{head.kind} head: expected summaries {tuple(head.summary_shape)}, the cache holds "
                f"{tuple(cache.summary.shape[1:])}: it was made for another head"
            )
        train, held_out = split_identities(targets.identities, config.fit.held_out, config.seed)
        if len(train) < 2:
            raise InputError(f"expected at least 2 views to train on, got {len(train)}")
        cosine = torch.from_numpy(targets.cosine)
        dim = cache.mu.shape[1]
        start = initial_kappa(cosine[torch.from_numpy(train)], dim)
        return cls(cache, targets.rows, cosine, train, held_out, targets.identities, dim, config, start)

    def counts(self) -> dict[str, int]:
        return {
            "train_rows": len(self.train),
            "held_out_rows": len(self.held_out),
            "train_identities": len(np.unique(self.identities[self.train])),
            "held_out_identities": len(np.unique(self.identities[self.held_out])),
        }

    def digest(self) -> str:
        return hashlib.sha256(self.rows.tobytes() + self.cosine.numpy().tobytes()).hexdigest()

    def sample(self) -> Tensor:
        """Up to 8,192 training summaries, evenly spread, for heads that normalise their input."""
        chosen = np.linspace(0, len(self.train) - 1, min(len(self.train), 8192)).astype(int)
        return self._summaries(self.train[chosen])

    def _summaries(self, of: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self.cache.summary[self.rows[of]]).float()

    def loss(self, kappa: Tensor, cosine: Tensor) -> Tensor:
        settings = self.config.loss
        variant: Variant = "exact" if settings.variant == "exact" else "released"
        return sphere_confidence_loss_from_cosine(cosine, kappa, self.dim, settings.radius, variant)

    def constant_loss(self) -> float:
        cosine = self.cosine[torch.from_numpy(self.held_out)]
        return float(self.loss(torch.full_like(cosine, self.start), cosine))

    def epoch(self, head: ConfidenceHead, optimizer: torch.optim.Optimizer, epoch: int) -> dict[str, float]:
        settings = self.config.fit
        order = np.random.default_rng([self.config.seed, epoch]).permutation(self.train)
        # A batch of one cannot be normalised: the rest joins the batch before.
        batches = np.array_split(order, max(1, math.ceil(len(order) / settings.batch_size)))
        total, lr = 0.0, 0.0
        head.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed * 1_000_003 + epoch)
            for step, batch in enumerate(batches):
                share = (epoch + step / len(batches)) / settings.epochs
                lr = settings.lr * 0.5 * (1 + math.cos(math.pi * share))
                for group in optimizer.param_groups:
                    group["lr"] = lr
                loss = self.loss(head(self._summaries(batch)).exp(), self.cosine[torch.from_numpy(batch)])
                if not bool(torch.isfinite(loss)):
                    raise self._diverged(batch, epoch)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(head.parameters(), _MOST_GRADIENT)
                optimizer.step()
                total += float(loss.detach()) * len(batch)
        return {"train_loss": total / len(order), "lr": lr}

    def _diverged(self, batch: NDArray[np.int64], epoch: int) -> SpherecfError:
        keys = self.cache.keys(self.rows[batch][:5])
        return SpherecfError(
            f"epoch {epoch + 1}: the loss is not finite, in a batch of {len(batch)} with {', '.join(keys)}, "
            "...; the state of the epoch before is kept. Lower fit.lr, or look at these images."
        )

    @torch.no_grad()
    def validate(self, head: ConfidenceHead) -> dict[str, float]:
        head.eval()
        parts = [
            head(self._summaries(self.held_out[i : i + _CHUNK])) for i in range(0, len(self.held_out), _CHUNK)
        ]
        kappa = torch.cat(parts).exp()
        loss = self.loss(kappa, self.cosine[torch.from_numpy(self.held_out)])
        return {"held_out_loss": float(loss), "held_out_median_kappa": float(kappa.median())}


def _groups(head: ConfidenceHead, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices only: a decayed bias would pull kappa towards 1."""
    matrices = [p for p in head.parameters() if p.ndim > 1]
    vectors = [p for p in head.parameters() if p.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def _copy(head: ConfidenceHead) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in head.state_dict().items()}
