"""Training objectives as pure functions: the sphere confidence loss, exact and as released."""

from spherecf.losses._sphere_confidence import (
    Reduction,
    Variant,
    sphere_confidence_loss,
    sphere_confidence_loss_from_cosine,
)

__all__ = ["Reduction", "Variant", "sphere_confidence_loss", "sphere_confidence_loss_from_cosine"]
