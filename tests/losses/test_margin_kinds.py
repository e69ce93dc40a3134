"""Every margin as a module: its copy and its formula."""

import json

import pytest
import torch

from spherecf.errors import InputError
from spherecf.losses import (
    MARGINS,
    adaface,
    arcface,
    combined,
    cosface,
    curricularface_others,
    magface,
    magface_penalty,
    make_margin,
)

COSINE = torch.linspace(-0.98, 0.98, 6)
NORM = torch.linspace(5.0, 120.0, 6)

TARGETS = {
    "softmax": lambda g: COSINE,
    "arcface": lambda g: arcface(COSINE, 0.5, g),
    "cosface": lambda g: cosface(COSINE, 0.35),
    "combined": lambda g: combined(COSINE, 1, 0.3, 0.2, g),
    "sphereface": lambda g: combined(COSINE, 1.35, 0, 0, g),
    "adaface": lambda g: adaface(COSINE, NORM, 20.0, 100.0, 0.4, 0.333, g),
    "magface": lambda g: magface(COSINE, NORM, 0.45, 0.8, 10, 110, g),
    "curricularface": lambda g: arcface(COSINE, 0.5, g),
}


@pytest.mark.parametrize("kind", MARGINS)
def test_copy_from_config_and_state(kind):
    margin = make_margin(kind, scale=32, gradient="straight")
    margin.update(COSINE, NORM)
    config = json.loads(json.dumps(margin.config()))
    copy = make_margin(margin.kind, **config)
    copy.load_state_dict(margin.state_dict())
    assert (copy.scale, copy.gradient) == (32, "straight") and copy.config() == margin.config()
    if margin.binary:
        assert torch.equal(copy.negative(COSINE[None]), margin.negative(COSINE[None]))
    else:
        assert torch.equal(copy.target(COSINE, NORM), margin.target(COSINE, NORM))
    assert repr(margin).startswith(type(margin).__name__ + "(") and "scale=32" in repr(margin)


@pytest.mark.parametrize("gradient", ["exact", "straight"])
@pytest.mark.parametrize("kind", TARGETS)
def test_target_is_the_formula_with_published_values(kind, gradient):
    margin = make_margin(kind, gradient=gradient)
    assert margin.scale == 64 and not margin.binary
    cosine = COSINE.clone().requires_grad_()
    target = margin.target(cosine, NORM)
    torch.testing.assert_close(target.detach(), TARGETS[kind](gradient), rtol=0, atol=1e-6)
    (slope,) = torch.autograd.grad(target.sum(), cosine)
    assert (gradient == "straight" or kind in ("softmax", "cosface")) == bool((slope == 1).all())


def test_other_logits_are_not_copied_and_only_magface_has_a_penalty():
    for kind in TARGETS:
        margin, wrong = make_margin(kind), COSINE.repeat(6, 1)
        others, penalty = margin.others(wrong, COSINE), margin.penalty(NORM)
        if kind == "curricularface":
            assert torch.equal(others, curricularface_others(wrong, COSINE, 0.0, 0.5))
        else:
            assert others is wrong
        expected = 35 * magface_penalty(NORM) if kind == "magface" else torch.zeros(6)
        assert torch.equal(penalty, expected)
        with pytest.raises(NotImplementedError, match="is a softmax margin"):
            margin.positive(COSINE, NORM)
        with pytest.raises(NotImplementedError, match="is a softmax margin"):
            margin.negative(wrong)


def test_bad_arguments():
    for call, message in (
        (lambda: make_margin("arcfase"), "unknown kind of margin 'arcfase'; available: softmax, arcface"),
        (lambda: make_margin("cosface", m=0.4), "cosface margin: arguments {'m': 0.4} do not fit"),
        (
            lambda: make_margin("arcface", margin="0.5"),
            "margin: expected a number, got '0.5'",
        ),
        (lambda: make_margin("sphereface2", t=True), "t: expected a number, got True"),
        (lambda: make_margin("arcface", margin=28.6), "0 <= margin < pi, got 28.6"),
        (lambda: make_margin("sphereface2", balance=1.5), "0 < balance < 1"),
        (lambda: make_margin("arcface", scale=0.0), "arcface: expected a finite scale > 0, got 0.0"),
        (lambda: make_margin("adaface", rate=-1.0), "rate: expected a weight of a new batch in"),
        (lambda: make_margin("curricularface", rate=1.5), "rate: expected a weight of a new batch in"),
        (lambda: make_margin("magface", lambda_g=float("nan")), "lambda_g >= 0, got nan"),
        (lambda: make_margin("sphereface2", weight=0.0), "finite start and weight > 0, got 0.0 and 0.0"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    with pytest.raises((InputError, TypeError), match="crooked"):
        make_margin("arcface", gradient="crooked")
