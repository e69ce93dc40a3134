import pytest
import torch

from spherecf.errors import InputError
from spherecf.losses import initial_kappa
from spherecf.vmf import mean_resultant_length


@pytest.mark.parametrize("dim", [2, 128, 512])
def test_the_gradient_vanishes_there(dim: int) -> None:
    cosines = torch.tensor([0.3, 0.6, 0.9])
    kappa = torch.tensor(initial_kappa(cosines, dim), dtype=torch.float64)
    assert float(mean_resultant_length(kappa, dim)) == pytest.approx(0.6, abs=1e-6)


@pytest.mark.parametrize(
    "cosines", [[], [0.5, float("nan")], [1.5], [-0.5, 0.1], [0.0], [1.0], [1.0002, 0.1]]
)
def test_data_without_a_maximum(cosines: list[float]) -> None:
    with pytest.raises(InputError, match="cosine"):
        initial_kappa(torch.tensor(cosines), 128)


def test_a_cosine_that_has_rounded_beyond_one_is_accepted() -> None:
    assert initial_kappa(torch.tensor([1.00005, 0.2]), 128) > 0
