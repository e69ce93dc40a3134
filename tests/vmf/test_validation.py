"""Values are checked unless validate_args is False, whatever other libraries do to torch's global default."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch.distributions import Distribution, Independent, kl_divergence

from spherecf.errors import InputError
from spherecf.vmf import HypersphericalUniform, VonMisesFisher, log_normalizer, mean_resultant_length

X, ONE = torch.tensor([1.0, 0.0, 0.0]), torch.tensor(1.0)

BAD: dict[str, Callable[[], object]] = {
    "mu of length 2": lambda: VonMisesFisher(2 * X, ONE),
    "mu of zeros": lambda: VonMisesFisher(torch.zeros(3), ONE),
    "negative kappa": lambda: VonMisesFisher(X, -ONE),
    "NaN kappa": lambda: VonMisesFisher(X, torch.tensor(float("nan"))),
    "value off the sphere": lambda: VonMisesFisher(X, ONE).log_prob(2 * X),
    "NaN value": lambda: VonMisesFisher(X, ONE).log_prob(X * float("nan")),
    "value off a larger sphere": lambda: VonMisesFisher(X, ONE, radius=64.0).log_prob(X),
    "value after expanding": lambda: VonMisesFisher(X, ONE).expand((4,)).log_prob(2 * X),
    "value of one among others": lambda: Independent(VonMisesFisher(X.expand(4, 3), ONE), 1).log_prob(
        2 * X.expand(4, 3)
    ),
    "value off the uniform's sphere": lambda: HypersphericalUniform(3).log_prob(2 * X),
    "value off the expanded uniform's": lambda: HypersphericalUniform(3).expand((2,)).log_prob(2 * X),
    "raw vectors to fit": lambda: VonMisesFisher.fit(22 * torch.eye(3)),
    "unit vectors for radius 64": lambda: VonMisesFisher.fit(torch.eye(3), radius=64.0),
}


@pytest.fixture(params=[True, False], ids=["torch validates", "torch does not"])
def switch(request: pytest.FixtureRequest) -> Iterator[None]:
    before = Distribution._validate_args
    Distribution.set_default_validate_args(request.param)
    yield
    Distribution.set_default_validate_args(before)


@pytest.mark.parametrize("case", BAD)
@pytest.mark.usefixtures("switch")
def test_bad_values_are_refused(case: str) -> None:
    with pytest.raises(InputError):
        BAD[case]()


@pytest.mark.usefixtures("switch")
def test_the_argument_switches_it_off() -> None:
    face = VonMisesFisher(2 * X, -ONE, validate_args=False)
    assert face.expand((2,)).log_prob(3 * X).shape == (2,)
    assert HypersphericalUniform(3, validate_args=False).expand((2,)).log_prob(3 * X).shape == (2,)
    with pytest.raises(InputError):  # None is torch's word for the default
        VonMisesFisher(2 * X, ONE, validate_args=None)


def test_importing_the_compiler_and_the_exporter_changes_nothing() -> None:
    script = """
import torch, torch._dynamo, torch.export
from torch.distributions import Distribution
from spherecf.errors import InputError
from spherecf.vmf import HypersphericalUniform, VonMisesFisher
torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
torch.export.export(torch.nn.Identity(), (torch.ones(2),))
Distribution.set_default_validate_args(False)
x, one = torch.tensor([1.0, 0.0]), torch.tensor(1.0)
for bad in (lambda: VonMisesFisher(2 * x, one), lambda: VonMisesFisher(x, one).log_prob(2 * x),
            lambda: HypersphericalUniform(2).log_prob(2 * x)):
    try:
        bad()
    except InputError:
        continue
    raise SystemExit("passed silently")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


SHAPES: dict[str, Callable[[], object]] = {
    "a column of kappas": lambda: VonMisesFisher(torch.eye(3), torch.ones(3, 1)),
    "a column of one kappa": lambda: VonMisesFisher(X[None], torch.ones(1, 1)),
    "a value of one coordinate": lambda: VonMisesFisher(X, ONE).log_prob(torch.ones(4, 1)),
    "a value of another batch": lambda: VonMisesFisher(torch.eye(3), torch.ones(3)).log_prob(X.expand(2, 3)),
    "a coordinate for the uniform": lambda: HypersphericalUniform(3).log_prob(torch.ones(4, 1)),
    "another batch for the uniform": lambda: HypersphericalUniform(3, 1.0, torch.Size([2])).log_prob(
        X.expand(4, 3)
    ),
    "a number of draws": lambda: VonMisesFisher(X, ONE).sample(5),
    "a negative shape": lambda: VonMisesFisher(X, ONE).rsample((-1,)),
    "half a draw of the uniform": lambda: HypersphericalUniform(3).sample((2.5,)),
    "a batch that does not expand": lambda: VonMisesFisher(torch.eye(3), torch.ones(3)).expand((4,)),
    "one vector to fit": lambda: VonMisesFisher.fit(X),
    "columns to fit": lambda: VonMisesFisher.fit(torch.eye(3)[:2].T),
    "infinite weights": lambda: VonMisesFisher.fit(torch.eye(3), torch.full((3,), torch.inf)),
    "other spheres": lambda: kl_divergence(VonMisesFisher(X, ONE), HypersphericalUniform(2)),
}


@pytest.mark.parametrize("case", SHAPES)
def test_shapes_that_do_not_fit(case: str) -> None:
    with pytest.raises((InputError, TypeError)):  # TypeError: the annotations, which tests check, are quicker
        SHAPES[case]()


def test_samples_that_cannot_be_fitted_are_refused() -> None:
    for value in (torch.empty(0, 3), torch.empty(4, 0, 3)):
        with pytest.raises(InputError, match="n >= 1"):
            VonMisesFisher.fit(value)
    three = torch.eye(3)
    for weights in ((1.0, torch.inf, 1.0), (1.0, -1.0, 1.0), (0.0, 0.0, 0.0), (1.0, torch.nan, 1.0)):
        with pytest.raises(InputError, match=r"weights|NaN"):
            VonMisesFisher.fit(three, torch.tensor(weights))
    with pytest.raises(InputError, match="weights must be"):
        VonMisesFisher.fit(three, torch.tensor([1.0, torch.inf, 1.0]))


def test_deliberate_tables_of_kappas_work() -> None:
    assert VonMisesFisher(torch.eye(3)[:, None], torch.ones(4)).batch_shape == (3, 4)
    assert VonMisesFisher(torch.eye(3)[None], torch.ones(3, 1)).batch_shape == (3, 3)


def test_arrays_become_tensors() -> None:
    mu, kappa = np.eye(3, dtype=np.float32), np.array([1.0, 10.0, 100.0], np.float32)
    face, same = VonMisesFisher(mu, kappa), VonMisesFisher(torch.from_numpy(mu), torch.from_numpy(kappa))
    assert torch.equal(face.log_prob(mu), same.log_prob(torch.from_numpy(mu)))
    assert torch.equal(HypersphericalUniform(3).log_prob(mu), torch.full((3,), -2.5310242))
    fitted = VonMisesFisher.fit(mu, np.ones(3, np.float32))
    assert torch.equal(fitted.concentration, VonMisesFisher.fit(torch.eye(3)).concentration)


def test_functions_return_arrays_for_arrays() -> None:
    kappa = np.array([0.0, 5.0, 500.0])
    for function in (log_normalizer, mean_resultant_length):
        answer = function(kappa, 64)
        assert isinstance(answer, np.ndarray)
        np.testing.assert_array_equal(answer, function(torch.from_numpy(kappa), 64).numpy())
