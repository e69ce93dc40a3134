"""Settings of both stages, read from a TOML recipe, and the learning rate schedule."""

import functools
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, dataclass_transform

import torch
from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from spherecf.common.parsing import reading
from spherecf.errors import FileFormatError, InputError
from spherecf.losses import Variant

T = TypeVar("T")
Config = TypeVar("Config", bound="Recipe")

_MAX_INTEGER = 2**53  # float64, and hence JSON in most readers, represents every integer up to this
_MAX_SEED = 10**13  # torch's seeds have 64 bits, and are a million times a run's seed plus step or block
# Rewording of pydantic's messages, to follow the name of a setting.
_WORDS = {
    "Input should be": "must be",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
}
_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def _settings(cls: type[T]) -> type[T]:
    """Decorator: a frozen dataclass whose values pydantic validates; its constructor raises `InputError`."""
    model: Any = pydantic_dataclass(frozen=True, config=_CONFIG)(cls)
    # pydantic builds nested tables without this constructor, and so collects all errors of a recipe with
    # their paths.
    construct = model.__init__

    @functools.wraps(construct)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            construct(self, *args, **kwargs)
        except ValidationError as error:
            raise InputError(f"settings: {_problems(error, model)}") from error

    model.__init__ = __init__
    return model  # type: ignore[no-any-return]


def _problems(error: ValidationError, model: Any) -> str:
    """One line listing each error: the setting, the expected value and the given value."""
    texts = []
    for mistake in error.errors(include_url=False, include_context=False):
        *tables, key = mistake["loc"] or ("",)
        name, text = ".".join(map(str, (*tables, key))), mistake["msg"]
        if mistake["type"] == "unexpected_keyword_argument":
            valid = fields(functools.reduce(getattr, map(str, tables), model()))
            texts.append(f"unknown setting {name}; known: {', '.join(item.name for item in valid)}")
        elif mistake["type"] == "value_error":
            texts.append(f"{name}: {text}".replace("Value error, ", "").removeprefix(": "))
        else:
            requirement = "must be a table" if mistake["type"] == "dataclass_type" else text
            for phrase, replacement in _WORDS.items():
                requirement = requirement.replace(phrase, replacement)
            try:
                texts.append(f"{name} {requirement}, got {mistake['input']!r}")
            except ValueError:  # Python does not print integers of more than 4300 digits
                texts.append(f"{name} {requirement}")
    return "; ".join(texts)


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Options after a round trip through JSON, since the run's record stores them: no dates, no NaN."""
    try:
        values: dict[str, Any] = json.loads(json.dumps(options, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"expected plain finite values: {error}") from error
    return values


# Strict: "3", 3.0 and true are not integers. A whole table cannot be strict: it would reject a mapping.
_Bool = Annotated[bool, Field(strict=True)]
_Integer = Annotated[int, Field(strict=True, ge=-_MAX_INTEGER, le=_MAX_INTEGER)]
_Seed = Annotated[_Integer, Field(ge=0, le=_MAX_SEED)]
_Float = Annotated[float, Field(strict=True)]
_Options = Annotated[dict[str, Any], AfterValidator(_plain)]


@_settings
class ScheduleSettings:
    """Learning rate schedule, see `lr_factor`.

    Attributes:
        name: the schedule.
        warmup: epochs of linear increase to the base rate; may be fractional.
        power: exponent of "polynomial".
        step_size: epochs between decreases of "step".
        milestones: epochs at which "step" decreases the rate, instead of ``step_size``.
        gamma: factor of each decrease, of "step" and "plateau".
        patience: epochs without improvement before "plateau" decreases the rate.
    """

    name: Literal["cosine", "polynomial", "step", "plateau", "constant"] = "cosine"
    warmup: Annotated[_Float, Field(ge=0)] = 0.0
    power: _Float = 2.0
    step_size: Annotated[_Integer, Field(ge=1)] = 2
    milestones: tuple[_Float, ...] = ()
    gamma: Annotated[_Float, Field(gt=0, le=1)] = 0.5
    patience: Annotated[_Integer, Field(ge=0)] = 2


@_settings
class OptimizerSettings:
    """Optimizer, weight decay and gradient clipping.

    Attributes:
        name: the optimizer.
        lr: base learning rate.
        weight_decay: of matrices.
        momentum: of "sgd".
        decay_vectors: also apply weight decay to biases and normalisations.
        clip_norm: maximum norm of the gradient of all weights, 0 for no limit.
        clip_value: maximum magnitude of each gradient entry, 0 for no limit.
        fused: update all tensors in one kernel; the same step up to rounding, several times faster for large
            heads.
    """

    name: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: Annotated[_Float, Field(gt=0)] = 5e-4
    weight_decay: Annotated[_Float, Field(ge=0)] = 0.05
    momentum: Annotated[_Float, Field(ge=0, lt=1)] = 0.9
    decay_vectors: _Bool = False
    clip_norm: Annotated[_Float, Field(ge=0)] = 0.0
    clip_value: Annotated[_Float, Field(ge=0)] = 0.0
    fused: _Bool = False


@_settings
class EngineSettings:
    """Speed and memory options, which affect the trained weights hardly or not at all.

    Attributes:
        precision: of the network's arithmetic, see `precision_on`; weights and losses stay in float32. "tf32"
            (GPU only) is float32 with factors rounded to 10 bits in convolutions and matrix products. With
            "bfloat16" and "float16" on a GPU that supports bfloat16, stage 1 also multiplies embeddings and
            prototypes in bfloat16.
        compile: compile the network with torch.compile.
        channels_last: memory layout of the network's maps.
        accumulate: micro-batches per step.
        checkpointing: recompute activations in the backward pass instead of storing them.
        workers: decoders per rank. They are processes if 100,000 images or more are read in all epochs, else
            threads; 1 is always a thread; 0 chooses automatically, with processes for a GPU only.
        sync_batch_norm: compute batch statistics over all ranks.
        save_minutes: minutes between checkpoints within an epoch.
        keep: number of checkpoints on disk.
        on_nan: "stop" if a loss or gradient is not finite, or "skip" the batch and count it.
        read_every: steps between reads of the losses, which wait for the device and report bad batches; 0 for
            20 on a GPU and 1 on the CPU.
    """

    precision: Literal["auto", "float32", "tf32", "bfloat16", "float16"] = "auto"
    compile: _Bool = False
    channels_last: _Bool = True
    accumulate: Annotated[_Integer, Field(ge=1)] = 1
    checkpointing: _Bool = False
    workers: Annotated[_Integer, Field(ge=0)] = 0
    sync_batch_norm: _Bool = True
    save_minutes: Annotated[_Float, Field(gt=0)] = 15.0
    keep: Annotated[_Integer, Field(ge=1)] = 2
    on_nan: Literal["stop", "skip"] = "stop"
    read_every: Annotated[_Integer, Field(ge=0)] = 0

    def precision_on(self, device: torch.device) -> str:
        """The precision of the network on a device.

        "auto" is bfloat16 on GPUs that support it (compute capability 8.0 or more), float16 on those that
        have tensor cores for it only (7.0 or more), and float32 elsewhere.

        Example:
            >>> EngineSettings().precision_on(torch.device("cpu"))
            'float32'
        """
        if self.precision != "auto":
            return self.precision
        capability = _capability(device)
        return "bfloat16" if capability >= (8, 0) else "float16" if capability >= (7, 0) else "float32"

    def products_on(self, device: torch.device) -> torch.dtype:
        """The type of the factors of stage 1's products of embeddings and prototypes.

        Example:
            >>> EngineSettings(precision="bfloat16").products_on(torch.device("cpu"))
            torch.float32
        """
        is_half = self.precision_on(device) in ("bfloat16", "float16")
        return torch.bfloat16 if is_half and _capability(device) >= (8, 0) else torch.float32


def _capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a GPU; (0, 0) for other devices."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


class Recipe:
    """Base class of the configurations, with one attribute per table of a TOML recipe."""

    _renamed: ClassVar[Mapping[str, str]] = {}
    """Current names of renamed settings by "table.former_name": old recipes and records still load."""

    @classmethod
    def load(cls: type[Config], path: str | Path) -> Config:
        """Read a TOML recipe.

        Raises:
            FileFormatError: not TOML, an unknown table or key, or a value of the wrong type or out of range.
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
        """Build from nested mappings, the inverse of `to_dict`; missing settings have their defaults.

        Raises:
            InputError: unknown names, wrong types, values out of range.
        """
        # Fill in defaults here, since those of a table (optimizer, schedule) differ between recipes.
        defaults, values = cls().to_dict(), dict(content)
        for table, given in content.items():
            if isinstance(default := defaults.get(table), dict) and isinstance(given, Mapping):
                names = {key: cls._renamed.get(f"{table}.{key}", key) for key in given}
                for key, name in names.items():
                    if key != name and name in given:
                        raise InputError(
                            f"{table}.{key} is the former name of {table}.{name}; give one of them"
                        )
                values[table] = {**default, **{names[key]: value for key, value in given.items()}}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The settings as nested dictionaries."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    def with_seed(self: Config, seed: int) -> Config:
        """A copy with another seed of initialisation, shuffling and validation split."""
        return replace(self, seed=seed)  # type: ignore[type-var]


@_settings
class HeadSettings:
    """The head.

    Attributes:
        kind: a name in `spherecf.models.HEADS`.
    """

    kind: str = "light"


@_settings
class ViewSettings:
    """Views of each training image: one clean, the others degraded.

    Attributes:
        degraded: number of degraded views per image.
        recipe: name of the degradation recipe.
        seed: of the degradations.
        flip: add a mirrored copy of every view.
        per_epoch: "all" views of each image in every epoch, or "one" drawn at random.
    """

    degraded: Annotated[_Integer, Field(ge=0)] = 3
    recipe: str = "train"
    seed: _Integer = 0
    flip: _Bool = False
    per_epoch: Literal["all", "one"] = "all"


@_settings
class FeatureSettings:
    """Source of the backbone's features.

    Attributes:
        source: "cache" (computed once, stored on disk), "stream" (the backbone runs in every epoch), or
            "auto" (a cache if the disk has space for it).
        dtype: of the cached values.
        finetune: also train the backbone, with frozen batch statistics; implies streaming.
        centre: share of the mean direction of the training images that the model subtracts from every
            direction (`spherecf.models.Centring`); needs a cache.
    """

    source: Literal["auto", "cache", "stream"] = "auto"
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    finetune: _Bool = False
    centre: Annotated[_Float, Field(ge=0, le=1)] = 0.0

    def __post_init__(self) -> None:
        if self.finetune and self.source == "cache":
            raise ValueError("finetune needs source stream: a cache contains features of the old backbone")
        if self.centre and (self.finetune or self.source == "stream"):
            raise ValueError("centre needs a cache: source auto or cache, without finetune")


@_settings
class PrototypeSettings:
    """Identity prototypes.

    Attributes:
        file: a classifier's weights; "" for class means.
        leave_one_out: leave a sample out of its own class mean.
    """

    file: str = ""
    leave_one_out: _Bool = True


Objectives = Literal["scf", "scf-gaussian", "pfe-vmf", "pfe-gaussian", "probface", "cr-fiqa", "rts"]


@_settings
class LossSettings:
    """The training objective of a head.

    Attributes:
        objective: "scf", or a competing method in `Objectives`.
        variant: of "scf": "exact", or "released" for the formula of the published code.
        radius: r of the sphere, a constant offset of the loss and the scores.
    """

    objective: Objectives = "scf"
    variant: Variant = "exact"
    radius: Annotated[_Float, Field(gt=0)] = 64.0


@_settings
class FitSettings:
    """Epochs, batches and validation of stage 2.

    Attributes:
        epochs: passes over the features.
        batch_size: rows per step over all ranks.
        held_out: fraction of the identities used for validation; 0 trains on all and keeps the last epoch.
        per_identity: consecutive rows of the same identity in a batch, for pairwise objectives.
    """

    epochs: Annotated[_Integer, Field(ge=1)] = 6
    batch_size: Annotated[_Integer, Field(ge=2)] = 512
    held_out: Annotated[_Float, Field(ge=0, lt=1)] = 0.1
    per_identity: Annotated[_Integer, Field(ge=2)] = 4


@_settings
class ConfidenceConfig(Recipe):
    """Settings of `train_confidence`; the TOML recipe has one table per attribute.

    Example:
        >>> config = ConfidenceConfig.from_dict({"fit": {"epochs": 3}, "seed": 1})
        >>> config.fit.epochs, config.seed, config.loss.variant
        (3, 1, 'exact')
    """

    seed: _Seed = 0
    head: HeadSettings = field(default_factory=HeadSettings)
    views: ViewSettings = field(default_factory=ViewSettings)
    features: FeatureSettings = field(default_factory=FeatureSettings)
    prototypes: PrototypeSettings = field(default_factory=PrototypeSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    fit: FitSettings = field(default_factory=FitSettings)
    # clip_norm: a few faces with large kappa and low cosine dominate dL / d log kappa = kappa (A_d - cos)
    optimizer: OptimizerSettings = field(default_factory=lambda: OptimizerSettings(clip_norm=100.0))
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)


@_settings
class NetworkSettings:
    """The backbone.

    Attributes:
        name: a name in `spherecf.models.NETWORKS`.
        dim: dimension of the embedding.
        options: further arguments of `spherecf.models.make_backbone`.
        preprocessing: a preset of `spherecf.models.PRESETS`.
        start: checkpoint for the initial weights, in any form that `spherecf.models.load_backbone` reads; ""
            for random initialisation.
    """

    name: str = "r50"
    dim: _Integer = 512
    options: _Options = field(default_factory=dict)
    preprocessing: str = "insightface"
    start: str = ""


@_settings
class MarginSettings:
    """The margin softmax.

    Attributes:
        kind: a name in `spherecf.losses.MARGINS`.
        options: arguments of the margin; missing ones have the margin's defaults.
        sample_rate: fraction of the identities outside the batch in each step's softmax (Partial FC).
    """

    kind: str = "arcface"
    options: _Options = field(default_factory=dict)
    sample_rate: Annotated[_Float, Field(gt=0, le=1)] = 1.0


@_settings
class AugmentSettings:
    """Augmentation of stage 1.

    Attributes:
        flip: mirror half of the images.
        degraded: fraction of the images that are degraded.
        recipe: name of the degradation recipe.
    """

    flip: _Bool = True
    degraded: Annotated[_Float, Field(ge=0, le=1)] = 0.0
    recipe: str = "train"


@_settings
class BackboneFit:
    """Epochs and batches of stage 1.

    Attributes:
        epochs: passes over the data.
        batch_size: images per step over all ranks.
        min_images: identities with fewer images are left out.
    """

    epochs: Annotated[_Integer, Field(ge=1)] = 20
    batch_size: Annotated[_Integer, Field(ge=2)] = 1024
    min_images: Annotated[_Integer, Field(ge=1)] = 1


@_settings
class BackboneConfig(Recipe):
    """Settings of `train_backbone`; the TOML recipe has one table per attribute.

    The defaults are those of arcface_torch for MS1MV2: SGD, rate 0.1 decaying as (1 - t)^2, 20 epochs.

    Example:
        >>> config = BackboneConfig.from_dict({"network": {"name": "mbf"}, "optimizer": {"lr": 0.05}})
        >>> config.network.dim, config.optimizer.name, config.schedule.name
        (512, 'sgd', 'polynomial')
    """

    _renamed: ClassVar[Mapping[str, str]] = {"fit.least": "min_images"}

    seed: _Seed = 0
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


def lr_factor(
    settings: ScheduleSettings, epochs: int, progress: float, history: Sequence[Mapping[str, Any]] = ()
) -> float:
    """Factor on the base learning rate.

    Args:
        settings: name and parameters of the schedule.
        epochs: total number of epochs.
        progress: finished epochs, including a fraction: 2.5 in the middle of the third epoch.
        history: metrics of the finished epochs; ``"plateau"`` uses their loss, on held-out identities if any.

    Formulas, with t = (progress - warmup) / (epochs - warmup):
        cosine: (1 + cos(pi t)) / 2. polynomial: (1 - t)^power. constant: 1.
        step: gamma^k, where k is the number of complete periods of ``step_size`` epochs, or of ``milestones``
        passed.
        plateau: gamma^k, where k counts how often the loss has not decreased by 1e-4 of its magnitude for
        more than ``patience`` epochs.
        During the ``warmup`` epochs every factor is multiplied by progress / warmup.

    Example:
        >>> halving = ScheduleSettings("step", step_size=2, gamma=0.5)
        >>> [lr_factor(halving, 30, epoch) for epoch in (0.0, 1.9, 2.0, 4.0)]
        [1.0, 1.0, 0.5, 0.25]
    """
    warmup = settings.warmup
    ramp = min(1.0, progress / warmup) if warmup > 0 else 1.0
    t = min(1.0, max(0.0, (progress - warmup) / (epochs - warmup))) if epochs > warmup else 0.0
    if settings.name == "cosine":
        return ramp * 0.5 * (1 + math.cos(math.pi * t))
    if settings.name == "polynomial":
        return float(ramp * (1 - t) ** settings.power)
    if settings.name == "step":
        milestones_passed = sum(progress >= milestone for milestone in settings.milestones)
        periods = milestones_passed if settings.milestones else int(progress) // settings.step_size
        return float(ramp * settings.gamma**periods)
    if settings.name == "plateau":
        return float(ramp * settings.gamma ** _plateaus(history, settings.patience))
    return ramp


def _plateaus(history: Sequence[Mapping[str, Any]], patience: int) -> int:
    """Number of times that the loss has not improved for more than ``patience`` epochs."""
    plateaus, best, waited = 0, math.inf, 0
    for metrics in history:
        loss = metrics.get("held_out_loss", metrics["train_loss"])
        # A negative log-density may be negative: the required decrease is relative to its magnitude.
        if loss < best - 1e-4 * abs(best) if math.isfinite(best) else True:
            best, waited = loss, 0
        else:
            waited += 1
        if waited > patience:
            plateaus, waited = plateaus + 1, 0
    return plateaus
