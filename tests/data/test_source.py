import numpy as np
import pytest

from spherecf.data import ImageSource
from spherecf.data.text import refuse_duplicates
from spherecf.errors import FileFormatError, InputError


class Memory(ImageSource):
    def __init__(self, labels: list[int], identities: list[str]) -> None:
        super().__init__("memory", np.array(labels, np.int64), identities)

    @property
    def keys(self) -> list[str]:
        return [str(row) for row in range(len(self))]

    def read(self, index: int) -> bytes:
        return b"P5 1 1 255 " + bytes([index])

    def sizes(self) -> np.ndarray:
        return np.full(len(self), 12)


@pytest.mark.parametrize("labels", [[0, 2], [-2, 0]])
def test_labels_outside_the_identities_are_refused(labels: list[int]) -> None:
    with pytest.raises(InputError, match=r"labels must be in -1\.\.1"):
        Memory(labels, ["a", "b"])


def test_fingerprint_is_pinned() -> None:
    """Results store fingerprints: a different value changes the format and must be deliberate."""
    expected = "86922c6e708054e0e26637a5a00265761a28af4fb32a182bb213ba6bcef99322"
    assert Memory([0, 1, -1], ["a", "b"]).fingerprint() == expected


def test_duplicate_keys_are_counted_and_listed() -> None:
    refuse_duplicates(["a", "b"], "list")
    with pytest.raises(FileFormatError, match="list: 2 keys occur more than once: a, c"):
        refuse_duplicates(["a", "b", "a", "c", "c"], "list")
