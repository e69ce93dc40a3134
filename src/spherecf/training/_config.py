"""What a training run is asked to do: a few groups of settings, read from a TOML recipe."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from spherecf.errors import FileFormatError, InputError
from spherecf.losses import Variant


@dataclass(frozen=True)
class HeadSettings:
    """``kind`` of head (`spherecf.models.HEADS`)."""

    kind: str = "light"


@dataclass(frozen=True)
class ViewSettings:
    """Each image is shown clean and ``degraded`` times degraded by ``recipe``; ``flip``: also mirrored."""

    degraded: int = 3
    recipe: str = "train"
    seed: int = 0
    flip: bool = False


@dataclass(frozen=True)
class PrototypeSettings:
    """``file``: a classifier's weights; empty: class means, by ``leave_one_out`` without the sample."""

    file: str = ""
    leave_one_out: bool = True


@dataclass(frozen=True)
class LossSettings:
    """``variant`` "exact" or "released"; ``radius`` r of the sphere, which shifts the loss and the scores."""

    variant: str = "exact"
    radius: float = 64.0


@dataclass(frozen=True)
class FitSettings:
    """AdamW: ``lr`` falls to 0 along a half cosine; a ``held_out`` share of the identities validates."""

    epochs: int = 6
    batch_size: int = 512
    lr: float = 5e-4
    weight_decay: float = 0.05
    held_out: float = 0.1


@dataclass(frozen=True)
class ConfidenceConfig:
    """Settings of `train_confidence`; the TOML recipe has one table per attribute.

    Example:
        >>> config = ConfidenceConfig.from_dict({"fit": {"epochs": 3}, "seed": 1})
        >>> config.fit.epochs, config.seed, config.loss.variant
        (3, 1, 'exact')
    """

    seed: int = 0
    head: HeadSettings = field(default_factory=HeadSettings)
    views: ViewSettings = field(default_factory=ViewSettings)
    prototypes: PrototypeSettings = field(default_factory=PrototypeSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    fit: FitSettings = field(default_factory=FitSettings)

    def __post_init__(self) -> None:
        fit = self.fit
        wrong = [
            text
            for bad, text in (
                (fit.epochs < 1, f"fit.epochs must be at least 1, got {fit.epochs}"),
                (fit.batch_size < 2, f"fit.batch_size must be at least 2, got {fit.batch_size}"),
                (not fit.lr > 0, f"fit.lr must be positive, got {fit.lr}"),
                (fit.weight_decay < 0, f"fit.weight_decay must not be negative, got {fit.weight_decay}"),
                (not 0 < fit.held_out < 1, f"fit.held_out must lie between 0 and 1, got {fit.held_out}"),
                (not self.loss.radius > 0, f"loss.radius must be positive, got {self.loss.radius}"),
                (
                    self.loss.variant not in Variant.__args__,  # type: ignore[attr-defined]
                    f"loss.variant must be exact or released, got {self.loss.variant!r}",
                ),
            )
            if bad
        ]
        if wrong:
            raise InputError("settings: " + "; ".join(wrong))

    @classmethod
    def load(cls, path: str | Path) -> "ConfidenceConfig":
        """Read a TOML recipe.

        Raises:
            FileFormatError: not TOML, an unknown table or key, or a value of another type or out of range.
        """
        try:
            content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
            return cls.from_dict(content)
        except FileNotFoundError as error:
            raise FileFormatError(path, "no such recipe.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, InputError) as error:
            raise FileFormatError(path, f"{error}.", "See recipes/README.md for the settings.") from error

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "ConfidenceConfig":
        """From nested mappings, as `to_dict` gives them; what is absent has its default.

        Raises:
            InputError: unknown names, wrong types, values out of range.
        """
        config: ConfidenceConfig = _build(cls, content, "")
        return config

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values."""
        return asdict(self)

    def with_seed(self, seed: int) -> "ConfidenceConfig":
        """The same with another seed of initialisation, shuffling and validation split."""
        return replace(self, seed=seed)


def _build(kind: type[Any], content: Mapping[str, Any], where: str) -> Any:
    types = get_type_hints(kind)
    known = {item.name: types[item.name] for item in fields(kind)}
    if unknown := sorted(set(content) - set(known)):
        raise InputError(f"unknown setting {where}{unknown[0]}; known: {', '.join(known)}")
    values = {}
    for name, value in content.items():
        wanted = known[name]
        if hasattr(wanted, "__dataclass_fields__"):
            if not isinstance(value, Mapping):
                raise InputError(f"{where}{name}: expected a table, got {value!r}")
            values[name] = _build(wanted, value, f"{where}{name}.")
            continue
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:
            raise InputError(f"{where}{name}: expected {wanted.__name__}, got {value!r}")
        values[name] = value
    return kind(**values)
