"""SER-FIQ, GraFIQs and FaceQAN against slow implementations on tiny networks, and on real faces."""

import numpy as np
import pytest
import torch
from tests.models.conftest import TINY, noise
from torch import Tensor, nn
from torch.nn.functional import normalize

from spherecf.errors import InputError, ModelError
from spherecf.models import FrozenBackbone, RecogniserQuality

METHODS = ("norm", "ser_fiq", "grafiqs", "faceqan")


class Small(nn.Module):
    """A 1x1 convolution, batch normalisation and one dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4 * 16 * 16, 8)
        with torch.no_grad():
            self.bn.running_mean += torch.arange(4) / 10
            self.bn.running_var *= torch.arange(1, 5) / 3

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.bn(self.conv(x)))
        return self.fc(x.flatten(1)), x


@pytest.fixture
def small() -> FrozenBackbone:
    torch.manual_seed(3)
    return FrozenBackbone.from_module(Small(), TINY)


def test_ser_fiq_measures_the_spread_under_dropout(small: FrozenBackbone) -> None:
    images, expected = noise(2), []
    network = small.network
    for image in images:
        activations = network(TINY(image[None]))[1].flatten(1)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            mask = nn.functional.dropout(torch.ones(5, activations.shape[1]), 0.3)
        rows = (mask * activations) @ network.fc.weight.T + network.fc.bias
        rows = (rows / rows.norm(dim=1, keepdim=True)).double().numpy()
        distances = [np.linalg.norm(rows[a] - rows[b]) for a in range(5) for b in range(a)]
        expected.append(2 / (1 + np.exp(np.mean(distances))))
    qualities = RecogniserQuality(small).ser_fiq(images, passes=5, rate=0.3, seed=7)
    assert qualities.tolist() == pytest.approx(expected, rel=1e-5)


def test_grafiqs_is_the_inverse_gradient_norm_of_the_statistics_gap(small: FrozenBackbone) -> None:
    """Checked by central differences in double precision, pixel by pixel."""
    network = small.network
    weight, bias = network.conv.weight.double().numpy()[:, :, 0, 0], network.conv.bias.double().numpy()
    mean, variance = (b.double().numpy()[:, None] for b in (network.bn.running_mean, network.bn.running_var))

    def gap(pixels: np.ndarray) -> float:
        x = weight @ pixels.reshape(3, -1) + bias[:, None]
        return float(
            np.square(x.mean(1, keepdims=True) - mean).mean()
            + np.square(x.var(1, keepdims=True) - variance).mean()
        )

    image = noise(1, seed=4)
    x, total = TINY(image)[0].double().numpy().copy(), 0.0
    for position in np.ndindex(x.shape):
        ends = []
        for step in (1e-5, -1e-5):
            moved = x.copy()
            moved[position] += step
            ends.append(gap(moved))
        total += abs(ends[0] - ends[1]) / 2e-5
    assert RecogniserQuality(small).grafiqs(image).item() == pytest.approx(1 / total, rel=1e-4)


def test_faceqan_follows_the_published_algorithm(small: FrozenBackbone) -> None:
    image, epsilon = noise(1, seed=5), 0.05
    pixels, network = TINY(image), small.network
    embedding, mirrored = (normalize(network(x)[0], dim=1)[0] for x in (pixels, pixels.flip(3)))
    with torch.random.fork_rng():
        torch.manual_seed(11)
        start = torch.rand(3, 3, 16, 16) * 2 - 1
    cosines = []
    for copy in range(3):
        x = (pixels + 2 * epsilon * start[copy]).clamp(-1, 1)  # 255 grey levels correspond to a range of 2
        for _ in range(2):
            x = x.detach().requires_grad_()
            cosine = (normalize(network(x)[0], dim=1)[0] * embedding).sum()
            (1 - cosine).backward()
            cosines.append(cosine.item())
            x = (x + 2 * epsilon * x.grad.sign()).clamp(-1, 1)
    mean, deviation = np.mean(cosines), np.std(cosines)
    expected = ((1 + mean) / 2 * (1 - deviation) * (embedding @ mirrored).item()) ** 5
    quality = RecogniserQuality(small).faceqan(image, copies=3, steps=2, epsilon=epsilon, seed=11)
    assert quality.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_quality_is_independent_of_the_batch_and_free_of_side_effects(
    tiny: FrozenBackbone, method: str
) -> None:
    quality, images = RecogniserQuality(tiny), noise(3, seed=9)
    embeddings, state = tiny(images).mu, torch.random.get_rng_state()
    batched = getattr(quality, method)(images)
    single = torch.cat([getattr(quality, method)(image[None]) for image in images])
    torch.testing.assert_close(batched, single)
    assert batched.shape == (3,) and batched.isfinite().all() and len(batched.unique()) == 3
    assert torch.equal(embeddings, tiny(images).mu) and torch.equal(state, torch.random.get_rng_state())


def test_the_differentiable_network_keeps_its_batch_normalisations(tiny: FrozenBackbone) -> None:
    """For inference they are folded away, except those that follow no convolution."""
    count = [
        sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())
        for network in (tiny.network, tiny.differentiable())
    ]
    assert count == [3, 7]
    pixels = TINY(noise(2))
    torch.testing.assert_close(
        tiny.differentiable()(pixels)[0], tiny.network(pixels)[0], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("method", METHODS)
def test_half_hidden_faces_have_lower_quality(
    sface: FrozenBackbone, lfw_pairs: tuple[np.ndarray, np.ndarray], method: str
) -> None:
    faces = lfw_pairs[0][:4]
    hidden = np.where(np.arange(112)[:, None, None] < 64, noise(4, 112), faces)
    options = {"faceqan": {"copies": 2, "steps": 2}, "ser_fiq": {"passes": 20}}.get(method, {})
    clear, occluded = (
        getattr(RecogniserQuality(sface), method)(images, **options) for images in (faces, hidden)
    )
    assert clear.median() > occluded.median()


def test_invalid_arguments_and_networks_are_refused(tiny: FrozenBackbone, small: FrozenBackbone) -> None:
    quality = RecogniserQuality(small)
    for request in (
        lambda: quality.ser_fiq(noise(1), passes=1),
        lambda: quality.ser_fiq(noise(1), rate=1.0),
        lambda: quality.faceqan(noise(1), copies=1),
        lambda: quality.faceqan(noise(1), epsilon=0.0),
        lambda: quality.grafiqs(noise(1, 17)),
        lambda: quality.grafiqs(noise(0)),
    ):
        with pytest.raises(InputError):
            request()
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))

    class Bare(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return plain(x), x

    with pytest.raises(ModelError, match="GraFIQs needs batch normalisations"):
        RecogniserQuality(FrozenBackbone.from_module(Bare(), TINY)).grafiqs(noise(1))
    with pytest.raises(ModelError, match="no linear layer or convolution to which dropout could be applied"):
        RecogniserQuality(FrozenBackbone.from_module(Bare(), TINY)).ser_fiq(noise(1))


class Reshaped(nn.Module):
    """A dense layer whose result is given the number of images as its first dimension."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dense, self.dim = nn.Linear(3 * 16 * 16, 8), dim

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.dense(x.flatten(1)).reshape(len(x), self.dim), x


class Counting(Reshaped):
    """Results depend on the number of images, so that they are run one by one."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        embedding, x = super().forward(x)
        return embedding + len(x), x


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Reshaped(8), r"SER-FIQ cannot be computed: .*\[1, 8\].* invalid for input of size 800"),
        (Reshaped(-1), "100 rows with dropout gave 1 embeddings; the last layers mix rows"),
        (Counting(8), "its engine torch provides no gradients"),
    ],
    ids=["fixed", "inferred", "counted"],
)
def test_networks_that_count_the_images_have_no_ser_fiq(network: nn.Module, message: str) -> None:
    backbone = FrozenBackbone.from_module(network, TINY)
    with pytest.raises(ModelError, match=f"{type(network).__name__}: {message}"):
        RecogniserQuality(backbone).ser_fiq(noise(1))
