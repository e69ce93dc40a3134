import pytest
import torch
from tests.conformance.heads import HeadConformance

from spherecf.models import ConfidenceHead, make_head
from spherecf.models.heads import LightHead


class TestLight(HeadConformance):
    def make(self) -> ConfidenceHead:
        return LightHead(16, 7, 7)


def test_the_summary_contains_mean_deviation_and_maximum_per_channel() -> None:
    features = torch.randn(3, 5, 4, 6, generator=torch.manual_seed(0))
    summary = LightHead(5, 4, 6).pool_features(features, torch.zeros(3, 8))
    for image in range(3):
        for channel in range(5):
            values = features[image, channel].flatten()
            expected = values.mean(), values.std(correction=0), values.max()
            torch.testing.assert_close(summary[image, channel::5], torch.stack(expected))


def test_normalisation_is_fitted_to_the_backbone() -> None:
    head = LightHead(4, 2, 2)
    summaries = torch.randn(500, 12, generator=torch.manual_seed(0)) * 40 + 1000
    head.fit_normalisation(summaries)
    normalised = (summaries - head.shift) * head.scale
    torch.testing.assert_close(normalised.mean(0), torch.zeros(12), atol=1e-3, rtol=0)
    torch.testing.assert_close(normalised.std(0, correction=0), torch.ones(12), atol=1e-3, rtol=0)
    assert make_head("light", channels=4, height=2, width=2).scale.eq(1).all()


def test_a_constant_channel_gives_finite_outputs() -> None:
    head = LightHead(2, 2, 2).eval()
    head.fit_normalisation(torch.ones(10, 6))
    assert bool(torch.isfinite(head(torch.ones(3, 6))).all())


@pytest.mark.parametrize("channels", [64, 512, 1024, 2048])
def test_the_head_has_fewer_than_a_million_parameters(channels: int) -> None:
    assert LightHead(channels, 7, 7).parameter_count < 1_000_000
