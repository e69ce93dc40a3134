import pickle

import numpy as np
import pytest

from spherecf.data import Keys
from spherecf.data.text import NumberKeys, PackedKeys, PickedKeys, repeats

NAMES = ["ann/1.jpg", "", "Zoë/ü.jpg", "bad\udcff.jpg", "last"]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (NumberKeys(np.array([3, 10, 2**40])), ["3", "10", str(2**40)]),
        (PackedKeys(NAMES), NAMES),
        (PickedKeys(PackedKeys(NAMES), np.array([4, 0, 2])), [NAMES[4], NAMES[0], NAMES[2]]),
        (PickedKeys(NAMES, np.array([], np.int64)), []),
    ],
)
def test_lazy_keys_behave_like_a_list(keys: Keys, expected: list[str]) -> None:
    assert len(keys) == len(expected) and list(keys) == expected
    assert keys == expected and expected == keys and keys == tuple(expected)
    assert keys != [*expected, "more"] and keys != [name + "x" for name in expected] + [""] * (not expected)
    for selection in (slice(None), slice(1, None), slice(None, None, -1), slice(-2, None), slice(5, 9)):
        assert keys[selection] == expected[selection]
    for row in range(-len(expected), len(expected)):
        assert keys[row] == keys[np.int64(row)] == expected[row]
    for row in (len(expected), -len(expected) - 1):
        with pytest.raises(IndexError):
            keys[row]
    for protocol in (4, 5):
        assert pickle.loads(pickle.dumps(keys, protocol)) == keys
    buffers: list[pickle.PickleBuffer] = []
    shared = pickle.loads(
        pickle.dumps(keys, 5, buffer_callback=buffers.append),
        buffers=[memoryview(bytes(buffer.raw())) for buffer in buffers],
    )
    assert shared == keys and shared[:2] == expected[:2]


def test_keys_do_not_equal_a_string_and_are_unhashable() -> None:
    assert NumberKeys(np.array([1, 2])) != "12"
    with pytest.raises(TypeError):
        hash(PackedKeys(["a"]))


def test_repeats_are_found_despite_hash_collisions(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ["a", "b", "a", "c", "b", "a"]
    assert repeats(keys) == [(2, 0), (4, 1), (5, 0)] and repeats(["a", "b"]) == []
    monkeypatch.setattr("spherecf.data.text.hash", lambda key: 7, raising=False)
    assert repeats(keys) == [(2, 0), (4, 1), (5, 0)] and repeats(["a", "b"]) == []
