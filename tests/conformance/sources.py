"""Conformance tests for `ImageSource`: override the fixture `source` (at least three readable images)."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

import numpy as np
import pytest

from spherecf.data import ImageSource, decode_image, iter_images
from spherecf.errors import InputError


class ImageSourceConformance:
    """Tests that every image source must pass; subclass it in the tests of the reader."""

    @pytest.fixture
    def source(self) -> ImageSource:
        raise NotImplementedError

    def test_columns_have_one_length(self, source: ImageSource) -> None:
        assert len(source) == len(source.keys) == len(source.labels) == len(source.sizes()) >= 3

    def test_keys_are_unique_posix_names(self, source: ImageSource) -> None:
        assert len(set(source.keys)) == len(source)
        assert all(key and str(PurePosixPath(key)) == key for key in source.keys)

    def test_labels_are_indices_of_identities(self, source: ImageSource) -> None:
        assert source.labels.dtype == np.int64
        assert source.labels.min() >= -1 and source.labels.max() < len(source.identities)
        assert len(set(source.identities)) == len(source.identities)

    def test_images_are_rgb_bytes(self, source: ImageSource) -> None:
        for index in range(len(source)):
            image = source.image(index)
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
            assert np.array_equal(image, decode_image(source.read(index)))

    def test_sizes_are_upper_bounds_of_the_content(self, source: ImageSource) -> None:
        contents = [len(source.read(index)) for index in range(len(source))]
        assert (source.sizes() >= contents).all()

    def test_reading_from_threads_gives_the_same_bytes(self, source: ImageSource) -> None:
        sequential = [source.read(index) for index in range(len(source))]
        with ThreadPoolExecutor(4) as pool:
            concurrent = list(pool.map(source.read, list(range(len(source))) * 20))
        assert concurrent == sequential * 20

    def test_source_can_be_pickled(self, source: ImageSource) -> None:
        copy = pickle.loads(pickle.dumps(source))
        assert copy.keys == source.keys and copy.fingerprint() == source.fingerprint()
        assert copy.read(1) == source.read(1)

    def test_subset_keeps_order_keys_and_labels(self, source: ImageSource) -> None:
        subset = source.subset(np.array([2, 0]))
        assert subset.keys == [source.keys[2], source.keys[0]]
        assert subset.labels.tolist() == source.labels[[2, 0]].tolist()
        assert subset.identities == source.identities
        assert subset.read(0) == source.read(2)
        assert subset.sizes().tolist() == source.sizes()[[2, 0]].tolist()

    def test_fingerprint_depends_on_the_images(self, source: ImageSource) -> None:
        prints = {source.subset(rows).fingerprint() for rows in ([0, 1], [1, 0], [0, 2])}
        assert len(prints | {source.fingerprint()}) == 4
        assert source.subset(range(len(source))).fingerprint() == source.fingerprint()

    @pytest.mark.parametrize("rows", [[0, 0], [-1], [10**6]])
    def test_subset_refuses_bad_indices(self, source: ImageSource, rows: list[int]) -> None:
        with pytest.raises(InputError, match="index"):
            source.subset(rows)

    def test_iteration_is_in_order(self, source: ImageSource) -> None:
        rows = np.concatenate([batch.rows for batch in iter_images(source, batch=2, workers=2)])
        assert rows.tolist() == list(range(len(source)))
