import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from spherecf.errors import InputError
from spherecf.models import class_mean_prototypes, leave_one_out_prototypes


@pytest.fixture
def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([2, 0, 1, 2, 2, 0, 3, 3])
    return normalize(torch.randn(8, 5, generator=generator), dim=1), labels


def test_leave_one_out_equals_the_loop(samples: tuple[Tensor, Tensor]) -> None:
    mu, labels = samples
    prototypes, usable = leave_one_out_prototypes(mu, labels)
    for i in range(len(mu)):
        others = [j for j in range(len(mu)) if labels[j] == labels[i] and j != i]
        assert bool(usable[i]) == bool(others)
        expected = normalize(mu[others].mean(0), dim=0) if others else torch.zeros(5)
        torch.testing.assert_close(prototypes[i], expected)
    assert int((~usable).sum()) == 1


def test_class_means_equal_the_loop(samples: tuple[Tensor, Tensor]) -> None:
    mu, labels = samples
    expected = torch.stack([normalize(mu[labels == c].mean(0), dim=0) for c in range(4)])
    torch.testing.assert_close(class_mean_prototypes(mu, labels), expected)


def test_bad_samples(samples: tuple[Tensor, Tensor]) -> None:
    mu, labels = samples
    with pytest.raises(InputError, match="1 identities have no image, the first is 1"):
        class_mean_prototypes(mu, torch.where(labels == 1, 0, labels))
    with pytest.raises(InputError, match="from 0 on"):
        leave_one_out_prototypes(mu, labels - 1)
    mu[2, 0] = torch.nan
    with pytest.raises(InputError, match="1 of 8 directions"):
        leave_one_out_prototypes(mu, labels)
    with pytest.raises(InputError, match="at least one"):
        class_mean_prototypes(mu[:0], labels[:0])
