"""Conformance tests for backbones: subclass `BackboneConformance` and override the fixture `backbone`."""

import numpy as np
import pytest
import torch

from spherecf.errors import InputError
from spherecf.models import FrozenBackbone


class BackboneConformance:
    """Tests that every backbone must pass, whatever its network."""

    @pytest.fixture
    def backbone(self) -> FrozenBackbone:
        raise NotImplementedError

    @pytest.fixture
    def images(self, backbone: FrozenBackbone) -> np.ndarray:
        shape = (5, *backbone.preprocessing.size, 3)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def test_outputs_match_the_declared_shapes(self, backbone: FrozenBackbone, images: np.ndarray) -> None:
        output = backbone(images)
        assert output.embedding.shape == (5, backbone.dim) and output.embedding.dtype == torch.float32
        assert (
            output.features.shape == (5, *backbone.feature_shape) and output.features.dtype == torch.float32
        )
        assert max(backbone.feature_shape[1:]) > 1  # a feature map, or tokens as one column
        torch.testing.assert_close(output.mu.norm(dim=1), torch.ones(5))
        torch.testing.assert_close(output.mu * output.norm[:, None], output.embedding)
        assert len(backbone.sha256) == 64 and backbone.name in repr(backbone)

    def test_output_does_not_depend_on_the_batch(self, backbone: FrozenBackbone, images: np.ndarray) -> None:
        batched = backbone(images)
        single = [backbone(image[None]) for image in images]
        for name in ("embedding", "features"):
            expected, actual = getattr(batched, name), torch.cat([getattr(output, name) for output in single])
            scale = max(1.0, float(expected.abs().max()))
            torch.testing.assert_close(actual, expected, atol=1e-5 * scale, rtol=0)

    def test_different_images_have_different_outputs(
        self, backbone: FrozenBackbone, images: np.ndarray
    ) -> None:
        output = backbone(images)
        assert float((output.embedding[0] - output.embedding[1]).abs().max()) > 1e-4
        assert float((output.features[0] - output.features[1]).abs().max()) > 1e-4

    def test_accepts_tensors_and_empty_batches(self, backbone: FrozenBackbone, images: np.ndarray) -> None:
        assert torch.equal(backbone(torch.from_numpy(images)).embedding, backbone(images).embedding)
        empty = backbone(images[:0])
        assert empty.mu.shape == (0, backbone.dim) and empty.features.shape == (0, *backbone.feature_shape)

    def test_is_frozen(self, backbone: FrozenBackbone, images: np.ndarray) -> None:
        with torch.enable_grad():
            first = backbone(images)
        assert not first.embedding.requires_grad and not first.features.requires_grad
        assert torch.equal(backbone(images).embedding, first.embedding)
        head = torch.nn.Linear(backbone.dim, 1)  # the outputs can train a head
        head(first.embedding).sum().backward()
        assert head.weight.grad is not None

    @pytest.mark.parametrize("defect", ["float", "flat", "grey", "small"])
    def test_refuses_images_of_another_type_or_size(
        self, backbone: FrozenBackbone, images: np.ndarray, defect: str
    ) -> None:
        bad = {
            "float": images.astype(np.float32),
            "flat": images[0],
            "grey": images[..., :1],
            "small": images[:, :-1],
        }[defect]
        with pytest.raises(InputError, match=r"expected uint8 RGB faces \(n, \d+, \d+, 3\), got"):
            backbone(bad)
