import pytest
from tests.models.originals import check_keys, check_outputs


@pytest.mark.parametrize("name", ["mbf", "mbf-large"])
def test_keys_are_arcface_torchs(name: str) -> None:
    check_keys(name)


@pytest.mark.parametrize("name", ["mbf", "mbf-large"])
def test_outputs_are_arcface_torchs(name: str) -> None:
    check_outputs(name)
