import numpy as np
import pytest

from spherecf.data import Degradation, View, training_views
from spherecf.errors import InputError


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)


def test_the_clean_view_is_the_image_itself(image: np.ndarray) -> None:
    view = View()(image, "key")
    assert np.array_equal(view.image, image) and (view.severity, view.kinds) == (0.0, ())


def test_flip_mirrors_the_degraded_image(image: np.ndarray) -> None:
    assert np.array_equal(View(flip=True)(image, "key").image, image[:, ::-1])
    degraded = Degradation("cross", 4)
    unflipped, mirrored = View(degraded)(image, "key"), View(degraded, flip=True)(image, "key")
    assert np.array_equal(mirrored.image, unflipped.image[:, ::-1])
    assert (mirrored.severity, mirrored.kinds) == (
        unflipped.severity,
        unflipped.kinds,
    ) and unflipped.severity > 0


def test_training_views_are_the_clean_image_and_independent_draws(image: np.ndarray) -> None:
    views = training_views(3, seed=2)
    assert [view.signature for view in views] == ["clean", "train-v1/2000", "train-v1/2001", "train-v1/2002"]
    images = [view(image, "key").image for view in views]
    assert all(not np.array_equal(images[i], images[j]) for i in range(4) for j in range(i))
    flipped = training_views(1, recipe="cross", flip=True)
    assert [view.signature for view in flipped] == ["clean", "cross-v1/0", "clean+flip", "cross-v1/0+flip"]
    assert [view.signature for view in training_views(0)] == ["clean"]


def test_views_of_different_seeds_do_not_overlap() -> None:
    signatures = [view.signature for seed in range(3) for view in training_views(5, seed=seed)[1:]]
    assert len(set(signatures)) == 15


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="0 or more, got -1"):
        training_views(-1)
    with pytest.raises(InputError, match="unknown degradation recipe"):
        training_views(1, recipe="nonsense")


def test_views_are_rebuilt_from_their_signature() -> None:
    for view in (View(), View(flip=True), View(Degradation("cross", 3), flip=True)):
        assert View.from_signature(view.signature).signature == view.signature
    for unknown in ("cross-v999/0", "own-v1/0", "cross-v1-12ab/0", "film"):
        with pytest.raises(InputError, match="cannot be reproduced"):
            View.from_signature(unknown)
