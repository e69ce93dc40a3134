"""The open-set posterior against 40-digit arithmetic, and its invariances."""

import dataclasses
from inspect import unwrap

import numpy as np
import pytest
import torch
from openset_slow import DIGITS, mp, pieces, posterior

from spherecf.errors import InputError
from spherecf.scoring import (
    fit_gallery_kappa,
    mean_cosine_kappa,
    open_set_posterior,
    posterior as posterior_module,
)
from spherecf.vmf import VonMisesFisher, mean_resultant_length


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def gallery_and_probes(
    dim: int, identities: int, probes: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A gallery, probes at various distances from it, and their kappas."""
    rng = np.random.default_rng(seed)
    gallery = unit(rng.normal(size=(identities, dim)))
    noise = rng.uniform(0, 3, (probes, 1)) / dim**0.5
    near = unit(gallery[rng.integers(identities, size=probes)] + noise * rng.normal(size=(probes, dim)))
    return gallery, near, np.exp(rng.uniform(-2, 7, probes))


@pytest.mark.parametrize(("dim", "kappa"), [(3, 0.5), (3, 40.0), (16, 60.0), (64, 300.0), (512, 700.0)])
@pytest.mark.parametrize("mutual", [False, True])
def test_against_arithmetic_with_many_digits(dim: int, kappa: float, mutual: bool) -> None:
    gallery, probes, probe_kappa = gallery_and_probes(dim, 5, 8)
    probe_kappa[:2] = 0.0, 1e6
    result = open_set_posterior(probes, gallery, kappa, 0.3, probe_kappa=probe_kappa if mutual else None)
    cosines = (probes @ gallery.T).astype(np.float64)
    with mp.workdps(DIGITS):
        for row in range(len(probes)):
            p, total = posterior(cosines[row], dim, kappa, 0.3, probe_kappa[row] if mutual else None)
            for name, truth in pieces(p, total, 0.3).items():
                if name == "best" and max(p[1:]) == sorted(p[1:])[-2]:
                    continue  # all the same for a probe of kappa 0
                got = getattr(result, name)[row]
                tolerance = 1e-4 if mutual else 1e-8
                assert got == pytest.approx(float(truth), rel=tolerance, abs=tolerance), (name, row)


def test_tiny_probabilities_keep_their_order() -> None:
    gallery = np.eye(512, dtype=np.float32)[:3]
    angles = np.array([0.1, 0.2, 0.3])
    probes = np.zeros((3, 512), np.float32)
    probes[:, 0], probes[:, 9] = np.cos(angles), np.sin(angles)
    result = open_set_posterior(probes, gallery, 1500.0)
    assert (np.exp(result.log_best) == 1).all()
    assert (np.diff(result.log_unknown) > 1).all() and (result.log_unknown < -100).all()
    assert (result.entropy > 0).all() and (np.diff(result.entropy) > 0).all()


def test_probabilities_are_consistent() -> None:
    gallery, probes, probe_kappa = gallery_and_probes(32, 50, 200)
    for kappa in (None, probe_kappa):
        p = open_set_posterior(probes, gallery, 80.0, probe_kappa=kappa)
        assert np.exp(p.log_known) + np.exp(p.log_unknown) == pytest.approx(np.ones(200))
        assert np.logaddexp(p.log_best, p.log_others) == pytest.approx(p.log_known, abs=1e-9)
    sharp = open_set_posterior(probes, gallery, 80.0, probe_kappa=np.full(200, 1e9))
    mode = open_set_posterior(probes, gallery, 80.0)
    assert sharp.log_unknown == pytest.approx(mode.log_unknown, abs=1e-4)
    blind = open_set_posterior(probes, gallery, 80.0, 0.3, probe_kappa=np.zeros(200))
    assert np.exp(blind.log_unknown) == pytest.approx(np.full(200, 0.3))  # a probe of kappa 0 says nothing


def test_a_gallery_of_one() -> None:
    result = open_set_posterior(np.eye(3, dtype=np.float32)[:2], np.eye(3, dtype=np.float32)[:1], 5.0)
    assert (result.log_others == -np.inf).all() and (result.second_cosine == -np.inf).all()
    assert result.log_best == pytest.approx(result.log_known) and np.isfinite(result.entropy).all()


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gallery, probes, probe_kappa = gallery_and_probes(24, 40, 130)
    cosines = (probes @ gallery.T).astype(np.float32)

    def in_blocks(height: int) -> list[posterior_module.OpenSetPosterior]:
        def tiles(threads: int | None, *, probes: np.ndarray, gallery: np.ndarray):
            for start in range(0, len(probes), height):
                rows = slice(start, min(start + height, len(probes)))
                yield rows, cosines[rows]

        monkeypatch.setattr(posterior_module, "tiles", tiles)
        return [open_set_posterior(probes, gallery, 50.0, probe_kappa=k) for k in (None, probe_kappa)]

    for one, other in zip(in_blocks(130), in_blocks(7)):
        for field in dataclasses.fields(one):
            assert getattr(one, field.name) == pytest.approx(getattr(other, field.name), rel=1e-12, abs=1e-12)


def test_threads_change_nothing() -> None:
    gallery, probes, _ = gallery_and_probes(24, 40, 130)
    one, two = (open_set_posterior(probes, gallery, 50.0, threads=n) for n in (1, 2))
    assert np.array_equal(one.log_unknown, two.log_unknown) and np.array_equal(one.best, two.best)


def test_the_concentration_of_simulated_data_is_estimated() -> None:
    torch.manual_seed(0)
    dim, identities, each, kappa = 24, 60, 12, 50.0
    rng = np.random.default_rng(1)
    gallery = unit(rng.normal(size=(identities, dim)))
    true_row = np.repeat(np.arange(identities), each)
    truth = VonMisesFisher(torch.tensor(gallery[true_row]), torch.full((true_row.size,), kappa)).sample()
    unknown = unit(rng.normal(size=(500, dim)))
    probe_kappa = np.exp(rng.uniform(3, 6, true_row.size + 500))
    seen = (
        VonMisesFisher(torch.cat([truth, torch.tensor(unknown)]), torch.tensor(probe_kappa)).sample().numpy()
    )
    answer = np.concatenate([true_row, np.full(500, -1)])
    seen = unit(seen)
    mutual = fit_gallery_kappa(seen, gallery, answer, probe_kappa=probe_kappa)
    assert mutual == pytest.approx(kappa, rel=0.1)
    assert fit_gallery_kappa(seen, gallery, answer) < 0.8 * mutual  # noise of the probes looks like spread
    exact = np.concatenate([truth.numpy(), unknown]).astype(np.float32)
    assert fit_gallery_kappa(exact, gallery, answer) == pytest.approx(kappa, rel=0.1)
    from_cosine = mean_cosine_kappa(exact, gallery, answer)
    cosine = float((exact[: true_row.size] * gallery[true_row]).sum(1).mean())
    length = mean_resultant_length(torch.tensor(from_cosine, dtype=torch.float64), dim)
    assert float(length) == pytest.approx(cosine, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kappa_gallery": 0.0}, "0 < kappa_gallery"),
        ({"kappa_gallery": float("nan")}, "0 < kappa_gallery"),
        ({"beta": 1.0}, "0 < beta < 1"),
        ({"gallery": np.zeros((0, 3))}, r"got \(3, 3\) and \(0, 3\)"),
        ({"probes": np.zeros((0, 3))}, r"got \(0, 3\) and \(3, 3\)"),
        ({"gallery": np.eye(4)}, r"got \(3, 3\) and \(4, 4\)"),
        ({"probes": np.full((2, 3), np.nan)}, "probes: 2 of 2 .* NaN"),
        ({"probe_kappa": np.ones(2)}, r"probe_kappa: expected one per probe, \(3,\), got \(2,\)"),
        ({"probe_kappa": np.array([1.0, -1.0, np.inf])}, "probe_kappa: 2 of 3 are NaN, negative or infinite"),
    ],
)
def test_bad_input(change: dict, message: str) -> None:
    given = {"probes": np.eye(3), "gallery": np.eye(3), "kappa_gallery": 5.0} | change
    with pytest.raises(InputError, match=message):
        unwrap(open_set_posterior)(**given)  # without the shape checks of the tests


def test_mean_cosines_without_a_kappa_are_refused() -> None:
    with pytest.raises(InputError, match="got 0 with nan; give kappa_gallery as a number"):
        mean_cosine_kappa(np.eye(3), np.eye(3), np.array([-1, -1, -1]))
    for shift in (0, 1):
        with pytest.raises(InputError, match=f"between 0 and 1, got 3 with {1 - shift};"):
            mean_cosine_kappa(np.eye(3), np.eye(3), (np.arange(3) + shift) % 3)
    with pytest.raises(InputError, match="got 1 with -1"):
        fit_gallery_kappa(-np.eye(3)[:1], np.eye(3), np.array([0]))


@pytest.mark.parametrize(
    "parameters", [("20",), (None,), (20.0, None), (np.array([1.0, 2.0]),), (torch.ones(2),)]
)
def test_parameters_that_are_no_numbers_are_refused(parameters: tuple[object, ...]) -> None:
    with pytest.raises(InputError, match="posterior: expected 0 < kappa_gallery"):
        unwrap(open_set_posterior)(np.eye(3), np.eye(3), *parameters)
