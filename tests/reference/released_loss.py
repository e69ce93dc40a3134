"""The sphere confidence loss as the published code computes it, written anew from its formula: scipy's `ive`
wrapped in an autograd function with a trip through NumPy each way, and an epsilon inside both logarithms. The
rival of
benchmarks/vmf_speed.py, and what `variant="released"` must reproduce."""

import math

import scipy.special
import torch


class ScipyIve(torch.autograd.Function):
    """exp(-z) I_v(z); derivative ive(v - 1, z) - ive(v, z) (v + z) / z. Computed in float64 by scipy."""

    @staticmethod
    def forward(ctx, v, z):
        ctx.save_for_backward(z)
        ctx.v = v
        values = scipy.special.ive(v, z.detach().double().cpu().numpy())
        return torch.as_tensor(values).to(z)

    @staticmethod
    def backward(ctx, grad):
        (z,) = ctx.saved_tensors
        numbers = z.detach().double().cpu().numpy()
        below = torch.as_tensor(scipy.special.ive(ctx.v - 1, numbers)).to(z)
        here = torch.as_tensor(scipy.special.ive(ctx.v, numbers)).to(z)
        return None, grad * (below - here * (ctx.v + z) / z)


def released_loss(cosine, kappa, dim, radius=64.0):
    """One loss per sample."""
    order = dim / 2 - 1
    log_bessel = torch.log(1e-6 + ScipyIve.apply(order, kappa)) + kappa
    log_kappa = torch.log(1e-6 + kappa)
    return -kappa * cosine - order * log_kappa + log_bessel + dim / 2 * math.log(2 * math.pi * radius**2)


def released_log_normalizer(kappa, dim):
    """log C_d the same way, without the constant; its gradient is what stands for -A_d."""
    order = dim / 2 - 1
    return order * torch.log(1e-6 + kappa) - torch.log(1e-6 + ScipyIve.apply(order, kappa)) - kappa
