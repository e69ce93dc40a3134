"""What a training of a confidence head is asked to do: a few groups of settings, read from a TOML recipe."""

from dataclasses import dataclass, field, replace

from spherecf.losses import Variant
from spherecf.training._settings import (
    EngineSettings,
    OptimizerSettings,
    Recipe,
    ScheduleSettings,
    told,
)

OBJECTIVES = ("scf", "scf-gaussian", "pfe-vmf", "pfe-gaussian")
FEATURES = ("auto", "cache", "stream")
DTYPES = ("float16", "bfloat16", "float32")
SHOWN = ("all", "one")


@dataclass(frozen=True)
class HeadSettings:
    """``kind`` of head (`spherecf.models.HEADS`)."""

    kind: str = "light"


@dataclass(frozen=True)
class ViewSettings:
    """Each image is shown clean and ``degraded`` times degraded by ``recipe``; ``flip``: also mirrored.

    ``per_epoch``: "all" views of each image in every epoch, or "one" drawn at random.
    """

    degraded: int = 3
    recipe: str = "train"
    seed: int = 0
    flip: bool = False
    per_epoch: str = "all"


@dataclass(frozen=True)
class FeatureSettings:
    """Where the backbone's features come from.

    ``source``: "cache" (one pass, kept on disk), "stream" (the backbone runs in every epoch), or "auto": a
    cache if it fits. ``dtype``: of the numbers in a cache. ``finetune``: train the backbone as well, its
    batch statistics frozen; streams.
    """

    source: str = "auto"
    dtype: str = "float16"
    finetune: bool = False


@dataclass(frozen=True)
class PrototypeSettings:
    """``file``: a classifier's weights; empty: class means, by ``leave_one_out`` without the sample."""

    file: str = ""
    leave_one_out: bool = True


@dataclass(frozen=True)
class LossSettings:
    """``objective`` "scf", or a rival: "scf-gaussian", "pfe-vmf", "pfe-gaussian".

    ``variant`` of "scf": "exact" or "released". ``radius`` r of the sphere shifts the loss and the scores.
    """

    objective: str = "scf"
    variant: str = "exact"
    radius: float = 64.0


@dataclass(frozen=True)
class FitSettings:
    """``batch_size`` rows of all ranks together; a ``held_out`` share of the identities validates.

    ``held_out`` 0: learn from all, keep the last epoch. ``per_identity``: rows of one identity side by side
    in a batch, for pairwise objectives.
    """

    epochs: int = 6
    batch_size: int = 512
    held_out: float = 0.1
    per_identity: int = 4


@dataclass(frozen=True)
class ConfidenceConfig(Recipe):
    """Settings of `train_confidence`; the TOML recipe has one table per attribute.

    Example:
        >>> config = ConfidenceConfig.from_dict({"fit": {"epochs": 3}, "seed": 1})
        >>> config.fit.epochs, config.seed, config.loss.variant
        (3, 1, 'exact')
    """

    seed: int = 0
    head: HeadSettings = field(default_factory=HeadSettings)
    views: ViewSettings = field(default_factory=ViewSettings)
    features: FeatureSettings = field(default_factory=FeatureSettings)
    prototypes: PrototypeSettings = field(default_factory=PrototypeSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    fit: FitSettings = field(default_factory=FitSettings)
    # clip_norm: of dL / d log kappa = kappa (A_d - cos), which a few sure and wrong faces dominate
    optimizer: OptimizerSettings = field(default_factory=lambda: OptimizerSettings(clip_norm=100.0))
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)

    def problems(self) -> list[str]:
        """What is out of range."""
        fit, loss, views, features = self.fit, self.loss, self.views, self.features
        variants = Variant.__args__  # type: ignore[attr-defined]
        return [
            *told(
                (fit.epochs < 1, f"fit.epochs must be at least 1, got {fit.epochs}"),
                (fit.batch_size < 2, f"fit.batch_size must be at least 2, got {fit.batch_size}"),
                (fit.per_identity < 2, f"fit.per_identity must be at least 2, got {fit.per_identity}"),
                (not 0 <= fit.held_out < 1, f"fit.held_out must lie in [0, 1), got {fit.held_out}"),
                (not loss.radius > 0, f"loss.radius must be positive, got {loss.radius}"),
                (
                    loss.variant not in variants,
                    f"loss.variant must be exact or released, got {loss.variant!r}",
                ),
                (
                    loss.objective not in OBJECTIVES,
                    f"loss.objective must be one of {OBJECTIVES}, got {loss.objective!r}",
                ),
                (views.degraded < 0, f"views.degraded must not be negative, got {views.degraded}"),
                (
                    views.per_epoch not in SHOWN,
                    f"views.per_epoch must be all or one, got {views.per_epoch!r}",
                ),
                (
                    features.source not in FEATURES,
                    f"features.source must be one of {FEATURES}, got {features.source!r}",
                ),
                (
                    features.dtype not in DTYPES,
                    f"features.dtype must be one of {DTYPES}, got {features.dtype!r}",
                ),
                (
                    features.finetune and features.source == "cache",
                    "features.finetune needs features.source stream: a cache shows an old backbone",
                ),
            ),
            *super().problems(),
        ]

    def with_seed(self, seed: int) -> "ConfidenceConfig":
        """The same with another seed of initialisation, shuffling and validation split."""
        return replace(self, seed=seed)
