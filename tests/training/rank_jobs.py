"""Training jobs of a single rank: ``python -m tests.training.rank_jobs JOB FOLDER`` runs one process."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.nn.functional import normalize

from spherecf.data import SyntheticImages
from spherecf.losses import blockwise, make_margin
from spherecf.models import FrozenBackbone
from spherecf.training import (
    BackboneConfig,
    ConfidenceConfig,
    Ranks,
    ShardedClassifier,
    join_ranks,
    train_backbone,
    train_confidence,
)
from spherecf.training.backbone import _BackboneTask
from spherecf.training.config import OptimizerSettings
from spherecf.training.distributed import synchronize_batch_norm
from spherecf.training.loop import _Trainer

ROOT = Path(__file__).resolve().parents[2]

IDENTITIES, DIM, BATCH = 11, 6, 10
MARGINS = ("softmax", "arcface", "cosface", "combined", "adaface", "magface", "curricularface", "sphereface2")

CONFIG = {
    "network": {"name": "r18", "dim": 16, "options": {"size": 32, "width": 0.25}},
    "fit": {"epochs": 2, "batch_size": 12},
    "optimizer": {"lr": 0.01},
}


def images() -> SyntheticImages:
    return SyntheticImages(48, 6, size=(32, 32))


def config(**changes: dict[str, Any]) -> BackboneConfig:
    tables = {name: {**CONFIG.get(name, {}), **changes.get(name, {})} for name in {*CONFIG, *changes}}
    return BackboneConfig.from_dict(tables)


def classifier_case(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings and labels of a full batch."""
    generator = torch.Generator().manual_seed(len(kind))
    embedding = 20 * normalize(torch.randn(BATCH, DIM, generator=generator))
    return embedding, torch.randint(IDENTITIES, (BATCH,), generator=generator)


def classifier_job(ranks: Ranks, folder: Path) -> None:
    """One step of a sharded classifier for every margin, sample rate (1 and 0.5) and block size."""
    results = {}
    settings = OptimizerSettings(name="sgd", lr=0.1, weight_decay=0.01, decay_vectors=True)
    for kind, rate, per_block in product(MARGINS, (1.0, 0.5), (IDENTITIES, 3)):
        with patch.dict(blockwise._BLOCK_BYTES, cpu=4 * BATCH * per_block):
            classifier = ShardedClassifier(IDENTITIES, DIM, make_margin(kind), ranks, settings, rate, seed=3)
            embedding, labels = classifier_case(kind)
            part = ranks.share(BATCH)
            local_embedding = embedding[part].clone().requires_grad_()
            rows = classifier.begin(labels, step=5)
            loss = classifier.loss(local_embedding, labels[part], rows)
            loss.backward.backward()
            classifier.reduce_gradients()
            for optimizer in classifier.optimizers:
                optimizer.step()
            classifier.end()
            results[kind, rate, per_block == IDENTITIES] = {
                "value": loss.value,
                "grad": ranks.gather(local_embedding.grad),
                "weight": ranks.gather(classifier.rows.weight),
            }
    if ranks.is_main:
        torch.save(results, folder / "found.pt")


def norm_job(ranks: Ranks, folder: Path) -> None:
    """Forward and backward pass of batch normalisation over ranks."""
    generator = torch.Generator().manual_seed(0)
    x, upstream = torch.randn(2, 7, 3, 4, 4, generator=generator)
    norm = synchronize_batch_norm(nn.Sequential(nn.BatchNorm2d(3)), ranks)
    local_input = x[ranks.share(7)].clone().requires_grad_()
    y = norm(local_input)
    y.backward(upstream[ranks.share(7)])
    weight = norm[0].weight.grad
    results = {
        "y": ranks.gather(y),
        "grad": ranks.gather(local_input.grad),
        "weight": ranks.sum_(weight.clone()),
        "state": norm.state_dict(),
    }
    if ranks.is_main:
        torch.save(results, folder / "found.pt")


def backbone_job(ranks: Ranks, folder: Path) -> None:
    """A complete small training; ``folder/config.json``, if present, contains its settings."""
    path = folder / "config.json"
    changes = json.loads(path.read_text()) if path.exists() else {}
    train_backbone(images(), folder, config(**changes), ranks=ranks)


def confidence_job(ranks: Ranks, folder: Path) -> None:
    """Stage 2 on synthetic people; ``folder/config.json`` contains recogniser and settings."""
    content = json.loads((folder / "config.json").read_text())
    backbone = FrozenBackbone.from_checkpoint(content.pop("recogniser"))
    source = SyntheticImages(64, 8, size=(32, 32))
    train_confidence(backbone, source, folder, ConfidenceConfig.from_dict(content), ranks=ranks)


def dying_job(ranks: Ranks, folder: Path, last_step: int) -> None:
    """The backbone job, except that the last rank exits before a step, or before torch compares networks."""
    begin, distribute = _BackboneTask.begin, _Trainer._distribute

    def begin_or_exit(task: _BackboneTask, rows: Any, step: int) -> None:
        if ranks.rank == ranks.size - 1 and step > last_step:
            os._exit(9)
        begin(task, rows, step)

    def distribute_or_exit(trainer: _Trainer, network: nn.Module) -> nn.Module:
        if ranks.rank == ranks.size - 1 and last_step < 0:
            os._exit(9)
        return distribute(trainer, network)

    with (
        patch.object(_BackboneTask, "begin", begin_or_exit),
        patch.object(_Trainer, "_distribute", distribute_or_exit),
    ):
        backbone_job(ranks, folder)


JOBS: dict[str, Callable[[Ranks, Path], None]] = {
    "classifier": classifier_job,
    "norm": norm_job,
    "backbone": backbone_job,
    "confidence": confidence_job,
    "dying in the second epoch": partial(dying_job, last_step=4),
    "dying after the first step": partial(dying_job, last_step=0),
    "dying before the first step": partial(dying_job, last_step=-1),
}


def start(job: str, folder: Path, size: int) -> list[tuple[int, str]]:
    """Run a job on ``size`` gloo ranks and return exit code and stderr of each."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(size):
        rank_variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in rank_variables.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.training.rank_jobs", job, str(folder)]
        processes.append(
            subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        )
    results = []
    try:
        for process in processes:
            _, errors = process.communicate(timeout=600)  # against a hang, not a measure of speed
            results.append((process.returncode, errors))
    finally:
        for process in processes:
            process.kill()
    return results


def run(job: str, folder: Path, size: int) -> None:
    """Run a job and require that every rank succeeds."""
    for code, errors in start(job, folder, size):
        assert code == 0, errors


if __name__ == "__main__":
    with join_ranks("cpu") as joined:
        JOBS[sys.argv[1]](joined, Path(sys.argv[2]))
    # A surviving thread of the process group could abort the process on exit.
    gloo_threads = [
        name for task in Path("/proc/self/task").glob("*/comm") if "gloo" in (name := task.read_text())
    ]
    assert not gloo_threads, gloo_threads
