"""Settings of both stages, read from a TOML recipe, and the schedule of the learning rate."""

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from spherecf.common.parsing import reading
from spherecf.errors import FileFormatError, InputError
from spherecf.losses import Variant

Config = TypeVar("Config", bound="Recipe")

OPTIMIZERS = ("sgd", "adam", "adamw")
PRECISIONS = ("float32", "bfloat16", "float16")
ON_NAN = ("stop", "skip")

_MAX_INTEGER = 2**53  # what every number in a record of a run, and float64, holds exactly


@dataclass(frozen=True)
class ScheduleSettings:
    """Learning rate over time, see `lr_factor`; ``warmup`` and ``step_size`` in epochs."""

    name: str = "cosine"
    warmup: float = 0.0
    power: float = 2.0
    step_size: int = 2
    milestones: tuple[float, ...] = ()
    gamma: float = 0.5
    patience: int = 2

    def problems(self) -> list[str]:
        """What is out of range."""
        return told(
            (self.name not in SCHEDULES, f"schedule.name must be one of {SCHEDULES}, got {self.name!r}"),
            (self.warmup < 0, f"schedule.warmup must not be negative, got {self.warmup}"),
            (self.step_size < 1, f"schedule.step_size must be at least 1, got {self.step_size}"),
            (not 0 < self.gamma <= 1, f"schedule.gamma must lie in (0, 1], got {self.gamma}"),
            (self.patience < 0, f"schedule.patience must not be negative, got {self.patience}"),
        )


@dataclass(frozen=True)
class OptimizerSettings:
    """Which optimizer moves the weights, and what keeps its steps small.

    ``decay_vectors``: weight decay also for biases and normalisations. ``clip_norm``, ``clip_value``: largest
    norm of the whole gradient and size of one of its numbers, 0 for no limit. ``fused``: all tensors in one
    kernel; the same step up to rounding, several times faster for large heads.
    """

    name: str = "adamw"
    lr: float = 5e-4
    weight_decay: float = 0.05
    momentum: float = 0.9
    decay_vectors: bool = False
    clip_norm: float = 0.0
    clip_value: float = 0.0
    fused: bool = False

    def problems(self) -> list[str]:
        """What is out of range."""
        return told(
            (self.name not in OPTIMIZERS, f"optimizer.name must be one of {OPTIMIZERS}, got {self.name!r}"),
            (not self.lr > 0, f"optimizer.lr must be positive, got {self.lr}"),
            (self.weight_decay < 0, f"optimizer.weight_decay must not be negative, got {self.weight_decay}"),
            (not 0 <= self.momentum < 1, f"optimizer.momentum must lie in [0, 1), got {self.momentum}"),
            (self.clip_norm < 0, f"optimizer.clip_norm must not be negative, got {self.clip_norm}"),
            (self.clip_value < 0, f"optimizer.clip_value must not be negative, got {self.clip_value}"),
        )


@dataclass(frozen=True)
class EngineSettings:
    """How it is computed, which changes speed and memory and not, or hardly, what is learnt.

    ``precision``: of the network's arithmetic; weights and losses stay float32. ``accumulate``: parts a batch
    is cut into, one after the other. ``checkpointing``: activations are computed again in the backward pass
    instead of kept. ``workers``: decoding threads of each rank, 0 for one per processor.
    ``save_minutes``: between checkpoints within an epoch. ``keep``: checkpoints on disk. ``on_nan``: "stop",
    or "skip" the batch and count it. ``sync_batch_norm``: statistics of the whole batch, not a rank's part.
    """

    precision: str = "float32"
    compile: bool = False
    channels_last: bool = True
    accumulate: int = 1
    checkpointing: bool = False
    workers: int = 0
    sync_batch_norm: bool = True
    save_minutes: float = 15.0
    keep: int = 2
    on_nan: str = "stop"

    def problems(self) -> list[str]:
        """What is out of range."""
        return told(
            (
                self.precision not in PRECISIONS,
                f"engine.precision must be one of {PRECISIONS}, got {self.precision!r}",
            ),
            (self.accumulate < 1, f"engine.accumulate must be at least 1, got {self.accumulate}"),
            (self.workers < 0, f"engine.workers must not be negative, got {self.workers}"),
            (not self.save_minutes > 0, f"engine.save_minutes must be positive, got {self.save_minutes}"),
            (self.keep < 1, f"engine.keep must be at least 1, got {self.keep}"),
            (self.on_nan not in ON_NAN, f"engine.on_nan must be one of {ON_NAN}, got {self.on_nan!r}"),
        )


def told(*checks: tuple[bool, str]) -> list[str]:
    """The texts of what is wrong."""
    return [text for bad, text in checks if bad]


class Recipe:
    """Base of the configurations: frozen dataclasses of settings, read from TOML with one table each."""

    def problems(self) -> list[str]:
        """What is out of range, of all tables that can tell."""
        tables = (getattr(self, item.name) for item in fields(self))  # type: ignore[arg-type]
        seed = getattr(self, "seed", 0)
        return [
            *told((seed < 0, f"seed must not be negative, got {seed}")),
            *(text for table in tables if hasattr(table, "problems") for text in table.problems()),
        ]

    def __post_init__(self) -> None:
        if wrong := self.problems():
            raise InputError("settings: " + "; ".join(wrong))

    @classmethod
    def load(cls: type[Config], path: str | Path) -> Config:
        """Read a TOML recipe.

        Raises:
            FileFormatError: not TOML, an unknown table or key, or a value of another type or out of range.
        """
        if not Path(path).exists():
            raise FileFormatError(path, "no such recipe.")
        hint = "See recipes/README.md for the settings."
        with reading(path, "a TOML recipe", hint):
            content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        try:
            return cls.from_dict(content)
        except InputError as error:
            raise FileFormatError(path, f"{error}.", hint) from error

    @classmethod
    def from_dict(cls: type[Config], content: Mapping[str, Any]) -> Config:
        """From nested mappings, as `to_dict` gives them; what is absent has its default.

        Raises:
            InputError: unknown names, wrong types, values out of range.
        """
        config: Config = _build(cls(), content, "")
        return config

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]


def _build(default: Any, content: Mapping[str, Any], where: str) -> Any:
    """``default`` with the values of ``content``: a table's defaults may differ from recipe to recipe."""
    types = get_type_hints(type(default))
    known = {item.name: types[item.name] for item in fields(default)}
    if unknown := sorted(set(content) - set(known)):
        raise InputError(f"unknown setting {where}{unknown[0]}; known: {', '.join(known)}")
    values = {}
    for name, value in content.items():
        if is_dataclass(known[name]):
            if not isinstance(value, Mapping):
                raise InputError(f"{where}{name}: expected a table, got {value!r}")
            values[name] = _build(getattr(default, name), value, f"{where}{name}.")
        else:
            values[name] = _value(known[name], value, f"{where}{name}")
    return replace(default, **values)


def _value(wanted: Any, value: Any, where: str) -> Any:
    if get_origin(wanted) is tuple and isinstance(value, list | tuple):
        inner = get_args(wanted)[0]
        return tuple(_value(inner, item, where) for item in value)
    if get_origin(wanted) is dict and isinstance(value, Mapping):
        return _plain(value, where)
    if type(value) is int and abs(value) > _MAX_INTEGER:
        raise InputError(f"{where}: expected at most 2^53, got an integer of {value.bit_length()} bits")
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted or (wanted is float and not math.isfinite(value)):
        raise InputError(f"{where}: expected {getattr(wanted, '__name__', wanted)}, got {value!r}")
    return value


def _plain(value: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Options as they are, if they can be written into the record of a run: no dates, no NaN."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{where}: expected plain finite values: {error}") from error
    return plain


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


SCHEDULES = ("cosine", "polynomial", "step", "plateau", "constant")


def lr_factor(
    settings: ScheduleSettings, epochs: int, progress: float, history: Sequence[Mapping[str, Any]] = ()
) -> float:
    """What the base learning rate is multiplied by.

    Args:
        settings: name and parameters.
        epochs: of the whole training.
        progress: epochs done so far, with fraction: 2.5 in the middle of the third.
        history: facts of the finished epochs; ``"plateau"`` looks at their loss, on held-out people if any.

    Formulas, with t = (progress - warmup) / (epochs - warmup):
        cosine: (1 + cos(pi t)) / 2. polynomial: (1 - t)^power. constant: 1.
        step: gamma^k, k the finished periods of ``step_size`` epochs, or the ``milestones`` passed.
        plateau: gamma^k, k how often the loss had not fallen by 1e-4 (relative) for more than ``patience``
        epochs. Before ``warmup`` epochs, any of them is multiplied by progress / warmup.

    Raises:
        InputError: an unknown name.

    Example:
        >>> halving = ScheduleSettings("step", step_size=2, gamma=0.5)
        >>> [lr_factor(halving, 30, epoch) for epoch in (0.0, 1.9, 2.0, 4.0)]
        [1.0, 1.0, 0.5, 0.25]
    """
    warm = settings.warmup
    ramp = min(1.0, progress / warm) if warm > 0 else 1.0
    share = min(1.0, max(0.0, (progress - warm) / (epochs - warm))) if epochs > warm else 0.0
    if settings.name == "cosine":
        return ramp * 0.5 * (1 + math.cos(math.pi * share))
    if settings.name == "polynomial":
        return float(ramp * (1 - share) ** settings.power)
    if settings.name == "step":
        passed = sum(progress >= mile for mile in settings.milestones)
        periods = passed if settings.milestones else int(progress) // settings.step_size
        return float(ramp * settings.gamma**periods)
    if settings.name == "plateau":
        return float(ramp * settings.gamma ** _plateaus(history, settings.patience))
    if settings.name == "constant":
        return ramp
    raise InputError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {settings.name!r}")


def _plateaus(history: Sequence[Mapping[str, Any]], patience: int) -> int:
    found, best, waited = 0, math.inf, 0
    for facts in history:
        loss = facts.get("held_out_loss", facts["train_loss"])
        # Losses of densities may be negative: compare by their size.
        if loss < best - 1e-4 * abs(best) if math.isfinite(best) else True:
            best, waited = loss, 0
        else:
            waited += 1
        if waited > patience:
            found, waited = found + 1, 0
    return found
