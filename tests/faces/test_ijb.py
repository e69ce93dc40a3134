"""Loose crops aligned by the landmarks of the IJB meta files."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.conformance.sources import ImageSourceConformance

from spherecf.data import IjbMeta, ImageError, ImageSource, iter_images
from spherecf.errors import InputError
from spherecf.faces import ARCFACE_POINTS, IjbFaces, align


def make_faces(folder: Path, shift: float = 0.0) -> IjbFaces:
    """Three images, the first of which belongs to two templates."""
    rng = np.random.default_rng(0)
    (folder / "loose_crop").mkdir(exist_ok=True)
    for name in "123":
        image = rng.integers(0, 256, (150, 140, 3), np.uint8)
        (folder / f"loose_crop/{name}.jpg").write_bytes(cv2.imencode(".png", image[..., ::-1])[1].tobytes())
    points = np.stack([ARCFACE_POINTS * scale + shift for scale in (1, 1.1, 0.8, 1)]).astype(np.float32)
    ids = np.array([1, 2, 3, 4])
    return IjbFaces(folder, IjbMeta("toy", ["1.jpg", "2.jpg", "3.jpg", "1.jpg"], ids, ids, points=points))


class TestIjbFaces(ImageSourceConformance):
    @pytest.fixture
    def source(self, tmp_path: Path) -> ImageSource:
        return make_faces(tmp_path)


def test_each_image_occurs_once_aligned_by_its_landmarks(tmp_path: Path) -> None:
    source = make_faces(tmp_path)
    assert source.keys == ["1.jpg", "2.jpg", "3.jpg"] and source.alignment == "arcface112+given-points"
    data = np.frombuffer((tmp_path / "loose_crop/2.jpg").read_bytes(), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    assert np.array_equal(source.image(1), align(image, np.float32(ARCFACE_POINTS * 1.1)))
    assert (
        source.fingerprint() == make_faces(tmp_path).fingerprint() != make_faces(tmp_path, 1.0).fingerprint()
    )


def test_images_that_cannot_be_aligned_are_skipped(tmp_path: Path) -> None:
    source = make_faces(tmp_path)
    (tmp_path / "loose_crop/2.jpg").unlink()
    source._points[2] = 5
    skipped: list = []
    list(iter_images(source, on_error="skip", skipped=skipped))
    assert [item.key for item in skipped] == ["2.jpg", "3.jpg"]
    assert "cannot read" in skipped[0].reason and "cannot be aligned by its landmarks" in skipped[1].reason
    with pytest.raises(ImageError, match="crops are 112x112"):
        source.image(0, (96, 96))
    ids = np.array([1])
    with pytest.raises(InputError, match="expected landmarks"):
        IjbFaces(tmp_path, IjbMeta("toy", ["1.jpg"], ids, ids))
