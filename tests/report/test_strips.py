"""Strips show the right images in order, with captions."""

import cv2
import numpy as np
import pytest

from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation import Mistake
from spherecf.report import strip_by_kappa, strips_of_mistakes

PNG = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
JPEG = cv2.imencode(".jpg", np.zeros((4, 4, 3), np.uint8))[1].tobytes()


def test_a_strip_is_sorted_by_kappa_and_spread_by_rank() -> None:
    kappa = np.array([9.5, 1000.0, 50.0, 3.0, 7.0, 200.0])
    e = Embeddings(np.eye(6), np.log(kappa), list("abcdef"))
    requested_keys: list[str] = []

    def picture(key: str) -> bytes:
        requested_keys.append(key)
        return PNG

    strip = strip_by_kappa("faces", e, picture, count=3)
    assert requested_keys == ["d", "a", "b"] or requested_keys == ["d", "c", "b"]
    assert strip.captions[0] == "κ 3" and strip.captions[-1] == "κ 1,000" and len(strip.images) == 3
    selected = strip_by_kappa("faces", e, picture, keys=["a", "a", "b", "gone"])
    assert selected.captions == ["κ 9.5", "κ 1,000"]
    with pytest.raises(InputError, match="nothing to show"):
        strip_by_kappa("faces", e, picture, keys=["gone"])


def test_mistakes_are_shown_in_pairs_by_score_and_kind() -> None:
    mistakes = [
        Mistake("mls", True, -3.25, "a", "b", (1500.0, 12.0), ("ann", "ann")),
        Mistake("mls", False, 9.5, "c", "d", (80.0, 90.0), ("ann", "bob")),
        Mistake("mls", True, -1.0, "e", "f", (80.0, 90.0), ("", "")),
    ]
    requested_keys: list[str] = []

    def left(key: str) -> bytes:
        requested_keys.append(key)
        return PNG

    strips = strips_of_mistakes(mistakes, left, lambda key: JPEG, title="lfw")
    assert [strip.title for strip in strips] == [
        "lfw: mls: the mated pairs with the lowest scores",
        "lfw: mls: the non-mated pairs with the highest scores",
    ]
    assert requested_keys == ["a", "e", "c"] and strips[0].beside == [JPEG, JPEG]
    assert strips[0].captions == ["-3.25\nκ 1,500 | 12\nann", "-1\nκ 80 | 90"]
    assert strips[1].captions == ["9.5\nκ 80 | 90\nann\nbob"]
    assert strips_of_mistakes([], left) == []
