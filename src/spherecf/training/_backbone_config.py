"""What a training of a backbone is asked to do."""

from dataclasses import dataclass, field, replace
from typing import Any

from spherecf.training._settings import (
    EngineSettings,
    OptimizerSettings,
    Recipe,
    ScheduleSettings,
    told,
)


@dataclass(frozen=True)
class NetworkSettings:
    """``name`` in `spherecf.models.NETWORKS`, ``options`` of `spherecf.models.make_backbone` beside ``dim``.

    ``preprocessing``: a preset of `spherecf.models.PRESETS`. ``start``: a checkpoint to begin with (any that
    `spherecf.models.load_backbone` reads); empty: from nothing.
    """

    name: str = "r50"
    dim: int = 512
    options: dict[str, Any] = field(default_factory=dict)
    preprocessing: str = "insightface"
    start: str = ""


@dataclass(frozen=True)
class MarginSettings:
    """``kind`` in `spherecf.losses.MARGINS`, and ``options``, its arguments (its own defaults otherwise).

    ``sample_rate``: share of the other identities a step looks at (partial FC).
    """

    kind: str = "arcface"
    options: dict[str, Any] = field(default_factory=dict)
    sample_rate: float = 1.0


@dataclass(frozen=True)
class AugmentSettings:
    """``flip``: mirror half of the images. ``degraded``: share of images degraded by ``recipe``."""

    flip: bool = True
    degraded: float = 0.0
    recipe: str = "train"


@dataclass(frozen=True)
class BackboneFit:
    """``batch_size`` images of all ranks together; ``least``: identities with fewer images are left out."""

    epochs: int = 20
    batch_size: int = 1024
    least: int = 1


@dataclass(frozen=True)
class BackboneConfig(Recipe):
    """Settings of `train_backbone`; the TOML recipe has one table per attribute.

    The defaults are those of arcface_torch for MS1MV2: SGD, rate 0.1 falling by (1 - t)^2, 20 epochs.

    Example:
        >>> config = BackboneConfig.from_dict({"network": {"name": "mbf"}, "optimizer": {"lr": 0.05}})
        >>> config.network.dim, config.optimizer.name, config.schedule.name
        (512, 'sgd', 'polynomial')
    """

    seed: int = 0
    network: NetworkSettings = field(default_factory=NetworkSettings)
    margin: MarginSettings = field(default_factory=MarginSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    fit: BackboneFit = field(default_factory=BackboneFit)
    optimizer: OptimizerSettings = field(
        default_factory=lambda: OptimizerSettings(
            name="sgd", lr=0.1, weight_decay=5e-4, decay_vectors=True, clip_norm=5.0
        )
    )
    schedule: ScheduleSettings = field(default_factory=lambda: ScheduleSettings("polynomial"))
    engine: EngineSettings = field(default_factory=EngineSettings)

    def problems(self) -> list[str]:
        """What is out of range."""
        fit, augment = self.fit, self.augment
        return [
            *told(
                (fit.epochs < 1, f"fit.epochs must be at least 1, got {fit.epochs}"),
                (fit.batch_size < 2, f"fit.batch_size must be at least 2, got {fit.batch_size}"),
                (fit.least < 1, f"fit.least must be at least 1, got {fit.least}"),
                (
                    not 0 < self.margin.sample_rate <= 1,
                    f"margin.sample_rate must lie in (0, 1], got {self.margin.sample_rate}",
                ),
                (
                    not 0 <= augment.degraded <= 1,
                    f"augment.degraded must lie in [0, 1], got {augment.degraded}",
                ),
            ),
            *super().problems(),
        ]

    def with_seed(self, seed: int) -> "BackboneConfig":
        """The same with another seed."""
        return replace(self, seed=seed)
