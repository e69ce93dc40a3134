"""What a gallery says about somebody it holds."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Enrolled:
    """One identity of a gallery.

    Attributes:
        template: key of the template in the gallery.
        identity: the name.
        kappa: of the pooled template, the length of the sum over media of the mean kappa_i mu_i.
        percentile: of kappa among those the calibration knows, 0 .. 100; None without a calibration.
        images: how many images stand behind it.
        media: how many media; images of one medium are averaged, for they are no independent evidence.
        warnings: what should be looked at: poor photos, a resemblance, photos that do not fit together.
        sources: where the first of the images came from.
        enrolled, changed: ISO times, UTC.
    """

    template: str
    identity: str
    kappa: float
    percentile: float | None
    images: int
    media: int
    warnings: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    enrolled: str = ""
    changed: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self) | {"warnings": list(self.warnings), "sources": list(self.sources)}
