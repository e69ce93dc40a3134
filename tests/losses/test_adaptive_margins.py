"""The running statistics of AdaFace and CurricularFace."""

import pytest
import torch

from spherecf.losses import adaface, curricularface_others, make_margin

COSINE = torch.linspace(-0.98, 0.98, 6)
NORM = torch.linspace(5.0, 120.0, 6)


def test_adaface_follows_the_norms():
    margin = make_margin("adaface", rate=0.25)
    margin.update(COSINE[:4], torch.tensor([0.0, 10.0, 30.0, 1e6]))
    seen = torch.tensor([1e-3, 10, 30, 100])
    assert margin.mean.item() == pytest.approx(0.75 * 20 + 0.25 * seen.mean().item())
    assert margin.std.item() == pytest.approx(0.75 * 100 + 0.25 * seen.std().item())
    default = make_margin("adaface")
    for _ in range(2000):
        default.update(COSINE, NORM.clamp(max=100))
    assert default.mean.item() == pytest.approx(NORM.clamp(max=100).mean().item(), rel=1e-4)
    torch.testing.assert_close(
        default.target(COSINE, NORM), adaface(COSINE, NORM, default.mean, default.std), rtol=0, atol=0
    )


def test_curricularface_follows_the_cosines():
    margin = make_margin("curricularface")
    for step in range(1, 4):
        margin.update(torch.tensor([0.2, 0.6]), torch.ones(2))
        assert margin.t.item() == pytest.approx(0.4 * (1 - 0.99**step))
    wrong = COSINE.repeat(6, 1)
    assert torch.equal(margin.others(wrong, COSINE), curricularface_others(wrong, COSINE, margin.t))


@pytest.mark.parametrize("kind", ["adaface", "curricularface"])
def test_statistics_skip_nan_and_empty_batches(kind):
    margin = make_margin(kind)
    before = {name: value.clone() for name, value in margin.state_dict().items()}
    assert before and not list(margin.parameters())
    margin.update(torch.full((3,), torch.nan), torch.full((3,), torch.nan))
    margin.update(torch.ones(0), torch.ones(0))
    if kind == "adaface":
        margin.update(torch.ones(1), torch.ones(1))
    assert all(torch.equal(value, before[name]) for name, value in margin.state_dict().items())
    margin.update((COSINE + 0.3).bfloat16().requires_grad_(), NORM.bfloat16())
    assert all(value.isfinite() and not value.requires_grad for value in margin.state_dict().values())
    assert not any(torch.equal(value, before[name]) for name, value in margin.state_dict().items())
