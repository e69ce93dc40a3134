"""Checks of arguments: only unit directions are accepted, as arrays or as tensors."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scorers import directions

from spherecf.errors import InputError
from spherecf.scoring import (
    Templates,
    cosine_matrix,
    cosine_score,
    cosine_tiles,
    fit_gallery_kappa,
    gaussian_score,
    mean_cosine_kappa,
    mutual_likelihood_matrix,
    mutual_likelihood_score,
    open_set_posterior,
    pool,
    pool_templates,
)
from spherecf.scoring.pairs import concentrations, directions as checked_directions

N, DIM = 6, 16
KAPPA = torch.linspace(10, 600, N)
LOG_PRECISION = torch.linspace(-1, 1, N)[:, None]
GROUPS = torch.tensor([4, 4, 9, 9, 9, 2])
ONES = np.ones(N, np.int64)
TRUTH = np.arange(N)

# Functions on tensors, which return arrays for arrays, and functions on arrays, which accept tensors.
IN_KIND: dict[str, Callable[[Any], Any]] = {
    "cosine": lambda mu: cosine_score(mu, mu[:1]),
    "mutual likelihood": lambda mu: mutual_likelihood_score(mu, like(KAPPA, mu), mu[:1], like(KAPPA[:1], mu)),
    "gaussian": lambda mu: gaussian_score(mu, like(LOG_PRECISION, mu), mu[:1], like(LOG_PRECISION[:1], mu)),
    "cosine matrix": lambda mu: cosine_matrix(mu, mu[:3]),
    "mutual likelihood matrix": lambda mu: mutual_likelihood_matrix(
        mu, like(KAPPA, mu), mu[:3], like(KAPPA[:3], mu)
    ),
    "pool": lambda mu: pool(mu, like(KAPPA, mu), like(GROUPS, mu), ids=like(GROUPS[[2, 0]], mu)).mu,
    "pool's media": lambda mu: pool(mu, like(KAPPA, mu), like(GROUPS, mu), like(GROUPS, mu)).kappa,
}
ON_ARRAYS: dict[str, Callable[[Any], Any]] = {
    "tiles, rows": lambda mu: np.concatenate([tile for _, tile in cosine_tiles(mu, np.eye(2, DIM))]),
    "tiles, columns": lambda mu: np.concatenate([tile for _, tile in cosine_tiles(np.eye(2, DIM), mu)]),
    "pool_templates": lambda mu: pool_templates(mu, like(KAPPA, mu), like(GROUPS, mu)).mu,
    "pool_templates, other weights": lambda mu: (
        pool_templates(mu, np.ones(N), GROUPS.numpy(), weights=like(KAPPA, mu)).mu
    ),
    "templates": lambda mu: Templates(ONES, np.asarray(mu), KAPPA.numpy(), ONES, ONES).mu,
    "posterior, probes": lambda mu: open_set_posterior(mu, np.eye(3, DIM), 50.0).log_unknown,
    "posterior, gallery": lambda mu: open_set_posterior(np.eye(3, DIM), mu, 50.0).log_unknown,
    "kappa of the gallery": lambda mu: fit_gallery_kappa(mu, np.ascontiguousarray(unit()), TRUTH),
    "kappa of the mean cosine": lambda mu: mean_cosine_kappa(mu, np.ascontiguousarray(near()), TRUTH),
}
EVERY = IN_KIND | ON_ARRAYS


def like(values: torch.Tensor, mu: Any) -> Any:
    return values if isinstance(mu, torch.Tensor) else values.numpy()


def unit() -> np.ndarray:
    return near(0.2)


def near(noise: float = 0.1) -> np.ndarray:
    mu = directions(N, DIM) + noise * directions(N, DIM, seed=1)
    return torch.nn.functional.normalize(mu, dim=1).numpy()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("corrupt", "problem"),
    [
        (lambda mu: 22 * mu, "another length"),
        (lambda mu: mu * (torch.arange(N) != 0)[:, None], "1 zero"),
        (lambda mu: torch.where(torch.arange(N)[:, None] == 0, torch.nan, mu), "1 NaN"),
        (lambda mu: 0.98 * mu, "another length"),
    ],
    ids=["raw", "zero", "NaN", "mean of two views"],
)
def test_vectors_that_are_not_unit_directions_are_refused(
    name: str, corrupt: Callable[..., torch.Tensor], problem: str
) -> None:
    mu = corrupt(directions(N, DIM))
    for argument in (mu, mu.numpy()):
        with pytest.raises(InputError, match=f"row 0|{problem}"):
            EVERY[name](argument)


@pytest.mark.parametrize("name", IN_KIND)
def test_arrays_give_arrays_of_the_same_numbers(name: str) -> None:
    mu = directions(N, DIM)
    expected, result = IN_KIND[name](mu), IN_KIND[name](mu.numpy())
    assert isinstance(expected, torch.Tensor) and isinstance(result, np.ndarray)
    np.testing.assert_array_equal(result, expected.numpy())


@pytest.mark.parametrize("name", ON_ARRAYS)
def test_functions_on_arrays_take_tensors(name: str) -> None:
    mu = directions(N, DIM)
    np.testing.assert_array_equal(ON_ARRAYS[name](mu), ON_ARRAYS[name](mu.numpy()))


def test_a_mixture_gives_a_tensor() -> None:
    mu = directions(N, DIM)
    mixed = mutual_likelihood_score(mu.numpy(), KAPPA, mu, KAPPA.numpy())  # type: ignore[type-var]
    assert torch.equal(mixed, mutual_likelihood_score(mu, KAPPA, mu, KAPPA))


def test_other_layouts_of_arrays() -> None:
    """Read-only, big-endian, reversed and half precision arrays give the same numbers without a warning."""
    mu = directions(N, DIM).numpy()
    frozen = mu.copy()
    frozen.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for other in (frozen, mu.astype(">f4"), np.asfortranarray(mu), mu[::-1][::-1]):
            np.testing.assert_array_equal(cosine_score(other, other), cosine_score(mu, mu))
        np.testing.assert_array_equal(cosine_matrix(mu[::-1], mu), cosine_matrix(mu, mu)[::-1])
    assert cosine_score(mu.astype(np.float16), mu.astype(np.float16)).dtype == np.float32
    bfloat16 = torch.from_numpy(mu).bfloat16()
    assert cosine_score(bfloat16, bfloat16).shape == (N,)


def test_an_array_is_filled() -> None:
    mu, out = directions(N, DIM).numpy(), np.empty((N, N), np.float32)
    assert mutual_likelihood_matrix(mu, KAPPA.numpy(), mu, KAPPA.numpy(), out=out) is out
    np.testing.assert_array_equal(out, mutual_likelihood_matrix(mu, KAPPA.numpy(), mu, KAPPA.numpy()))
    assert cosine_matrix(mu, mu, out) is out
    out.flags.writeable = False
    for unusable in (out, np.empty((N, N), np.float32)[::-1]):
        with pytest.raises(InputError, match="out: expected an array that torch can write to"):
            cosine_matrix(mu, mu, unusable)


def test_one_direction_may_have_many_concentrations() -> None:
    mu = directions(2, DIM)
    row = mutual_likelihood_score(mu[0], KAPPA, mu[1], KAPPA)
    assert row.shape == (N,)
    assert row[2] == mutual_likelihood_score(mu[0], KAPPA[2], mu[1], KAPPA[2])
    assert mutual_likelihood_score(mu[:1], KAPPA, mu[1:], KAPPA).shape == (N,)


MU = directions(N, DIM)
WRONG_SHAPES: dict[str, Callable[[], object]] = {
    "a column of kappas": lambda: mutual_likelihood_score(MU, KAPPA[:, None], MU, KAPPA[:, None]),
    "kappas that forgot an axis": lambda: mutual_likelihood_score(MU[:, None], KAPPA, MU[None], KAPPA[None]),
    "a kappa per coordinate": lambda: mutual_likelihood_score(MU[:1], KAPPA[:1], MU, MU.abs()),
    "swapped mu and kappa": lambda: mutual_likelihood_score(MU, MU, KAPPA, KAPPA),
    "five rows and six": lambda: cosine_score(MU[:5], MU),
    "a column for the matrix": lambda: mutual_likelihood_matrix(MU, KAPPA[:, None], MU, KAPPA),
    "one kappa for the matrix": lambda: mutual_likelihood_matrix(MU, KAPPA[:1], MU, KAPPA),
    "one vector for the matrix": lambda: cosine_matrix(MU[0], MU),
    "three axes for the matrix": lambda: cosine_matrix(MU[None], MU[None]),
    "transposed": lambda: cosine_matrix(MU.T, MU.T),
    "a row of precisions": lambda: gaussian_score(MU, torch.ones(DIM), MU, torch.ones(DIM)),
    "one vector to pool": lambda: pool(MU[0], KAPPA, GROUPS),
    "a column to pool": lambda: pool(MU, KAPPA[:, None], GROUPS),
    "too few groups": lambda: pool(MU, KAPPA, GROUPS[:-1]),
    "too many media": lambda: pool(MU, KAPPA, GROUPS, torch.arange(N + 1)),
    "one probe as a vector": lambda: open_set_posterior(MU[0].numpy(), MU.numpy(), 50.0),
    "too few probe kappas": lambda: open_set_posterior(MU.numpy(), MU.numpy(), 50.0, probe_kappa=np.ones(2)),
    "truth beyond the gallery": lambda: mean_cosine_kappa(MU.numpy(), MU.numpy(), TRUTH + 1),
    "too little truth": lambda: mean_cosine_kappa(MU.numpy(), MU.numpy(), TRUTH[:2]),
    "templates of other lengths": lambda: Templates(ONES, MU.numpy()[:3], KAPPA.numpy(), ONES, ONES),
    "a column of template kappas": lambda: Templates(ONES, MU.numpy(), KAPPA.numpy()[:, None], ONES, ONES),
    "precisions of other templates": lambda: Templates(
        ONES, MU.numpy(), KAPPA.numpy(), ONES, ONES, np.ones((3, 1), np.float32)
    ),
    "precisions that are NaN": lambda: Templates(
        ONES, MU.numpy(), KAPPA.numpy(), ONES, ONES, np.full((N, 1), np.nan, np.float32)
    ),
}


@pytest.mark.parametrize("case", WRONG_SHAPES)
def test_shapes_that_would_broadcast_to_something_else(case: str) -> None:
    with pytest.raises((InputError, TypeError)):  # TypeError: the annotations, which tests check, are quicker
        WRONG_SHAPES[case]()


def test_precisions_are_one_or_one_per_coordinate() -> None:
    expected = r"expected 1 or 16 per mean, shape \(6, 16\) or \(6, 1\), got \(6, 3\)"
    with pytest.raises(InputError, match=expected):
        gaussian_score(MU, torch.ones(6, 3), MU, torch.ones(6, 3))


def test_one_concentration_per_direction() -> None:
    several = MU.expand(3, N, DIM)
    for kappa, mu in ((KAPPA, MU), (KAPPA[:1], MU), (KAPPA, several), (KAPPA.expand(3, N), several)):
        assert concentrations(kappa, mu, "kappa") is kappa
    with pytest.raises(InputError, match=r"shape \(6,\), got \(6, 1\) \(squeeze the column\)$"):
        concentrations(KAPPA[:, None], MU, "kappa")
    for kappa, mu, exact in ((KAPPA[:3], MU, False), (KAPPA[:2], several, False), (KAPPA[:1], MU, True)):
        with pytest.raises(InputError, match=r"kappa: expected one per direction, .*got \(\d,\)$"):
            concentrations(kappa, mu, "kappa", exact)


def test_a_wrong_number_of_axes_is_refused() -> None:
    for ndim, mu, expected in (
        (2, MU[0], r"\(n, dim\), one direction per row, got \(16,\)"),
        (2, MU[None], r"\(n, dim\), one direction per row, got \(1, 6, 16\)"),
        (None, MU[0, 0], r"\(..., dim\), got \(\)"),
    ):
        with pytest.raises(InputError, match=f"mu: expected {expected}"):
            checked_directions(ndim, mu=mu)
    with pytest.raises(InputError, match="left has dimension 16, right has dimension 8; both must"):
        checked_directions(left=MU, right=torch.nn.functional.normalize(MU[:, :8]))


# Where annotations are not checked, as in a user's program: no bare exception of torch or NumPy.
SCRIPT = """
import warnings
import numpy as np, torch
from spherecf.errors import InputError
from spherecf.scoring import *
from spherecf.scoring import cosine_tiles, fit_gallery_kappa, mean_cosine_kappa, natural_parameter
from spherecf.vmf import VonMisesFisher, HypersphericalUniform, log_normalizer, inverse_mean_resultant_length

warnings.simplefilter("error")
mu = torch.nn.functional.normalize(torch.randn(6, 16, generator=torch.manual_seed(0)), dim=1)
kappa, groups, array = torch.linspace(10, 600, 6), torch.tensor([1, 1, 2, 2, 3, 3]), mu.numpy()
words, ints = torch.ones(6), torch.arange(100, 700, 100)
square = torch.eye(6)
refused = {
    "list": lambda: cosine_score(mu.tolist(), mu),
    "number": lambda: mutual_likelihood_score(mu[0], 3.0, mu[1], 3.0),
    "None": lambda: cosine_score(None, mu),
    "integers": lambda: cosine_score(torch.eye(3, dtype=torch.int64), torch.eye(3)),
    "integer array": lambda: cosine_score(np.eye(3, dtype=int), np.eye(3)),
    "complex": lambda: cosine_score(mu.to(torch.complex64), mu),
    "text": lambda: cosine_score(np.array(["a", "b"]), array),
    "other dimensions": lambda: cosine_score(mu, mu[:, :8]),
    "other rows": lambda: cosine_score(mu[:5], mu),
    "column": lambda: mutual_likelihood_score(mu, kappa[:, None], mu, kappa[:, None]),
    "column of an array": lambda: mutual_likelihood_score(array, kappa.numpy()[:, None], array, ints.numpy()),
    "forgotten axis": lambda: mutual_likelihood_score(mu[:, None], kappa, mu[None], kappa[None]),
    "swapped": lambda: mutual_likelihood_score(mu, mu, kappa, kappa),
    "radius": lambda: mutual_likelihood_score(mu, kappa, mu, kappa, radius="64"),
    "radii": lambda: mutual_likelihood_score(mu, kappa, mu, kappa, radius=torch.ones(6)),
    "matrix of a vector": lambda: cosine_matrix(mu[0], mu),
    "matrix kappa column": lambda: mutual_likelihood_matrix(mu, kappa[:, None], mu, kappa),
    "matrix kappa one": lambda: mutual_likelihood_matrix(mu, kappa[:1], mu, kappa),
    "matrix types": lambda: cosine_matrix(array, array.astype(np.float64)),
    "matrix out": lambda: cosine_matrix(mu, mu, [[0.0] * 6] * 6),
    "precisions row, square": lambda: gaussian_score(square, words, square, words),
    "precisions of text": lambda: gaussian_score(square, "a", square, words),
    "precisions of 3": lambda: gaussian_score(square, torch.ones(6, 6), square, torch.ones(6, 3)),
    "pool a vector": lambda: pool(mu[0], kappa, groups),
    "pool a column": lambda: pool(mu, kappa[:, None], groups),
    "pool float groups": lambda: pool(mu, kappa, groups.double()),
    "pool names": lambda: pool(array, kappa.numpy(), np.array(list("aabbcc"))),
    "pool short groups": lambda: pool(mu, kappa, groups[:-1]),
    "pool float ids": lambda: pool(mu, kappa, groups, ids=torch.tensor([1.5])),
    "tiles of a list": lambda: cosine_tiles([["a"]], array),
    "tiles of a vector": lambda: cosine_tiles(array[0], array),
    "templates of text": lambda: pool_templates("mu", [1.0], [1]),
    "templates of columns": lambda: pool_templates(array.T, np.ones(16), np.arange(16)),
    "template names": lambda: pool_templates(array, np.ones(6), list("aabbcc")),
    "posterior of other dimensions": lambda: open_set_posterior(array, array[:, :8], 50.0),
    "posterior of a vector": lambda: open_set_posterior(array[0], array, 50.0),
    "posterior of nothing": lambda: open_set_posterior(array[:0], array, 50.0),
    "truth of floats": lambda: mean_cosine_kappa(array, array, np.arange(6.0)),
    "vmf of a list": lambda: VonMisesFisher([1.0, 0.0], torch.tensor(1.0)),
    "vmf of integers": lambda: VonMisesFisher(np.array([1, 0]), np.array(1.0)),
    "vmf column": lambda: VonMisesFisher(mu, kappa[:, None]),
    "vmf radii": lambda: VonMisesFisher(mu, kappa, radius=kappa),
    "vmf value of one coordinate": lambda: VonMisesFisher(mu, kappa).log_prob(torch.ones(6, 1)),
    "vmf value of other rows": lambda: VonMisesFisher(mu, kappa).log_prob(mu[:5]),
    "vmf value of a list": lambda: VonMisesFisher(mu, kappa).log_prob([1.0]),
    "vmf draws": lambda: VonMisesFisher(mu, kappa).sample("many"),
    "vmf fit of a list": lambda: VonMisesFisher.fit(mu.tolist()),
    "vmf fit of a vector": lambda: VonMisesFisher.fit(mu[0]),
    "vmf fit of columns": lambda: VonMisesFisher.fit(mu.T),
    "uniform": lambda: HypersphericalUniform("three"),
    "function of a number": lambda: log_normalizer(3.0, 3),
    "function of integers": lambda: log_normalizer(np.arange(3), 3),
    "dimension": lambda: inverse_mean_resultant_length(torch.ones(2), 2.5),
    "dimension of nothing": lambda: log_normalizer(kappa, None),
}
for name, call in refused.items():
    try:
        call()
    except InputError as error:
        assert "\\n" not in str(error), name
        continue
    except Exception as error:
        raise SystemExit(f"{name}: {type(error).__name__}: {error}")
    raise SystemExit(f"{name}: accepted")

same = mutual_likelihood_score(mu, ints.float(), mu, ints.float())
assert torch.equal(mutual_likelihood_score(mu, ints, mu, ints), same)
assert np.array_equal(mutual_likelihood_score(array, ints.numpy(), array, ints.numpy()), same.numpy())
assert cosine_score(array.astype(np.longdouble), array).dtype == np.float64
one = mutual_likelihood_score(array[0], array.dtype.type(10.0), array[1], array.dtype.type(10.0))
assert isinstance(one, np.ndarray) and one.shape == ()
pooled = pool(array, ints.numpy(), groups.numpy().astype(np.int32))
assert isinstance(pooled.mu, np.ndarray) and np.allclose(np.linalg.norm(pooled.mu, axis=1), 1)
direction, concentration, ids = pooled
assert ids.tolist() == [1, 2, 3]
both = gaussian_score(square, torch.zeros(6, 1), square.flip(0), torch.zeros(6, 6))
assert torch.equal(both, gaussian_score(square, torch.zeros(6, 6), square.flip(0), torch.zeros(6, 6)))
"""


def test_only_input_errors_without_checked_annotations() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", EVERY)
def test_lengths_off_by_half_a_percent_are_refused(name: str) -> None:
    """bfloat16 rounds a length by up to 0.4 %; a larger difference means missing normalisation."""
    mu = directions(N, DIM).numpy()
    EVERY[name](np.float32(1.003) * mu)
    with pytest.raises(InputError, match=f"{N} of another length"):
        EVERY[name](np.float32(1.005) * mu)
