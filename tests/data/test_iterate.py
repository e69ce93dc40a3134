import threading
from pathlib import Path

import numpy as np
import pytest
from tests.data.conftest import picture

from spherecf.data import IdentityFolder, ImageError, Skipped, iter_images
from spherecf.errors import InputError


def test_batches_come_in_the_order_asked_for(folder: Path) -> None:
    source = IdentityFolder(folder)
    batches = list(iter_images(source, [5, 0, 3, 3, 1], batch=2, workers=3))
    assert [batch.rows.tolist() for batch in batches] == [[5, 0], [3, 3], [1]]
    for batch in batches:
        for row, image, encoded in zip(batch.rows, batch.images, batch.encoded):
            assert np.array_equal(image, source.image(int(row))) and encoded == source.read(int(row))


def test_bad_images_stop_or_are_listed(folder: Path) -> None:
    (folder / "ann/2.jpg").write_text("this is text")
    (folder / "bob/1.jpg").write_bytes(picture(1)[:-30])
    (folder / "cleo/1.jpg").write_bytes(picture(1, height=20))
    source = IdentityFolder(folder)
    with pytest.raises(ImageError, match=r"faces:ann/2\.jpg"):
        list(iter_images(source))
    skipped: list[Skipped] = []
    rows = [batch.rows.tolist() for batch in iter_images(source, batch=2, on_error="skip", skipped=skipped)]
    assert rows == [[0], [2], [4]]
    assert [item.key for item in skipped] == ["ann/2.jpg", "bob/1.jpg", "cleo/1.jpg"]
    assert "not an image" in skipped[0].reason and "truncated" in skipped[1].reason
    assert "expected a picture of 16x16 (height x width), got 20x16" in skipped[2].reason


def test_a_given_size_is_required(folder: Path) -> None:
    with pytest.raises(ImageError, match="expected a picture of 112x112"):
        next(iter_images(IdentityFolder(folder), size=(112, 112)))


@pytest.mark.parametrize("options", [{"batch": 0}, {"workers": 0}, {"on_error": "skip"}, {"skipped": []}])
def test_bad_options_are_refused_at_the_call(folder: Path, options: dict) -> None:
    with pytest.raises(InputError):
        iter_images(IdentityFolder(folder), **options)


def test_memory_is_bounded_and_an_early_stop_leaves_no_thread(folder: Path) -> None:
    class Counting(IdentityFolder):
        reads = 0

        def read(self, index: int) -> bytes:
            Counting.reads += 1
            return super().read(index)

    batches = iter_images(Counting(folder), [0] * 1000, batch=1, workers=2)
    next(batches)
    assert Counting.reads <= 4
    batches.close()
    assert Counting.reads <= 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]
