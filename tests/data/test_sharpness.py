from inspect import unwrap

import cv2
import numpy as np
import pytest

from spherecf.data import orl_faces, sharpness
from spherecf.errors import InputError


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64)
    padded = np.pad(grey, 1, mode="reflect")
    laplacian = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * grey
    assert sharpness(image) == pytest.approx(laplacian.var(), rel=1e-5)


@pytest.mark.parametrize("image", [None, np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3)), [[[0, 0, 0]]]])
def test_only_rgb_images_are_accepted(image: object) -> None:
    with pytest.raises(InputError, match=r"expected a uint8 RGB image .* got"):
        unwrap(sharpness)(image)  # without the type checks of the tests


def test_sharpness_falls_with_blur() -> None:
    image = orl_faces().image(0)
    values = [sharpness(image), *(sharpness(cv2.GaussianBlur(image, (0, 0), s)) for s in (0.7, 1.5, 3, 6))]
    assert values == sorted(values, reverse=True) and values[0] > 20 * values[-1]


def test_sharpness_is_invariant_to_rotation_and_mirroring() -> None:
    image = orl_faces().image(0)
    for transformed in (image[:, ::-1], image[::-1], np.rot90(image)):
        assert sharpness(np.ascontiguousarray(transformed)) == pytest.approx(sharpness(image), rel=1e-6)
