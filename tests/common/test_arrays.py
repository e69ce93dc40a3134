"""Validation of directions and concentrations, given as arrays or tensors."""

import numpy as np
import pytest
import torch

from spherecf.common import arrays
from spherecf.common.arrays import (
    UNIT_TOLERANCE,
    are_unit,
    as_array,
    as_tensor,
    check_directions,
    check_kappa,
    checked_radius,
    row_numbers,
    to_device,
)
from spherecf.errors import InputError

KINDS = {"array": np.asarray, "tensor": torch.from_numpy}


def unit(n: int = 20, dim: int = 8) -> np.ndarray:
    mu = np.random.default_rng(0).normal(size=(n, dim)).astype(np.float32)
    return mu / np.linalg.norm(mu, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_fault_is_counted_and_reported_with_its_first_row(kind: str) -> None:
    mu = unit()
    mu[[3, 7]] = np.nan
    mu[4, 2] = np.inf
    mu[11] = 0
    mu[12:] *= 22
    with pytest.raises(InputError) as caught:
        check_directions(KINDS[kind](mu), "mu", keys=[f"{i}.jpg" for i in range(20)])
    message = str(caught.value)
    assert message.startswith("mu: 12 of 20 ")
    for fragment in (
        "3 NaN or infinite (first row 3, '3.jpg')",
        "1 zero (first row 11, '11.jpg')",
        "length 22",
    ):
        assert fragment in message
    check_directions(KINDS[kind](unit()), "mu")


def test_faults_are_counted_across_blocks_of_a_large_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "_BLOCK", 3)
    mu = unit()
    mu[[5, 19]] *= 2
    with pytest.raises(InputError, match=r"2 of 20 .*row 5, length 2"):
        check_directions(mu, "mu")
    with pytest.raises(InputError, match=r"1 of 4 .*row 19, length 2"):
        check_directions(mu, "mu", rows=np.array([0, 1, 2, 19]))
    check_directions(mu, "mu", rows=np.array([0, 1, 2, 3]))


def test_components_with_overflowing_squares_are_not_reported_as_infinite() -> None:
    for mu in (np.full((2, 3), 1e30, np.float32), torch.full((2, 3), 1e30)):
        with pytest.raises(InputError, match="2 of another length"):
            check_directions(mu, "mu")


def test_a_transposed_array_is_recognised() -> None:
    for mu in (unit().T, torch.from_numpy(unit()).T):
        with pytest.raises(InputError, match=r"pass mu\.T"):
            check_directions(mu, "mu")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_all_storage_types_are_accepted(dtype: str) -> None:
    check_directions(unit(dim=512).astype(dtype), "mu")
    check_directions(torch.from_numpy(unit(dim=512)).bfloat16(), "mu", arrays.SCORE_TOLERANCE)


def test_shapes_without_a_direction_are_refused() -> None:
    for mu in (np.ones((4, 1)), np.ones(()), np.ones((3, 0)), torch.ones(4, 1)):
        with pytest.raises(InputError, match="dim >= 2"):
            check_directions(mu, "mu")
    check_directions(np.ones((0, 4)), "mu")


def test_directions_are_checked_against_the_radius() -> None:
    check_directions(64 * unit(), "value", radius=64.0)
    with pytest.raises(InputError, match=r"20 of 20 .*length 64.*row 0, length 1"):
        check_directions(unit(), "value", radius=64.0)


@pytest.mark.parametrize("kind", KINDS)
def test_negative_and_non_finite_concentrations_are_refused(kind: str) -> None:
    kappa = np.array([0.0, 3.0, -1.0, np.nan, np.inf])
    check_kappa(KINDS[kind](kappa[:2]), "kappa")
    with pytest.raises(InputError, match=r"kappa: 3 of 5 .*first -1 at 2"):
        check_kappa(KINDS[kind](kappa), "kappa")


@pytest.mark.parametrize(
    "radius", [0, -1.0, float("nan"), float("inf"), "64", None, [64.0, 64.0], torch.ones(2)]
)
def test_invalid_radii_are_refused(radius: object) -> None:
    with pytest.raises(InputError, match="radius"):
        checked_radius(radius)


def test_numpy_and_torch_scalars_are_valid_radii() -> None:
    assert [checked_radius(r) for r in (64, np.float32(2), torch.tensor(3.0))] == [64.0, 2.0, 3.0]


def test_tensors_and_lists_are_converted_to_arrays() -> None:
    leaf = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    assert as_array(leaf, "mu").dtype == np.float32 and as_array([[1, 2]], "mu", np.float32).shape == (1, 2)
    for invalid in ([[1.0], [1.0, 2.0]], np.ones(3, complex), ["a"], None):
        with pytest.raises(InputError, match="mu: expected an array"):
            as_array(invalid, "mu", np.float32)


def test_fractions_do_not_become_integers() -> None:
    assert as_array([1.0, -1.0], "labels", np.int64).tolist() == [1, -1]
    for invalid in ([0.0, 0.5], [float("nan")], [float("inf")], torch.tensor([1.5])):
        with pytest.raises(InputError, match="labels: expected integers"):
            as_array(invalid, "labels", np.int64)


def test_rows_are_selected_by_their_numbers_or_by_a_mask() -> None:
    mask = np.array([False, True, False, True])
    for rows in (mask, torch.from_numpy(mask), mask.tolist(), (1, 3), range(1, 4, 2), np.int32([1, 3])):
        assert row_numbers(rows, 4).tolist() == [1, 3]
    assert row_numbers((i for i in (3, 0)), 4).tolist() == [3, 0] and row_numbers([], 4).tolist() == []
    for invalid in (mask[:3], [4], [-1], 2, [[1]], None, ["a"], [0.5]):
        with pytest.raises(InputError, match="rows: expected"):
            row_numbers(invalid, 4)


def test_unsigned_integers_that_do_not_fit_are_refused() -> None:
    """As signed numbers they would be negative."""
    largest = np.array([2**63 - 1], np.uint64)
    assert as_tensor(largest, "groups", kinds="i").tolist() == [2**63 - 1]
    with pytest.raises(InputError, match=r"groups: expected integers below 2\^63, got 9223372036854775808"):
        as_tensor(largest + np.uint64(1), "groups", kinds="i")


def test_fields_of_packed_records_are_copied() -> None:
    """torch cannot share memory whose strides are no multiple of the size of an element."""
    for writeable in (True, False):
        packed = np.array([(1, 0.5), (2, 0.25)], [("label", "u1"), ("kappa", "f4")])
        packed.flags.writeable = writeable
        assert as_tensor(packed["kappa"], "kappa").tolist() == [0.5, 0.25]


def test_lengths_within_rounding_of_the_tolerance_are_accepted() -> None:
    mu = np.array([[0.2732536494731903, -0.7555692791938782, -0.5970330834388733]], np.float32)
    assert not are_unit(mu) and np.linalg.norm(mu.astype(float)) - 1 < UNIT_TOLERANCE
    check_directions(mu, "mu")
    with pytest.raises(InputError, match="1 of another length"):
        check_directions(mu * np.float32(1 + 1e-6), "mu")


def test_copies_to_a_gpu_go_through_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """From other memory, CUDA would let the CPU wait for the work queued on the GPU."""
    calls: list[object] = []

    def to(tensor: torch.Tensor, device: torch.device, non_blocking: bool = False) -> torch.Tensor:
        calls.append((device.type, non_blocking))
        return tensor

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        calls.append("pinned")
        return tensor

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    values = torch.ones(3)
    assert to_device(values, torch.device("cuda")) is values and calls == ["pinned", ("cuda", True)]
    calls.clear()
    assert to_device(values, torch.device("cpu")) is values and calls == [("cpu", False)]
