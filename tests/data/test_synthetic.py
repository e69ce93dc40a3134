import numpy as np
import pytest
from tests.conformance.sources import ImageSourceConformance

from spherecf.data import SyntheticImages, decode_image, iter_images, open_source
from spherecf.errors import InputError


class TestPng(ImageSourceConformance):
    @pytest.fixture
    def source(self) -> SyntheticImages:
        return SyntheticImages(12, 5, (24, 20), seed=3)


class TestJpeg(ImageSourceConformance):
    @pytest.fixture
    def source(self) -> SyntheticImages:
        return SyntheticImages(12, 5, (24, 20), encoded=".jpg")


def test_images_of_one_identity_are_closer_than_others() -> None:
    source = SyntheticImages(40, 8, (32, 32))
    images = np.stack([source.image(row) for row in range(40)]).astype(float)
    distance = np.abs(images[:, None] - images).mean((2, 3, 4))
    mated = source.labels[:, None] == source.labels
    assert distance[mated & ~np.eye(40, dtype=bool)].min() > 1, "no two images are equal"
    assert distance[mated].max() < distance[~mated].min()


def test_an_image_depends_only_on_seed_and_row() -> None:
    small_set, large_set, other_seed = (
        SyntheticImages(count, 4, seed=seed) for count, seed in ((5, 0), (5000, 0), (5, 1))
    )
    assert np.array_equal(small_set.image(3), large_set.image(3)) and not np.array_equal(
        small_set.image(3), other_seed.image(3)
    )


def test_labels_are_balanced_and_keys_are_lazy() -> None:
    source = SyntheticImages(1_000_003, 7)
    counts = np.bincount(source.labels)
    assert counts.max() - counts.min() <= 1 and source.keys[1_000_002] == "3/1000002"


def test_reading_pixels_never_encodes(monkeypatch: pytest.MonkeyPatch) -> None:
    source = SyntheticImages(8, 2, (16, 16))
    monkeypatch.setattr(SyntheticImages, "read", lambda *_: pytest.fail("encoded"))
    for batch in iter_images(source.subset(range(1, 7)), batch=4):
        assert batch.images.shape[1:] == (16, 16, 3)


def test_a_synthetic_source_opens_from_its_description() -> None:
    source = open_source("synthetic:images=10,identities=3,size=16,seed=5")
    assert np.array_equal(source.image(7), SyntheticImages(10, 3, (16, 16), 5).image(7))
    assert np.array_equal(decode_image(source.read(7)), source.image(7))


@pytest.mark.parametrize(
    "text",
    ["synthetic:", "synthetic:images=3", "synthetic:images=3,identities=x", "synthetic:images=3,identities=0",
     "synthetic:images=3,identities=2,colour=1", "synthetic:images=3,images=4,identities=2"],
)  # fmt: skip
def test_invalid_descriptions_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected"):
        open_source(text)


def test_unsupported_formats_and_seeds_are_refused() -> None:
    with pytest.raises(InputError, match=r"\.png or \.jpg"):
        SyntheticImages(3, 2, encoded=".gif")
    with pytest.raises(InputError, match="a seed >= 0"):
        SyntheticImages(3, 2, seed=-1)
