"""Settings of both stages, read from a TOML recipe, and the schedule of the learning rate."""

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

_MAX_INTEGER = 2**53  # float64, and so JSON in most readers, holds every integer up to here
# The wording of pydantic, in messages that begin with the name of a setting.
_WORDS = {
    "Input should be": "must be",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
}
_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def _settings(cls: type[T]) -> type[T]:
    """A frozen dataclass whose values pydantic checks; its constructor raises `InputError`."""
    model: Any = pydantic_dataclass(frozen=True, config=_CONFIG)(cls)
    # Tables inside a mapping are built without this constructor, so that pydantic collects all mistakes of a
    # recipe, each with its path.
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
    """Each mistake with the setting's name, what is expected and what came."""
    texts = []
    for mistake in error.errors(include_url=False, include_context=False):
        *tables, key = mistake["loc"] or ("",)
        name, text = ".".join(map(str, (*tables, key))), mistake["msg"]
        if mistake["type"] == "unexpected_keyword_argument":
            known = fields(functools.reduce(getattr, map(str, tables), model()))
            texts.append(f"unknown setting {name}; known: {', '.join(item.name for item in known)}")
        elif mistake["type"] == "value_error":
            texts.append(f"{name}: {text}".replace("Value error, ", "").removeprefix(": "))
        else:
            wanted = "must be a table" if mistake["type"] == "dataclass_type" else text
            for word, ours in _WORDS.items():
                wanted = wanted.replace(word, ours)
            try:
                texts.append(f"{name} {wanted}, got {mistake['input']!r}")
            except ValueError:  # Python prints no integer of more than 4300 digits
                texts.append(f"{name} {wanted}")
    return "; ".join(texts)


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Options as JSON gives them back, since the record of a run holds them: no dates, no NaN."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(options, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"expected plain finite values: {error}") from error
    return plain


# Strict: "3", 3.0 and true are no integers. A whole table cannot be strict, or it would refuse a mapping.
_Bool = Annotated[bool, Field(strict=True)]
_Integer = Annotated[int, Field(strict=True, ge=-_MAX_INTEGER, le=_MAX_INTEGER)]
_Float = Annotated[float, Field(strict=True)]
_Options = Annotated[dict[str, Any], AfterValidator(_plain)]


@_settings
class ScheduleSettings:
    """Learning rate over time, see `lr_factor`; ``warmup`` and ``step_size`` in epochs."""

    name: Literal["cosine", "polynomial", "step", "plateau", "constant"] = "cosine"
    warmup: Annotated[_Float, Field(ge=0)] = 0.0
    power: _Float = 2.0
    step_size: Annotated[_Integer, Field(ge=1)] = 2
    milestones: tuple[_Float, ...] = ()
    gamma: Annotated[_Float, Field(gt=0, le=1)] = 0.5
    patience: Annotated[_Integer, Field(ge=0)] = 2


@_settings
class OptimizerSettings:
    """Which optimizer updates the weights, and what bounds its steps.

    ``decay_vectors``: weight decay also for biases and normalisations. ``clip_norm``, ``clip_value``: maximum
    norm of the whole gradient and magnitude of its entries, 0 for no limit. ``fused``: all tensors in one
    kernel; the same step up to rounding, several times faster for large heads.
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
    """How it is computed, which changes speed and memory, and what is learnt hardly or not at all.

    ``precision``: of the network's arithmetic, see `precision_on`; weights and losses stay float32. "tf32",
    on a GPU, is float32 whose convolutions and products round what they multiply to 10 bits; "bfloat16" and
    "float16" let stage 1 multiply embeddings and prototypes in bfloat16 there. ``accumulate``: micro-batches
    a step. ``checkpointing``: activations are computed again in the backward pass instead of stored.
    ``workers``: that decode for each rank: processes from 100,000 images on that are read in all epochs,
    threads below; 1 is always a thread; 0 chooses, processes for a GPU only. ``save_minutes``: between
    checkpoints within an epoch. ``keep``: checkpoints on disk. ``on_nan``: "stop", or "skip" the batch and
    count it. ``read_every``: steps until losses are read from the device, which waits for it, and a bad one
    is reported; 0 for 20 on a GPU, 1 on the CPU. ``sync_batch_norm``: batch statistics over all ranks.
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
        """What the network computes in: "auto" is bfloat16 on a GPU that has it, else float32.

        Example:
            >>> EngineSettings().precision_on(torch.device("cpu"))
            'float32'
        """
        if self.precision != "auto":
            return self.precision
        has_it = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return "bfloat16" if has_it else "float32"


class Recipe:
    """Base of the configurations: one attribute per table of a TOML recipe."""

    _renamed: ClassVar[Mapping[str, str]] = {}
    """Former name of a setting, with its table, to the name of today: old recipes and records are read on."""

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
        # The defaults of a table differ between recipes (optimizer, schedule), so they are filled in here.
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
        """Nested plain values."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    def with_seed(self: Config, seed: int) -> Config:
        """The same with another seed of initialisation, shuffling and validation split."""
        return replace(self, seed=seed)  # type: ignore[type-var]


@_settings
class HeadSettings:
    """``kind`` of head (`spherecf.models.HEADS`)."""

    kind: str = "light"


@_settings
class ViewSettings:
    """Each image is shown clean and ``degraded`` times degraded by ``recipe``; ``flip``: also mirrored.

    ``per_epoch``: "all" views of each image in every epoch, or "one" drawn at random.
    """

    degraded: Annotated[_Integer, Field(ge=0)] = 3
    recipe: str = "train"
    seed: _Integer = 0
    flip: _Bool = False
    per_epoch: Literal["all", "one"] = "all"


@_settings
class FeatureSettings:
    """Where the backbone's features come from.

    ``source``: "cache" (one pass, kept on disk), "stream" (the backbone runs in every epoch), or "auto": a
    cache if it fits. ``dtype``: of the numbers in a cache. ``finetune``: train the backbone as well, its
    batch statistics frozen; streams.
    """

    source: Literal["auto", "cache", "stream"] = "auto"
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    finetune: _Bool = False

    def __post_init__(self) -> None:
        if self.finetune and self.source == "cache":
            raise ValueError("finetune needs source stream: a cache holds features of the old backbone")


@_settings
class PrototypeSettings:
    """``file``: a classifier's weights; empty: class means, by ``leave_one_out`` without the sample."""

    file: str = ""
    leave_one_out: _Bool = True


Objectives = Literal["scf", "scf-gaussian", "pfe-vmf", "pfe-gaussian", "probface", "cr-fiqa", "rts"]


@_settings
class LossSettings:
    """``objective`` "scf", or a rival: one of the others in `Objectives`.

    ``variant`` of "scf": "exact" or "released". ``radius`` r of the sphere shifts the loss and the scores.
    """

    objective: Objectives = "scf"
    variant: Variant = "exact"
    radius: Annotated[_Float, Field(gt=0)] = 64.0


@_settings
class FitSettings:
    """``batch_size`` rows of all ranks together; a ``held_out`` share of the identities validates.

    ``held_out`` 0: learn from all, keep the last epoch. ``per_identity``: rows of one identity side by side
    in a batch, for pairwise objectives.
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

    seed: Annotated[_Integer, Field(ge=0)] = 0
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


@_settings
class NetworkSettings:
    """``name`` in `spherecf.models.NETWORKS`, ``options`` of `spherecf.models.make_backbone` beside ``dim``.

    ``preprocessing``: a preset of `spherecf.models.PRESETS`. ``start``: a checkpoint to begin with (any that
    `spherecf.models.load_backbone` reads); empty: random initialisation.
    """

    name: str = "r50"
    dim: _Integer = 512
    options: _Options = field(default_factory=dict)
    preprocessing: str = "insightface"
    start: str = ""


@_settings
class MarginSettings:
    """``kind`` in `spherecf.losses.MARGINS`, and ``options``, its arguments (its own defaults otherwise).

    ``sample_rate``: share of the identities outside the batch in each step's softmax (partial FC).
    """

    kind: str = "arcface"
    options: _Options = field(default_factory=dict)
    sample_rate: Annotated[_Float, Field(gt=0, le=1)] = 1.0


@_settings
class AugmentSettings:
    """``flip``: mirror half of the images. ``degraded``: share of images degraded by ``recipe``."""

    flip: _Bool = True
    degraded: Annotated[_Float, Field(ge=0, le=1)] = 0.0
    recipe: str = "train"


@_settings
class BackboneFit:
    """``batch_size`` images of all ranks together; identities with fewer than ``min_images`` are left out."""

    epochs: Annotated[_Integer, Field(ge=1)] = 20
    batch_size: Annotated[_Integer, Field(ge=2)] = 1024
    min_images: Annotated[_Integer, Field(ge=1)] = 1


@_settings
class BackboneConfig(Recipe):
    """Settings of `train_backbone`; the TOML recipe has one table per attribute.

    The defaults are those of arcface_torch for MS1MV2: SGD, rate 0.1 falling by (1 - t)^2, 20 epochs.

    Example:
        >>> config = BackboneConfig.from_dict({"network": {"name": "mbf"}, "optimizer": {"lr": 0.05}})
        >>> config.network.dim, config.optimizer.name, config.schedule.name
        (512, 'sgd', 'polynomial')
    """

    _renamed: ClassVar[Mapping[str, str]] = {"fit.least": "min_images"}

    seed: Annotated[_Integer, Field(ge=0)] = 0
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
    """What the base learning rate is multiplied by.

    Args:
        settings: name and parameters.
        epochs: of the whole training.
        progress: epochs done so far, with fraction: 2.5 in the middle of the third.
        history: metrics of the finished epochs; ``"plateau"`` uses their loss, on held-out people if any.

    Formulas, with t = (progress - warmup) / (epochs - warmup):
        cosine: (1 + cos(pi t)) / 2. polynomial: (1 - t)^power. constant: 1.
        step: gamma^k, k the finished periods of ``step_size`` epochs, or the ``milestones`` passed.
        plateau: gamma^k, k how often the loss had not fallen by 1e-4 (relative) for more than ``patience``
        epochs. Before ``warmup`` epochs, any of them is multiplied by progress / warmup.

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
    return ramp


def _plateaus(history: Sequence[Mapping[str, Any]], patience: int) -> int:
    plateaus, best, waited = 0, math.inf, 0
    for facts in history:
        loss = facts.get("held_out_loss", facts["train_loss"])
        # The loss of a density may be negative, so the required decrease is relative to its magnitude.
        if loss < best - 1e-4 * abs(best) if math.isfinite(best) else True:
            best, waited = loss, 0
        else:
            waited += 1
        if waited > patience:
            plateaus, waited = plateaus + 1, 0
    return plateaus
