"""What a gallery says about itself: made by which model, when, for what dimension and radius."""

import secrets
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from spherecf.common.version import __version__
from spherecf.errors import FileFormatError, ModelError

FORMAT, VERSION = "spherecf.gallery", 1


@dataclass(frozen=True)
class Header:
    """Facts about a gallery.

    Attributes:
        model: fingerprint of the model whose directions and kappas it holds.
        backbone: sha256 of its recogniser; "" if not told.
        dim, radius: of the directions and of the score.
        salt: of the keys, so that a name does not have the same key in two galleries.
        created, spherecf: ISO time, and version that made it.
    """

    model: str
    backbone: str
    dim: int
    radius: float
    salt: str
    created: str
    spherecf: str
    format: str = FORMAT
    version: int = VERSION

    @classmethod
    def new(cls, model: str, backbone: str, dim: int, radius: float) -> "Header":
        """For a gallery that is being made."""
        return cls(model, backbone, dim, radius, secrets.token_hex(16), now(), __version__)

    @classmethod
    def read(cls, facts: dict[str, Any], uri: str) -> "Header":
        """From its dictionary.

        Raises:
            FileFormatError: it is no gallery of this kind, or of a later version.
        """
        if facts.get("format") != FORMAT or facts.get("version") != VERSION:
            raise FileFormatError(
                uri, f"expected a gallery of version {VERSION}, got {facts.get('format')} "
                f"{facts.get('version')}.", "Use the spherecf that made it, or a newer one."
            )  # fmt: skip
        try:
            return cls(**{one.name: facts[one.name] for one in fields(cls)})
        except KeyError as error:
            raise FileFormatError(uri, f"the header of the gallery lacks {error}.") from error

    def check(self, uri: str, model: str, backbone: str, dim: int, radius: float) -> None:
        """Refuse another model: its numbers mean something else.

        Raises:
            ModelError: with both hashes.
        """
        if model != self.model or (backbone and self.backbone and backbone != self.backbone):
            raise ModelError(
                f"{uri}: the gallery was made by the model {self.model} (backbone "
                f"{self.backbone or 'unknown'}), this is the model {model} (backbone "
                f"{backbone or 'unknown'}): their directions cannot be compared. Use that "
                "model, or enrol everybody anew in another gallery"
            )
        if dim != self.dim or radius != self.radius:
            raise ModelError(
                f"{uri}: the gallery has dimension {self.dim} and radius {self.radius:g}, this model "
                f"{dim} and {radius:g}"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def now() -> str:
    """UTC, ISO, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
