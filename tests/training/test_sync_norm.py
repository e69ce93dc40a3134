import socket
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from tests.training.rank_jobs import run
from torch import nn

from spherecf.errors import InputError, RankError
from spherecf.training import Ranks, distributed, join_ranks
from spherecf.training.distributed import _device, synchronize_batch_norm


def test_statistics_cover_the_batch_of_all_ranks(tmp_path: Path) -> None:
    run("norm", tmp_path, 3)
    results = torch.load(tmp_path / "found.pt")
    generator = torch.Generator().manual_seed(0)
    x, upstream = torch.randn(2, 7, 3, 4, 4, generator=generator)
    norm = nn.Sequential(nn.BatchNorm2d(3))
    x.requires_grad_()
    y = norm(x)
    y.backward(upstream)
    torch.testing.assert_close(results["y"], y.detach())
    torch.testing.assert_close(results["grad"], x.grad)
    torch.testing.assert_close(results["weight"], norm[0].weight.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(results["state"], dict(norm.state_dict()))


def test_evaluation_needs_no_other_rank() -> None:
    x = torch.randn(4, 3, 2, 2)
    plain = nn.BatchNorm2d(3).eval()
    plain.load_state_dict({**plain.state_dict(), "running_mean": torch.tensor([1.0, 2.0, 3.0])})
    expected = plain(x)
    assert torch.equal(synchronize_batch_norm(plain, Ranks(1, 2))(x), expected)


@pytest.mark.parametrize(
    "name, message",
    [
        ("gpu", r"device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("meta", r"device 'meta' is not available: this machine has no GPU"),
    ],
)
def test_devices_that_do_not_exist_are_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message), join_ranks(name):
        pass


def test_each_local_rank_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _device("auto", 1) == torch.device("cpu")
    with pytest.raises(InputError, match="'cuda' is not available: this machine has no GPU"):
        _device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert _device("auto", 1) == _device("cuda", 1) == _device("cuda:1", 0) == torch.device("cuda", 1)
    for name, local in [("cuda", 2), ("cuda:2", 0)]:
        with pytest.raises(InputError, match="GPU 2 is not available: this machine has 2; start fewer ranks"):
            _device(name, local)


@pytest.mark.parametrize("given, missing", [({}, "RANK"), ({"RANK": "0"}, "MASTER_ADDR")])
def test_ranks_without_an_address_cannot_join(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], missing: str
) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"WORLD_SIZE": "2", **given}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(RankError, match=f"rank 0 of 2 cannot join the others: .*variable {missing} expected"),
        join_ranks("cpu"),
    ):
        pass


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_does_not_wait_for_hours_for_one_that_never_started(
    monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    monkeypatch.setattr(distributed, "_JOIN_TIMEOUT", timedelta(seconds=1))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": probe.getsockname()[1]}
    for name, value in {"WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank, **address}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(RankError, match=f"rank {rank} of 2 cannot join the others: "), join_ranks("cpu"):
        pass
