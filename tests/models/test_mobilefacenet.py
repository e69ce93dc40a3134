import pytest
from tests.models.originals import check_keys, check_outputs


@pytest.mark.parametrize("name", ["mbf", "mbf-large"])
def test_parameter_names_equal_arcface_torch(name: str) -> None:
    check_keys(name)


@pytest.mark.parametrize("name", ["mbf", "mbf-large"])
def test_outputs_equal_arcface_torch(name: str) -> None:
    check_outputs(name)
