"""Tiles of cosines against the plain product."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from spherecf.errors import InputError
from spherecf.scoring import cosine_tiles, matrix as matrix_module


def sides(rows: int = 150, columns: int = 70, dim: int = 24) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    drawn = (rng.normal(size=(n, dim)) for n in (rows, columns))
    return tuple((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in drawn)  # type: ignore[return-value]


@pytest.mark.parametrize("threads", [1, 3])
def test_all_rows_in_order(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    a, b = sides()
    monkeypatch.setattr(matrix_module, "_CELLS", 40 * 70)
    tiles = list(cosine_tiles(a, b, threads=threads))
    assert [rows.start for rows, _ in tiles] == [0, *(rows.stop for rows, _ in tiles[:-1])]
    assert len(tiles) == 4 and tiles[-1][0].stop == 150
    cosines = np.concatenate([tile for _, tile in tiles])
    np.testing.assert_allclose(cosines, a.astype(np.float64) @ b.T.astype(np.float64), atol=1e-6)
    one = np.concatenate([tile for _, tile in cosine_tiles(a, b, threads=1)])
    np.testing.assert_array_equal(cosines, one)


def test_torch_keeps_its_number_of_threads() -> None:
    a, b = sides()
    before = torch.get_num_threads()
    tiles = cosine_tiles(a, b, threads=3)
    next(tiles)
    tiles.close()  # type: ignore[attr-defined]
    assert torch.get_num_threads() == before
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == before


def test_empty_sides() -> None:
    a, b = sides()
    assert list(cosine_tiles(a[:0], b)) == []
    assert [tile.shape for _, tile in cosine_tiles(a, b[:0])] == [(150, 0)]


def test_blocks_are_even() -> None:
    blocks = matrix_module.row_blocks(100, 10, 330)
    assert [block.stop - block.start for block in blocks] == [25, 25, 25, 25]
    assert matrix_module.row_blocks(0, 5, 10) == [] and len(matrix_module.row_blocks(3, 1000, 10)) == 3


def test_bad_input() -> None:
    a, b = sides()
    with pytest.raises(InputError, match=r"got \(150, 24\) and \(70, 23\)"):
        cosine_tiles(a, b[:, 1:])
    with pytest.raises(InputError, match="threads: expected 1 or more"):
        cosine_tiles(a, b, threads=0)
    a[3, 3] = np.nan
    a[140] = 0
    with pytest.raises(InputError, match=r"a: 2 of 150 .*1 NaN or infinite \(first row 3\), 1 zero .*140"):
        list(cosine_tiles(a, b))
