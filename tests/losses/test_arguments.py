"""All objectives take NumPy arrays as well as tensors, and refuse anything else with one error."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from spherecf import losses
from spherecf.errors import InputError
from spherecf.losses.margin_functions import apply_margin

_N, _DIM = 6, 8


def _random(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)))


MU, W = normalize(_random(_N, _DIM) - 0.5), normalize(torch.eye(_N, _DIM) + 0.1)
COSINE, KAPPA, LABELS = (MU * W).sum(1), 1 + 50 * _random(_N), torch.arange(_N) // 2
OBJECTIVES: dict[str, tuple[Callable[..., Any], dict[str, torch.Tensor], dict[str, Any]]] = {
    "sphere confidence": (losses.sphere_confidence_loss, {"mu": MU, "kappa": KAPPA, "prototypes": W}, {}),
    "sphere confidence, from cosines": (
        losses.sphere_confidence_loss_from_cosine, {"cosine": COSINE, "kappa": KAPPA}, {"dim": _DIM},
    ),
    "SCF-G": (
        losses.gaussian_confidence_loss, {"mu": MU, "log_precision": KAPPA.log(), "prototypes": W}, {},
    ),
    "SCF-G, from cosines": (
        losses.gaussian_confidence_loss_from_cosine,
        {"cosine": COSINE, "log_precision": KAPPA.log()}, {"dim": _DIM},
    ),
    "PFE-G": (
        losses.pfe_gaussian_loss, {"mu": MU, "log_variance": -_random(_N, _DIM), "labels": LABELS}, {},
    ),
    "PFE-v": (losses.pfe_vmf_loss, {"mu": MU, "log_kappa": KAPPA.log(), "labels": LABELS}, {}),
    "ProbFace": (losses.probface_loss, {"mu": MU, "log_variance": -_random(_N), "labels": LABELS}, {}),
    "CR-FIQA": (
        losses.certainty_ratio_loss, {"ratio": COSINE, "cosine": COSINE, "nearest": COSINE / 2}, {},
    ),
    "RTS": (
        losses.random_temperature_loss,
        {"log_variance": -_random(_N), "cosine": COSINE, "others": MU @ W.T}, {},
    ),
    "margin softmax": (
        losses.margin_softmax_loss,
        {"embedding": 20 * MU, "prototypes": W, "labels": LABELS}, {"margin": losses.SphereFace2()},
    ),
    "ArcFace": (losses.arcface, {"cosine": COSINE}, {}),
    "first kappa": (losses.initial_kappa, {"cosines": COSINE.abs()}, {"dim": _DIM}),
}  # fmt: skip


@pytest.mark.parametrize("name", OBJECTIVES)
def test_arrays_give_the_same_numbers_as_an_array(name: str) -> None:
    objective, tensors, options = OBJECTIVES[name]
    arrays = {argument: tensor.numpy() for argument, tensor in tensors.items()}
    expected, result = objective(**tensors, **options), objective(**arrays, **options)
    if isinstance(expected, torch.Tensor):
        assert isinstance(result, np.ndarray)
        expected = expected.detach().numpy()
    np.testing.assert_array_equal(result, expected)
    if len(tensors) > 1:  # one tensor among arrays
        argument, tensor = next(iter(tensors.items()))
        leaf = tensor.clone().requires_grad_()
        assert objective(**{**arrays, argument: leaf}, **options).requires_grad


@pytest.mark.parametrize("name", OBJECTIVES)
def test_everything_else_is_refused(name: str) -> None:
    objective, tensors, options = OBJECTIVES[name]
    alone = inspect.unwrap(objective)  # in tests the annotations would be checked first
    for argument, tensor in tensors.items():
        for wrong in (tensor.tolist(), None, "0.5", tensor.to(torch.complex64), tensor > 0):
            with pytest.raises(InputError, match=f"{argument}: expected"):
                alone(**{**tensors, argument: wrong}, **options)


def test_tensors_on_different_devices_are_named() -> None:
    with pytest.raises(InputError, match="mu is on cpu, kappa is on meta, prototypes is on cpu"):
        losses.sphere_confidence_loss(MU, KAPPA.to("meta"), W)


@pytest.mark.parametrize(
    "objective, arguments, message",
    [
        (
            losses.gaussian_confidence_loss, (MU, KAPPA[:2], W),
            r"expected mu and prototypes \(batch, dim\) and log_precision \(batch,\), got .* and \(2,\)",
        ),
        (
            losses.gaussian_confidence_loss_from_cosine, (COSINE, KAPPA[:2], _DIM),
            r"expected one log_precision per cosine, got log_precision \(2,\) and cosine \(6,\)",
        ),
        (
            losses.sphere_confidence_loss_from_cosine, (COSINE, KAPPA, _DIM, 64.0, "better"),
            r"variant: expected one of \('exact', 'released'\), got 'better'",
        ),
        (
            losses.sphere_confidence_loss_from_cosine, (COSINE, KAPPA, _DIM, 64.0, "exact", "max"),
            r"reduction: expected one of .*'none'.*, got 'max'",
        ),
        (
            losses.SphereConfidenceLoss.__init__, (losses.SphereConfidenceLoss(), 64.0, "better"),
            r"variant: expected one of \('exact', 'released'\), got 'better'",
        ),
        (
            losses.Margin.__init__, (losses.ArcFace(), 64.0, "curved"),
            r"gradient: expected one of \('exact', 'straight'\), got 'curved'",
        ),
        (
            apply_margin, (torch.sin, COSINE, "curved"),
            r"gradient: expected one of \('exact', 'straight'\), got 'curved'",
        ),
        (
            losses.MarginSoftmaxLoss.__init__,
            (losses.MarginSoftmaxLoss(4, 2, losses.ArcFace()), 4, 2, "arcface"),
            "margin: expected an instance of one of MARGINS, got 'arcface'",
        ),
    ],
)  # fmt: skip
def test_shapes_and_options_that_do_not_exist_are_refused(
    objective: Callable[..., Any], arguments: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        inspect.unwrap(objective)(*arguments)
