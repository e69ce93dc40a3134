import threading
from pathlib import Path

import numpy as np
import pytest
from tests.data.conftest import picture

from spherecf.data import IdentityFolder, ImageError, Skipped, iter_images, load_batches
from spherecf.errors import InputError


def test_batches_follow_the_requested_order(folder: Path) -> None:
    source = IdentityFolder(folder)
    batches = list(iter_images(source, [5, 0, 3, 3, 1], batch=2, workers=3, encoded=True))
    assert [batch.rows.tolist() for batch in batches] == [[5, 0], [3, 3], [1]]
    for batch in batches:
        for row, image, encoded in zip(batch.rows, batch.images, batch.encoded):
            assert np.array_equal(image, source.image(int(row))) and encoded == source.read(int(row))


def test_bad_images_raise_or_are_listed(folder: Path) -> None:
    (folder / "ann/2.jpg").write_text("this is text")
    (folder / "bob/1.jpg").write_bytes(picture(1)[:-30])
    (folder / "cleo/1.jpg").write_bytes(picture(1, height=20))
    source = IdentityFolder(folder)
    for rows in (None, [1]):  # the first image may be good, or be the broken one
        with pytest.raises(ImageError, match=r"faces:ann/2\.jpg"):
            list(iter_images(source, rows))
    skipped: list[Skipped] = []
    batches = [b.rows.tolist() for b in iter_images(source, batch=2, on_error="skip", skipped=skipped)]
    assert batches == [[0], [2], [4]]
    assert [item.key for item in skipped] == ["ann/2.jpg", "bob/1.jpg", "cleo/1.jpg"]
    assert "not an image" in skipped[0].reason and "truncated" in skipped[1].reason
    assert "expected an image of 16x16 (height x width), got 20x16" in skipped[2].reason


def test_images_of_another_size_are_refused(folder: Path) -> None:
    with pytest.raises(ImageError, match="expected an image of 112x112"):
        next(iter_images(IdentityFolder(folder), size=(112, 112)))


@pytest.mark.parametrize("options", [{"batch": 0}, {"workers": 0}, {"on_error": "skip"}, {"skipped": []}])
def test_bad_options_are_refused_before_iteration(folder: Path, options: dict) -> None:
    with pytest.raises(InputError):
        iter_images(IdentityFolder(folder), **options)


def test_read_ahead_is_bounded_and_closing_ends_all_threads(folder: Path) -> None:
    class Counting(IdentityFolder):
        reads = 0

        def read(self, index: int) -> bytes:
            Counting.reads += 1
            return super().read(index)

    existing = threading.enumerate()  # may include threads of other tests
    batches = iter_images(Counting(folder), [0] * 1000, batch=1, workers=2)
    next(batches)
    assert Counting.reads <= 4
    batches.close()
    assert Counting.reads <= 4
    new_threads = [thread for thread in threading.enumerate() if thread not in existing]
    assert not [thread for thread in new_threads if thread.name.startswith("decode")]


def test_each_requested_batch_yields_one_batch_even_if_images_fail(folder: Path) -> None:
    (folder / "ann/2.jpg").write_text("this is text")
    (folder / "cleo/1.jpg").write_bytes(picture(1, height=20))
    source = IdentityFolder(folder)
    requests = [np.array([0, 1, 2]), np.array([1, 5]), np.array([], np.int64), [4]]
    batches = list(load_batches(source, iter(requests), size=(16, 16), workers=2))
    assert [batch.rows.tolist() for batch in batches] == [[0, 2], [], [], [4]]
    assert [batch.images.shape for batch in batches] == [(count, 16, 16, 3) for count in (2, 0, 0, 1)]
    assert [[item.key for item in batch.skipped] for batch in batches] == [
        ["ann/2.jpg"], ["ann/2.jpg", "cleo/1.jpg"], [], [],
    ]  # fmt: skip
    assert np.array_equal(batches[0].images[1], source.image(2)) and batches[0].encoded == []
    with pytest.raises(ImageError, match=r"ann/2\.jpg"):
        list(load_batches(source, requests, size=(16, 16), on_error="raise"))


def test_requested_batches_may_be_an_infinite_iterator(folder: Path) -> None:
    batches = load_batches(IdentityFolder(folder), ([row % 6] for row in range(10**12)), size=(16, 16))
    assert [next(batches).rows.tolist() for _ in range(3)] == [[0], [1], [2]]
    batches.close()


@pytest.mark.parametrize("row", [-1, 6])
def test_rows_out_of_range_are_refused(folder: Path, row: int) -> None:
    with pytest.raises(InputError, match=r"rows must be in 0\.\.5"):
        next(load_batches(IdentityFolder(folder), [[0, row]], size=(16, 16)))
    with pytest.raises(InputError, match=r"rows must be in 0\.\.5"):
        iter_images(IdentityFolder(folder), [row])
