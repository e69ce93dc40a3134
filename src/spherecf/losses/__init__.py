"""Training objectives, as functions and as modules.

Stage 1: `margin_softmax_loss` with a `Margin` (docs/margins.md says which); the formulas are functions of
the cosine. Stage 2: the sphere confidence loss, exact and as released, and its rivals: with a Gaussian, on
pairs.
"""

from spherecf.losses.baselines import (
    gaussian_confidence_loss,
    gaussian_confidence_loss_from_cosine,
    pfe_gaussian_loss,
    pfe_vmf_loss,
)
from spherecf.losses.margin_functions import (
    Gradient,
    adaface,
    arcface,
    combined,
    cosface,
    curricularface_others,
    magface,
    magface_penalty,
)
from spherecf.losses.margins import (
    MARGINS,
    AdaFace,
    ArcFace,
    Combined,
    CosFace,
    CurricularFace,
    MagFace,
    Margin,
    MarginSoftmaxLoss,
    NormFace,
    SphereFace,
    SphereFace2,
    make_margin,
    margin_softmax_loss,
    sphereface2,
    sphereface2_bias,
    sphereface2_logit,
)
from spherecf.losses.sphere_confidence import (
    Reduction,
    SphereConfidenceLoss,
    Variant,
    initial_kappa,
    sphere_confidence_loss,
    sphere_confidence_loss_from_cosine,
)

__all__ = [
    "MARGINS", "AdaFace", "ArcFace", "Combined", "CosFace", "CurricularFace", "Gradient", "MagFace", "Margin",
    "MarginSoftmaxLoss", "NormFace", "Reduction", "SphereConfidenceLoss", "SphereFace", "SphereFace2",
    "Variant",
    "adaface", "arcface", "combined", "cosface", "curricularface_others", "gaussian_confidence_loss",
    "gaussian_confidence_loss_from_cosine", "initial_kappa", "magface", "magface_penalty", "make_margin",
    "margin_softmax_loss", "pfe_gaussian_loss", "pfe_vmf_loss", "sphere_confidence_loss",
    "sphere_confidence_loss_from_cosine", "sphereface2", "sphereface2_bias", "sphereface2_logit",
]  # fmt: skip
