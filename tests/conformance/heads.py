"""Conformance tests for confidence heads: subclass `HeadConformance` and define `make`."""

import json

import pytest
import torch
from torch import Tensor

from spherecf.errors import InputError
from spherecf.models import ConfidenceHead, make_head


class HeadConformance:
    """Tests that every head must pass; ``make`` builds one for feature maps (16, 7, 7), 32-d embeddings."""

    dim = 32

    def make(self) -> ConfidenceHead:
        raise NotImplementedError

    @pytest.fixture
    def head(self) -> ConfidenceHead:
        torch.manual_seed(0)
        return self.make().eval()

    @pytest.fixture
    def output(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(6, 16, 7, 7, generator=generator), torch.randn(6, self.dim, generator=generator)

    def test_log_kappa_is_pooling_followed_by_forward(
        self, head: ConfidenceHead, output: tuple[Tensor, Tensor]
    ) -> None:
        summary = head.pool_features(*output)
        assert summary.shape == (6, *head.summary_shape)
        log_kappa = head.log_kappa(*output)
        assert log_kappa.shape == (6,) and bool(torch.isfinite(log_kappa).all())
        assert torch.equal(head(summary), log_kappa)

    def test_pooling_has_no_trainable_parameters(
        self, head: ConfidenceHead, output: tuple[Tensor, Tensor]
    ) -> None:
        before = head.pool_features(*output)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.add_(1.0)
        assert torch.equal(head.pool_features(*output), before) and not before.requires_grad

    def test_output_does_not_depend_on_the_batch(
        self, head: ConfidenceHead, output: tuple[Tensor, Tensor]
    ) -> None:
        single = torch.cat([head.log_kappa(f[None], e[None]) for f, e in zip(*output)])
        torch.testing.assert_close(single, head.log_kappa(*output), atol=1e-5, rtol=1e-5)

    def test_config_and_state_recreate_the_head(
        self, head: ConfidenceHead, output: tuple[Tensor, Tensor]
    ) -> None:
        copy = make_head(head.kind, **json.loads(json.dumps(head.config()))).eval()
        copy.load_state_dict(head.state_dict())
        assert torch.equal(copy.log_kappa(*output), head.log_kappa(*output))
        assert copy.parameter_count == head.parameter_count > 0

    def test_starts_with_constant_kappa_and_can_be_trained(
        self, head: ConfidenceHead, output: tuple[Tensor, Tensor]
    ) -> None:
        head.init_constant(500.0)
        torch.testing.assert_close(head.log_kappa(*output).exp(), torch.full((6,), 500.0), rtol=1e-4, atol=0)
        optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
        target = torch.linspace(4, 8, 6)
        losses = []
        for _ in range(60):
            loss = (head.log_kappa(*output) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.1 * losses[0]

    @pytest.mark.parametrize("kappa", [0.0, -1.0, float("nan"), float("inf")])
    def test_refuses_an_invalid_initial_kappa(self, head: ConfidenceHead, kappa: float) -> None:
        with pytest.raises(InputError, match="finite positive kappa"):
            head.init_constant(kappa)

    def test_refuses_nan(self, head: ConfidenceHead, output: tuple[Tensor, Tensor]) -> None:
        features, embedding = output
        features[3, 0, 0, 0] = torch.nan
        with pytest.raises(InputError, match=r"1 of 6 .*NaN.*images 3"):
            head.log_kappa(features, embedding)

    def test_refuses_another_feature_shape(self, head: ConfidenceHead, output: tuple[Tensor, Tensor]) -> None:
        with pytest.raises(InputError, match=r"expected feature maps \(n, 16, 7, 7\), got \(6, 16, 6, 7\)"):
            head.log_kappa(output[0][:, :, 1:], output[1])
