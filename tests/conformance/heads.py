"""What every confidence head must do, whatever its layers. Subclass it, and give `head`."""

import json

import pytest
import torch
from torch import Tensor

from spherecf.errors import InputError
from spherecf.models import ConfidenceHead, make_head


class HeadConformance:
    """A subclass sets ``make``: a head for maps (16, 7, 7) and embeddings of 32."""

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

    def test_two_steps_are_one(self, head: ConfidenceHead, output: tuple[Tensor, Tensor]) -> None:
        summary = head.pool_features(*output)
        assert summary.shape == (6, *head.summary_shape)
        log_kappa = head.log_kappa(*output)
        assert log_kappa.shape == (6,) and bool(torch.isfinite(log_kappa).all())
        assert torch.equal(head(summary), log_kappa)

    def test_the_summary_learns_nothing(self, head: ConfidenceHead, output: tuple[Tensor, Tensor]) -> None:
        before = head.pool_features(*output)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.add_(1.0)
        assert torch.equal(head.pool_features(*output), before) and not before.requires_grad

    def test_sees_each_image_by_itself(self, head: ConfidenceHead, output: tuple[Tensor, Tensor]) -> None:
        alone = torch.cat([head.log_kappa(f[None], e[None]) for f, e in zip(*output)])
        torch.testing.assert_close(alone, head.log_kappa(*output), atol=1e-5, rtol=1e-5)

    def test_config_makes_its_twin(self, head: ConfidenceHead, output: tuple[Tensor, Tensor]) -> None:
        twin = make_head(head.kind, **json.loads(json.dumps(head.config()))).eval()
        twin.load_state_dict(head.state_dict())
        assert torch.equal(twin.log_kappa(*output), head.log_kappa(*output))
        assert twin.parameter_count == head.parameter_count > 0

    def test_starts_constant_then_learns(self, head: ConfidenceHead, output: tuple[Tensor, Tensor]) -> None:
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
    def test_refuses_a_start_that_is_none(self, head: ConfidenceHead, kappa: float) -> None:
        with pytest.raises(InputError, match="finite positive kappa"):
            head.init_constant(kappa)

    def test_refuses_nan(self, head: ConfidenceHead, output: tuple[Tensor, Tensor]) -> None:
        features, embedding = output
        features[3, 0, 0, 0] = torch.nan
        with pytest.raises(InputError, match=r"1 of 6 .*NaN.*images 3"):
            head.log_kappa(features, embedding)

    def test_refuses_another_size(self, head: ConfidenceHead, output: tuple[Tensor, Tensor]) -> None:
        with pytest.raises(InputError, match=r"expected feature maps \(n, 16, 7, 7\), got \(6, 16, 6, 7\)"):
            head.log_kappa(output[0][:, :, 1:], output[1])
