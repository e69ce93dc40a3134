"""Training objectives, as functions and as modules; NumPy arrays give arrays, without a gradient.

Stage 1 trains the backbone: `margin_softmax_loss` with a `Margin`, whose formulas are functions of the cosine
(docs/margins.md helps to choose one). Stage 2 trains the confidence head: the sphere confidence loss, exact
and as released, and the objectives it is compared with, which use Gaussians (SCF-G), mated pairs (PFE) or the
prototypes of the other identities (CR-FIQA, RTS).
"""

from spherecf.losses.baselines import (
    certainty_ratio_loss,
    gaussian_confidence_loss,
    gaussian_confidence_loss_from_cosine as gaussian_confidence_loss_from_cosine,
    pfe_gaussian_loss,
    pfe_vmf_loss,
    probface_loss,
    random_temperature_loss,
)
from spherecf.losses.blockwise import (
    blockwise_losses as blockwise_losses,
    rows_per_block as rows_per_block,
)
from spherecf.losses.margin_functions import (
    Gradient as Gradient,
    adaface as adaface,
    arcface,
    combined as combined,
    cosface as cosface,
    curricularface_others as curricularface_others,
    magface as magface,
    magface_penalty as magface_penalty,
)
from spherecf.losses.margins import (
    MARGINS as MARGINS,
    AdaFace,
    ArcFace,
    Combined as Combined,
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
    sphereface2 as sphereface2,
    sphereface2_bias,
    sphereface2_logit as sphereface2_logit,
)
from spherecf.losses.sphere_confidence import (
    Reduction as Reduction,
    SphereConfidenceLoss,
    Variant as Variant,
    initial_kappa as initial_kappa,
    sphere_confidence_loss,
    sphere_confidence_loss_from_cosine,
)

# Names imported `as` themselves are for the other packages of spherecf and are not part of the public
# interface.
__all__ = [
    "AdaFace",
    "ArcFace",
    "CosFace",
    "CurricularFace",
    "MagFace",
    "Margin",
    "MarginSoftmaxLoss",
    "NormFace",
    "SphereConfidenceLoss",
    "SphereFace",
    "SphereFace2",
    "arcface",
    "certainty_ratio_loss",
    "gaussian_confidence_loss",
    "make_margin",
    "margin_softmax_loss",
    "pfe_gaussian_loss",
    "pfe_vmf_loss",
    "probface_loss",
    "random_temperature_loss",
    "sphere_confidence_loss",
    "sphere_confidence_loss_from_cosine",
    "sphereface2_bias",
]
