"""Von Mises-Fisher: special functions on tensors and the distribution on the sphere. Knows nothing of faces.

`log_normalizer` (log C_d), `log_normalizer_scaled` (log C_d + kappa), `mean_resultant_length` (A_d) with its
derivative, complement and inverse, `log_bessel_i`, `product_concentration`, and `VonMisesFisher` with
`HypersphericalUniform`. See docs/numerics.md.
"""

from spherecf.vmf.distributions import HypersphericalUniform, VonMisesFisher
from spherecf.vmf.functions import (
    inverse_mean_resultant_length,
    log_bessel_i,
    log_normalizer,
    log_normalizer_scaled,
    mean_resultant_complement,
    mean_resultant_length,
    mean_resultant_length_derivative,
    product_concentration as product_concentration,
)

# Names imported `as` themselves serve other rooms of this package; they are no part of its public interface.
__all__ = [
    "HypersphericalUniform",
    "VonMisesFisher",
    "inverse_mean_resultant_length",
    "log_bessel_i",
    "log_normalizer",
    "log_normalizer_scaled",
    "mean_resultant_complement",
    "mean_resultant_length",
    "mean_resultant_length_derivative",
]
