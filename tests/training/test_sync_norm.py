from pathlib import Path

import torch
from tests.training.rank_jobs import run
from torch import nn


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
