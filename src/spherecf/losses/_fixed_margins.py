"""Fixed margins as modules, thin around their formulas, with the published values as defaults."""

from jaxtyping import Float
from torch import Tensor

from spherecf.losses._angles import Gradient
from spherecf.losses._fixed import arcface, combined, cosface
from spherecf.losses._margin import Margin, Number


class NormFace(Margin):
    """Normalised softmax, no margin: F. Wang et al., ACM Multimedia 2017.

    Example:
        >>> import torch
        >>> NormFace().target(torch.tensor([0.5]), torch.tensor([20.0]))
        tensor([0.5000])
    """

    kind = "softmax"


class ArcFace(Margin):
    """`arcface`, Deng et al., CVPR 2019.

    Example:
        >>> import torch
        >>> ArcFace(margin=0.5).target(torch.tensor([0.5]), torch.tensor([20.0]))
        tensor([0.0236])
    """

    kind = "arcface"

    def __init__(self, margin: Number = 0.5, scale: Number = 64.0, gradient: Gradient = "exact") -> None:
        super().__init__(scale, gradient)
        self.margin = margin

    def target(self, cosine: Float[Tensor, " n"], norm: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """cos(theta + m)."""
        return arcface(cosine, self.margin, self.gradient)


class CosFace(Margin):
    """`cosface`, H. Wang et al., CVPR 2018. Its two gradients are the same.

    Example:
        >>> import torch
        >>> CosFace(margin=0.4).target(torch.tensor([0.5]), torch.tensor([20.0]))
        tensor([0.1000])
    """

    kind = "cosface"

    def __init__(self, margin: Number = 0.35, scale: Number = 64.0, gradient: Gradient = "exact") -> None:
        super().__init__(scale, gradient)
        self.margin = margin

    def target(self, cosine: Float[Tensor, " n"], norm: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """cos(theta) - m."""
        return cosface(cosine, self.margin)


class Combined(Margin):
    """`combined`, with the paper's CM1 as default: Deng et al., CVPR 2019, eq. 4 and section 3.2.

    Example:
        >>> import torch
        >>> Combined().target(torch.tensor([0.5]), torch.tensor([20.0]))
        tensor([0.0217])
    """

    kind = "combined"

    def __init__(
        self,
        m1: Number = 1.0,
        m2: Number = 0.3,
        m3: Number = 0.2,
        scale: Number = 64.0,
        gradient: Gradient = "exact",
    ) -> None:
        super().__init__(scale, gradient)
        self.m1, self.m2, self.m3 = m1, m2, m3

    def target(self, cosine: Float[Tensor, " n"], norm: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """cos(m1 theta + m2) - m3."""
        return combined(cosine, self.m1, self.m2, self.m3, self.gradient)


class SphereFace(Margin):
    """A multiple of the angle, `combined` with (m1, 0, 0): Liu et al., CVPR 2017, on normalised embeddings.

    m1 = 1.35 and the fixed scale as in Deng et al., CVPR 2019.

    Example:
        >>> import torch
        >>> SphereFace().target(torch.tensor([0.5]), torch.tensor([20.0]))
        tensor([0.1564])
    """

    kind = "sphereface"

    def __init__(self, factor: Number = 1.35, scale: Number = 64.0, gradient: Gradient = "exact") -> None:
        super().__init__(scale, gradient)
        self.factor = factor

    def target(self, cosine: Float[Tensor, " n"], norm: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """cos(m theta), continued."""
        return combined(cosine, self.factor, 0.0, 0.0, self.gradient)
