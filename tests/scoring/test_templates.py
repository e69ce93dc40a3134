"""Finding templates by id."""

import numpy as np
import pytest

from spherecf.errors import InputError
from spherecf.scoring import Templates, pool_templates


def templates(ids: list[int]) -> Templates:
    mu = np.random.default_rng(0).normal(size=(len(ids), 8))
    return pool_templates(
        (mu / np.linalg.norm(mu, axis=1)[:, None]).astype(np.float32), np.ones(len(ids)), ids
    )


@pytest.mark.parametrize("spread", [1, 10**12])  # by table, by bisection
def test_positions_are_in_the_order_of_the_ids(spread: int) -> None:
    t = templates([spread * i for i in (7, -3, 5, 9)])
    asked = np.array([9, -3, 9, 7]) * spread
    assert t.ids[t.positions(asked)].tolist() == asked.tolist()
    assert t.positions(asked.reshape(2, 2)).shape == (2, 2)
    assert t.positions([]).size == 0


@pytest.mark.parametrize("spread", [1, 10**12])
def test_unknown_templates_are_counted_and_named(spread: int) -> None:
    t = templates([2 * spread, 4 * spread])
    with pytest.raises(
        InputError, match=rf"2 templates have no image \(3 of 4 entries .*first {3 * spread}, "
    ):
        t.positions(np.array([4, 3, 9, 3]) * spread)
    for far in (-(10**15), 10**15):
        with pytest.raises(InputError, match="1 templates have no image"):
            t.positions([far])


def test_ids_must_be_integers() -> None:
    with pytest.raises(InputError, match="expected integers, got float64"):
        templates([1, 2]).positions(np.array([1.5]))


def test_a_mask_selects_where_it_is_true() -> None:
    """As row numbers, its booleans would always select the first two templates."""
    t = templates([1, 2, 3, 4])
    assert t.select(t.ids > 2).ids.tolist() == [3, 4]


def test_select_keeps_the_fields_of_each_template_together() -> None:
    t = templates([3, 1, 2])
    part = t.select([2, 0, 2])
    assert (part.ids.tolist(), len(part), part.dim) == ([1, 3], 2, 8)
    np.testing.assert_array_equal(part.mu, t.mu[[0, 2]])
    np.testing.assert_array_equal(part.kappa, t.kappa[[0, 2]])
