"""Conformance tests for pair scores: subclass `ScorerConformance` and define `score`."""

import pytest
import torch
from torch import Tensor

from spherecf.errors import InputError


def directions(n: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, dim, generator=generator, dtype=dtype), dim=1)


def at_cosine(mu: Tensor, cos: Tensor, seed: int = 1) -> Tensor:
    """Unit directions with the given cosine to ``mu``, row by row."""
    other = directions(*mu.shape, seed=seed, dtype=mu.dtype)
    orthogonal = torch.nn.functional.normalize(other - (other * mu).sum(1, keepdim=True) * mu, dim=1)
    return cos[:, None] * mu + (1 - cos.square()).sqrt()[:, None] * orthogonal


class ScorerConformance:
    """Tests that every score must pass: (n, d), (n,), (n, d), (n,) -> (n,); larger means more similar."""

    dim = 16

    def score(self, mu_a: Tensor, kappa_a: Tensor, mu_b: Tensor, kappa_b: Tensor) -> Tensor:
        raise NotImplementedError

    def _sets(self, n: int = 50) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kappa = 10 ** torch.linspace(-2, 4, n)
        return directions(n, self.dim, 2), kappa, directions(n, self.dim, 3), kappa.flip(0)

    def test_score_is_symmetric(self) -> None:
        mu_a, kappa_a, mu_b, kappa_b = self._sets()
        score, swapped = self.score(mu_a, kappa_a, mu_b, kappa_b), self.score(mu_b, kappa_b, mu_a, kappa_a)
        torch.testing.assert_close(score, swapped)

    def test_score_increases_with_the_cosine(self) -> None:
        cos = torch.linspace(-0.99, 0.99, 100, dtype=torch.float64)
        mu = directions(1, self.dim, dtype=torch.float64).expand(100, -1)
        for a, b in ((1.0, 1.0), (300.0, 5.0), (2000.0, 2000.0)):
            kappa_a, kappa_b = torch.full((100,), a), torch.full((100,), b)
            assert (self.score(mu, kappa_a, at_cosine(mu, cos), kappa_b).diff() > 0).all()

    def test_score_is_invariant_to_rotation(self) -> None:
        mu_a, kappa_a, mu_b, kappa_b = self._sets()
        matrix = torch.randn(self.dim, self.dim, generator=torch.Generator().manual_seed(0))
        rotation = torch.linalg.qr(matrix)[0]
        rotated = self.score(mu_a @ rotation, kappa_a, mu_b @ rotation, kappa_b)
        torch.testing.assert_close(rotated, self.score(mu_a, kappa_a, mu_b, kappa_b), rtol=1e-4, atol=1e-2)

    def test_a_row_does_not_depend_on_its_batch(self) -> None:
        sets = self._sets()
        rows = [self.score(*(x[i : i + 1] for x in sets)) for i in range(50)]
        assert torch.equal(torch.cat(rows), self.score(*sets))

    def test_score_is_finite_for_extreme_kappa(self) -> None:
        mu = directions(3, self.dim)
        for kappa in (0.0, 1e-6, 1e8):
            kappas = torch.full((3,), kappa)
            for other in (mu, -mu):
                assert torch.isfinite(self.score(mu, kappas, other, kappas)).all()

    def test_refuses_nan_directions(self) -> None:
        mu_a, kappa_a, mu_b, kappa_b = self._sets()
        mu_b[7, 3] = float("nan")
        with pytest.raises(InputError, match=r"mu_b: 1 of 50 directions .*row 7"):
            self.score(mu_a, kappa_a, mu_b, kappa_b)

    def test_refuses_other_dimensions(self) -> None:
        mu_a, kappa_a, mu_b, kappa_b = self._sets()
        with pytest.raises((InputError, TypeError), match=r"dimension|shape|mu_b"):
            self.score(mu_a, kappa_a, mu_b[:, :-1], kappa_b)
