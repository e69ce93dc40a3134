"""Settings that both stages share, and how a TOML recipe becomes them."""

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from spherecf.common.parsing import reading
from spherecf.errors import FileFormatError, InputError

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
        from spherecf.training._schedule import SCHEDULES

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
