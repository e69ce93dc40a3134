import numpy as np
import pytest

from spherecf.gallery.mirror import Mirror


def test_rows_are_ordered_by_kappa_and_bins_cover_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spherecf.gallery.mirror._BIN_ROWS", 10)
    rng = np.random.default_rng(0)
    mirror, kappa = Mirror(4), rng.permutation(35).astype(np.float32)
    keys = [f"k{int(one)}" for one in kappa]
    mu = rng.standard_normal((35, 4)).astype(np.float32)
    mirror.extend(keys, keys, mu, kappa, np.ones(35), np.ones(35))
    first = mirror.bins()
    assert mirror.kappa.tolist() == sorted(kappa.tolist()) and first.starts.tolist() == [0, 10, 20, 30]
    assert first.ends.low.tolist() == [0, 10, 20, 30] and first.ends.high.tolist() == [
        9,
        19,
        29,
        34,
    ]
    mirror.put("late", "Late", mu[0], 5.0, 2, 1)
    later = mirror.bins()
    assert later.starts.tolist() == [0, 10, 20, 30, 35] and later.ends.low[-1] == 5
    row = mirror.find("late")
    assert row == 35 and mirror.images[row] == 2 and mirror.names[row] == "Late"
    for key, one in zip(keys, mu):
        np.testing.assert_array_equal(mirror.mu[mirror.find(key)], one)


def test_a_removed_direction_is_gone_from_memory() -> None:
    mirror = Mirror(2)
    mirror.put("a", "Ann", np.array([0.6, 0.8], np.float32), 3.0, 1, 1)
    before = mirror.changes
    assert mirror.drop("a") and not mirror.mu.any() and mirror.names == [""] and mirror.find("a") is None
    assert len(mirror) == 0 and mirror.changes > before
