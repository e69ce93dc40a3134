"""Training objectives as pure functions.

Stage 1: `margin_softmax_loss` with a `Margin` (docs/margins.md says which); the formulas are functions of
the cosine. Stage 2: the sphere confidence loss, exact and as released, and its rivals: with a Gaussian, on
pairs.
"""

from spherecf.losses._adaptive import adaface, curricularface_others, magface, magface_penalty
from spherecf.losses._adaptive_margins import AdaFace, CurricularFace, MagFace
from spherecf.losses._angles import Gradient
from spherecf.losses._fixed import arcface, combined, cosface
from spherecf.losses._fixed_margins import ArcFace, Combined, CosFace, NormFace, SphereFace
from spherecf.losses._gaussian import gaussian_confidence_loss, gaussian_confidence_loss_from_cosine
from spherecf.losses._margin import Margin
from spherecf.losses._margin_kinds import MARGINS, make_margin
from spherecf.losses._margin_softmax import margin_softmax_loss
from spherecf.losses._one_against_all import SphereFace2, sphereface2, sphereface2_bias, sphereface2_logit
from spherecf.losses._pairwise import pfe_gaussian_loss, pfe_vmf_loss
from spherecf.losses._sphere_confidence import (
    Reduction,
    Variant,
    sphere_confidence_loss,
    sphere_confidence_loss_from_cosine,
)

__all__ = [
    "MARGINS", "AdaFace", "ArcFace", "Combined", "CosFace", "CurricularFace", "Gradient", "MagFace", "Margin",
    "NormFace", "Reduction", "SphereFace", "SphereFace2", "Variant",
    "adaface", "arcface", "combined", "cosface", "curricularface_others", "gaussian_confidence_loss",
    "gaussian_confidence_loss_from_cosine", "magface", "magface_penalty", "make_margin",
    "margin_softmax_loss", "pfe_gaussian_loss", "pfe_vmf_loss", "sphere_confidence_loss",
    "sphere_confidence_loss_from_cosine", "sphereface2", "sphereface2_bias", "sphereface2_logit",
]  # fmt: skip
