"""Pooling against a plain loop, and groups that cannot be pooled."""

from inspect import unwrap

import pytest
import torch
from scorers import directions

from spherecf.errors import InputError
from spherecf.scoring import pool


def slow_pool(mu, kappa, groups, media):  # type: ignore[no-untyped-def]
    for group in sorted(set(groups)):
        total = torch.zeros(mu.shape[1], dtype=mu.dtype)
        here = [i for i, g in enumerate(groups) if g == group]
        for medium in {media[i] for i in here}:
            frames = [i for i in here if media[i] == medium]
            total += sum(kappa[i] * mu[i] for i in frames) / len(frames)
        yield group, total / total.norm(), total.norm()


@pytest.mark.parametrize("with_media", [False, True])
def test_equals_a_plain_loop(with_media: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    mu, kappa = (
        directions(60, 8, dtype=torch.float64),
        torch.rand(60, generator=generator, dtype=torch.float64),
    )
    groups = torch.randint(-3, 5, (60,), generator=generator) * 10
    media = torch.randint(0, 4, (60,), generator=generator) if with_media else None
    each = media.tolist() if media is not None else list(range(60))
    pooled = pool(mu, kappa, groups, media)
    expected = list(slow_pool(mu, kappa, groups.tolist(), each))
    assert pooled.groups.tolist() == [group for group, _, _ in expected]
    torch.testing.assert_close(pooled.mu, torch.stack([direction for _, direction, _ in expected]))
    torch.testing.assert_close(pooled.kappa, torch.stack([length for _, _, length in expected]))


def test_one_image_is_itself() -> None:
    mu, kappa = directions(4, 8), torch.tensor([1.0, 2.0, 3.0, 4.0])
    pooled = pool(mu, kappa, torch.arange(4))
    torch.testing.assert_close(pooled.mu, mu)
    torch.testing.assert_close(pooled.kappa, kappa)


def test_repeating_a_frame_of_one_medium_changes_nothing() -> None:
    mu, kappa = directions(3, 8), torch.tensor([1.0, 2.0, 3.0])
    again = torch.tensor([0, 0, 0, 1, 2])
    zero = torch.zeros(3, dtype=torch.int64)
    once = pool(mu, kappa, zero, media=torch.arange(3))
    thrice = pool(mu[again], kappa[again], zero[again], media=again)
    torch.testing.assert_close(once.mu, thrice.mu)
    torch.testing.assert_close(once.kappa, thrice.kappa)


def test_ids_choose_and_order() -> None:
    mu, kappa = directions(3, 8), torch.ones(3)
    pooled = pool(mu, kappa, torch.tensor([7, 3, 9]), ids=torch.tensor([9, 7]))
    assert pooled.groups.tolist() == [9, 7]
    torch.testing.assert_close(pooled.mu, mu[[2, 0]])


def test_group_without_images_is_named() -> None:
    with pytest.raises(InputError, match="1 of 2 groups have no image, first group 8"):
        pool(directions(2, 4), torch.ones(2), torch.tensor([7, 9]), ids=torch.tensor([9, 8]))
    with pytest.raises(InputError, match="2 of 3 groups have no image, first group 10"):
        pool(directions(2, 4), torch.ones(2), torch.tensor([7, 9]), ids=torch.tensor([10, 9, 6]))


def test_cancelling_group_is_named() -> None:
    mu = directions(1, 4)
    groups = torch.tensor([4, 4, 1])
    with pytest.raises(InputError, match=r"1 of 2 groups .*first group 4: its directions cancel"):
        pool(torch.cat([mu, -mu, mu]), torch.ones(3), groups)
    with pytest.raises(InputError, match="first group 1: all its weights are 0"):
        pool(torch.cat([mu, mu, mu]), torch.tensor([1.0, 1.0, 0.0]), groups)


def test_bad_kappa_is_refused() -> None:
    with pytest.raises(InputError, match="kappa: 1 of 2"):
        pool(directions(2, 4), torch.tensor([1.0, -1.0]), torch.tensor([0, 0]))


@pytest.mark.parametrize("share", [1e-5, 1e-4])
def test_a_short_sum_is_still_a_direction(share: float) -> None:
    """Directions nearly cancel: |sum| over the sum of the norms is `share`, far above rounding."""
    mu = torch.tensor([[1.0, share], [-1.0, share]], dtype=torch.float64)
    pooled = pool(
        mu / mu.norm(dim=1, keepdim=True), torch.ones(2, dtype=torch.float64), torch.zeros(2).long()
    )
    torch.testing.assert_close(pooled.mu, torch.tensor([[0.0, 1.0]], dtype=torch.float64))
    assert float(pooled.kappa) == pytest.approx(2 * share)
    frames = torch.arange(2).repeat_interleave(500)  # as often as may be, a medium counts once
    again = pool(
        (mu / mu.norm(dim=1, keepdim=True))[frames],
        torch.ones(1000, dtype=torch.float64),
        torch.zeros(1000).long(),
        frames,
    )
    assert float(again.kappa) == pytest.approx(2 * share)


def test_a_sum_of_rounding_errors_is_no_direction() -> None:
    mu = torch.tensor([[1.0, 3e-7], [-1.0, 3e-7]], dtype=torch.float64)
    with pytest.raises(InputError, match="its directions cancel"):
        pool(mu, torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(half: torch.dtype) -> None:
    """A sum in bfloat16 stops growing at 256 times the summand, one in float16 overflows beyond 65504."""
    mu, kappa = torch.tensor([[1.0, 0.0]], dtype=half).expand(1000, 2), torch.full((1000,), 200.0, dtype=half)
    pooled = pool(mu, kappa, torch.zeros(1000, dtype=torch.int64))
    assert pooled.kappa.dtype == pooled.mu.dtype == torch.float32
    assert pooled.kappa.tolist() == [200_000.0] and pooled.mu.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("kappa", [1e-30, 1e30])
def test_the_norm_of_the_sum_neither_overflows_nor_vanishes(kappa: float) -> None:
    pooled = pool(torch.eye(2), torch.full((2,), kappa), torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(pooled.mu, torch.full((1, 2), 0.5**0.5))
    assert float(pooled.kappa) == pytest.approx(kappa * 2**0.5)


@pytest.mark.parametrize("ids", [torch.tensor(1), torch.tensor([[0, 1]])])
def test_ids_of_another_number_of_axes_are_refused(ids: torch.Tensor) -> None:
    with pytest.raises(InputError, match="ids: expected one axis"):
        unwrap(pool)(torch.eye(2), torch.ones(2), torch.tensor([0, 1]), ids=ids)


def test_unsigned_ids_beyond_int64_are_refused() -> None:
    with pytest.raises(InputError, match=r"groups: expected integers below 2\^63, got 9223372036854775813"):
        unwrap(pool)(torch.eye(2), torch.ones(2), torch.tensor([0, 2**63 + 5], dtype=torch.uint64))
