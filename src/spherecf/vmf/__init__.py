"""The von Mises-Fisher distribution and its special functions on tensors, independent of faces.

The functions are `log_normalizer` (log C_d), `log_normalizer_scaled` (log C_d + kappa),
`mean_resultant_length` (A_d) with its derivative, complement and inverse, and `log_bessel_i`; the
distributions are `VonMisesFisher` and `HypersphericalUniform`. Accuracy and speed: docs/numerics.md.
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

# Names imported `as` themselves are for the other packages of spherecf and are not part of the public
# interface.
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
