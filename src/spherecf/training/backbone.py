"""`train_backbone`, stage 1: train a recogniser and its identity prototypes on labelled images."""

import math
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spherecf.common.arrays import to_device
from spherecf.common.files import sha256_file
from spherecf.common.readers import Readers, reading_processes
from spherecf.common.version import environment
from spherecf.data import Degradation, ImageBatch, ImageSource, View, ViewRequest, batch_bytes, load_batch
from spherecf.errors import InputError
from spherecf.losses import Margin, make_margin, sphereface2_bias
from spherecf.models import (
    FrozenBackbone,
    Network,
    Preprocessing,
    load_backbone,
    make_backbone,
    save_backbone,
    save_prototypes,
)
from spherecf.training.batches import TrainingIdentities, on_device, shuffled_batches, to_part
from spherecf.training.checkpoint import identity_of, load_sharded
from spherecf.training.classifier import ShardedClassifier
from spherecf.training.config import BackboneConfig, MarginSettings
from spherecf.training.distributed import Ranks
from spherecf.training.loop import Forward, Loss, Part, Rows, Run, run_training
from spherecf.training.optim import make_optimizer

BACKBONE_FILE, PROTOTYPE_FILE = "backbone.safetensors", "prototypes.safetensors"

Validate = Callable[[FrozenBackbone], Mapping[str, float]]


@dataclass(frozen=True, eq=False)
class TrainedBackbone:
    """A trained recogniser.

    Attributes:
        network: in evaluation mode.
        preprocessing: of its input.
        history: metrics of each epoch: ``train_loss``, ``train_cosine``, ``lr``, and those of ``validate``.
        record: settings, data, counts, skipped images with reasons, versions.
        path, prototypes: the files ``backbone.safetensors`` and ``prototypes.safetensors``.
    """

    network: Network
    preprocessing: Preprocessing
    history: list[dict[str, float]]
    record: dict[str, Any]
    path: Path
    prototypes: Path


def train_backbone(
    source: ImageSource,
    folder: str | Path,
    config: BackboneConfig | None = None,
    *,
    ranks: Ranks | None = None,
    validate: Validate | None = None,
    tensorboard: bool = False,
) -> TrainedBackbone:
    """Train a recogniser by margin softmax: stage 1 of Sphere Confidence Face.

    Several processes started by ``torchrun`` (`join_ranks`) train one network: batches and prototypes are
    sharded, and the losses equal those of a single process. After an interruption the same call, with any
    number of ranks, resumes within the epoch.

    Args:
        source: labelled, aligned crops of the network's input size.
        folder: receives the two files, ``history.jsonl`` and checkpoints; all ranks must see it.
        config: settings, by default those of `BackboneConfig`.
        ranks: from `join_ranks`; a single process by default.
        validate: called on rank 0 after each epoch, with a frozen copy of the network; returns metrics for
            the history.
        tensorboard: also write TensorBoard event files.

    Returns:
        The network after the last epoch. Its prototypes are in a file, with the names of the identities.

    Raises:
        InputError: fewer than two identities to classify.
        StorageError: the disk is full; the last checkpoint is intact.
        SpherecfError: the loss is not finite; the keys of the batch are saved.
    """
    config, ranks, folder = config or BackboneConfig(), ranks or Ranks(), Path(folder)
    identities = TrainingIdentities.of(source, config.fit.min_images)
    task = _BackboneTask(source, identities, config, ranks, validate)
    settings = config.to_dict()
    del settings["engine"]  # a run may resume with other engine settings
    # Use the setting's former name, so that earlier checkpoints have the same identity and are resumed.
    settings["fit"]["least"] = settings["fit"].pop("min_images")
    facts = {
        "data": source.fingerprint(),
        "identities": len(identities.names),
        "start": sha256_file(config.network.start) if config.network.start else "",
        "config": settings,
    }
    run = Run(
        config.fit.epochs, config.seed, config.optimizer, config.schedule, config.engine,
        folder, identity_of(facts), "training the backbone", tensorboard,
    )  # fmt: skip
    with closing(task):
        outcome = run_training(task, run, ranks)
    record = {
        "config": config.to_dict(),
        "data": {
            "source": source.name,
            "fingerprint": facts["data"],
            "images": len(source),
            "used": len(identities.rows) - len(outcome.skipped),
            "identities": len(identities.names),
            "left_out": identities.left_out,
            "skipped": outcome.skipped,
        },
        "ranks": ranks.size,
        "precision": config.engine.precision_on(ranks.device),
        "history": outcome.history,
        "versions": environment(),
    }
    result = TrainedBackbone(
        task.network.eval(),
        task.preprocessing,
        outcome.history,
        record,
        folder / BACKBONE_FILE,
        folder / PROTOTYPE_FILE,
    )

    def save() -> None:
        save_backbone(result.path, task.network, task.preprocessing, record)
        # Read them from the last checkpoint: the prototypes of all ranks may not fit on one GPU.
        prototypes = load_sharded(folder, run.identity, "weight")
        save_prototypes(result.prototypes, prototypes, identities.names)

    ranks.run_on_main(save, "saving the backbone")
    return result


class _BackboneTask:
    """Stage 1 as a `Task`: images, network, sharded margin softmax."""

    def __init__(
        self,
        source: ImageSource,
        identities: TrainingIdentities,
        config: BackboneConfig,
        ranks: Ranks,
        validate: Validate | None,
    ) -> None:
        self._source, self._identities, self._config, self._ranks = source, identities, config, ranks
        self._validate = validate
        _check_batch_size(config, len(identities.rows), ranks)
        settings = config.network
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            options = {**settings.options, "checkpointing": config.engine.checkpointing}
            self.network = make_backbone(settings.name, settings.dim, **options)
        if settings.start:
            _start_from(self.network, settings.start)
        self.network.to(ranks.device)
        base = Preprocessing.preset(settings.preprocessing)
        self.preprocessing = Preprocessing(base.color, base.mean, base.std, (self.network.size,) * 2)
        self.optimizer = make_optimizer(self.network.parameters(), config.optimizer)
        margin = config.margin
        self.classifier = ShardedClassifier(
            len(identities.names), settings.dim, _margin(margin, len(identities.names)), ranks,
            config.optimizer, margin.sample_rate, config.seed, config.engine.products_on(ranks.device),
        )  # fmt: skip
        self._classes = torch.from_numpy(identities.classes)  # (len(source),)
        reads = config.fit.epochs * len(identities.rows) // ranks.size
        max_batch = math.ceil(config.fit.batch_size / (ranks.size * config.engine.accumulate))
        self._readers = Readers[ViewRequest, ImageBatch](
            partial(load_batch, source, self.preprocessing.size),
            threads=config.engine.workers,
            processes=reading_processes(config.engine.workers, reads, ranks.device),
            max_result_bytes=batch_bytes(max_batch, self.preprocessing.size),
            device=ranks.device,
            name="decode",
        )
        self._sampled: Tensor | None = None  # prototype rows of this step, None for all
        self._cosine = [0.0, 0]  # sum over the steps of this epoch, and their number
        self._cosines: list[Tensor] = []  # of steps not read yet, on the device

    def batches(self, epoch: int) -> list[Rows]:
        fit = self._config.fit
        return shuffled_batches(
            self._identities.rows, fit.batch_size, self._config.seed, epoch, drop_last=True
        )

    def cut(self, batch: Rows, parts: int) -> list[Rows]:
        return np.array_split(batch, parts)

    def load(self, epoch: int, parts: Iterable[Rows]) -> Generator[Part, None, None]:
        with closing(self._readers(map(self._views_of(epoch), parts))) as loaded:
            yield from on_device(map(to_part, loaded), self._ranks.device)

    def _views_of(self, epoch: int) -> Callable[[Rows], ViewRequest]:
        """The augmentation of each image in an epoch, a function of seed, epoch and image."""
        settings, seed = self._config.augment, self._config.seed
        # Drawn for all images at once, independently of the ranks and of the order of batches.
        draw = np.random.default_rng([seed, epoch, 1]).random((2, len(self._source)), dtype=np.float32)
        degrade = Degradation(settings.recipe, seed * 1000 + epoch)
        views = [View(degradation, flip) for degradation in (None, degrade) for flip in (False, True)]
        view = 2 * (draw[1] < settings.degraded) + ((draw[0] < 0.5) & settings.flip)  # (len(source),)
        return lambda rows: ViewRequest(rows, rows, views, view[rows])

    def close(self) -> None:
        """End the reader processes."""
        self._readers.close()

    def begin(self, rows: Rows, step: int) -> None:
        self._sampled = self.classifier.begin(self._classes[rows], step)

    def loss(self, forward: Forward, part: Part) -> Loss:
        device = self._ranks.device
        images = to_device(part.data, device)  # (n_r, height, width, 3) uint8
        labels = to_device(self._classes[part.rows], device)  # (n_r,)
        # A rank without a readable image must still take part in the collectives of forward and backward, and
        # batch normalisation needs two images, its own or other ranks'. Black ones fill up; their embeddings
        # are dropped.
        synchronised = self._ranks.size > 1 and self._config.engine.sync_batch_norm
        if len(images) < (1 if synchronised else 2):
            images = torch.cat([images, images.new_zeros(2 - len(images), *self.preprocessing.size, 3)])
        embedding = forward(self.preprocessing(images))[0][: len(labels)]  # (n_r, dim)
        loss = self.classifier.loss(embedding, labels, self._sampled)
        self._cosines.append(loss.cosine)
        return Loss(loss.backward, loss.value)

    def keys(self, rows: Rows) -> list[str]:
        return [self._source.keys[row] for row in rows.tolist()]

    def end_epoch(self, epoch: int) -> dict[str, float]:
        self._read_cosines()
        metrics = {"train_cosine": self._cosine[0] / max(1, self._cosine[1])}
        self._cosine = [0.0, 0]
        if self._validate is not None:
            validation: dict[str, float] = {}
            if self._ranks.is_main:
                # Freeze a copy: validation must not change the network that is being trained.
                network, device = deepcopy(self.network), str(self._ranks.device)
                frozen = FrozenBackbone.from_module(network, self.preprocessing, device=device)
                validation = {name: float(value) for name, value in self._validate(frozen).items()}
            metrics |= self._ranks.broadcast_object(validation)
        return metrics

    def _read_cosines(self) -> None:
        for cosine in torch.stack(self._cosines).tolist() if self._cosines else []:
            if math.isfinite(cosine):
                self._cosine = [self._cosine[0] + cosine, self._cosine[1] + 1]
        self._cosines.clear()

    def state(self) -> dict[str, Any]:
        self._read_cosines()
        return {"cosine": self._cosine}

    def load_state(self, state: dict[str, Any]) -> None:
        self._cosine = state["cosine"]


def _check_batch_size(config: BackboneConfig, images: int, ranks: Ranks) -> None:
    """Check that batch normalisation, which the embedding of every network has, gets two images or more."""
    batch, parts = min(config.fit.batch_size, images), config.engine.accumulate
    shares = 1 if config.engine.sync_batch_norm else ranks.size
    if batch // parts // shares < 2:
        raise InputError(
            f"fit.batch_size: a batch of {batch} images in {parts} parts (engine.accumulate) on {ranks.size} "
            "ranks leaves one image or none to a batch normalisation, which needs at least two; use a larger "
            "batch, or fewer parts or ranks"
        )


def _start_from(network: Network, path: str) -> None:
    start = load_backbone(path, network.name)
    if (start.dim, start.size, start.width) != (network.dim, network.size, network.width):
        raise InputError(
            f"network.start: {path} contains {start.name} of dim {start.dim}, size {start.size} and width "
            f"{start.width:g}, but the recipe asks for {network.dim}, {network.size} and {network.width:g}"
        )
    network.load_state_dict(start.state_dict())


def _margin(settings: MarginSettings, identities: int) -> Margin:
    margin = make_margin(settings.kind, **settings.options)
    if settings.kind == "sphereface2" and "start" not in settings.options:
        # The initial bias depends on the number of identities; the default would give a huge first loss.
        options = margin.config()
        names = ("scale", "margin", "balance", "t")
        options["start"] = sphereface2_bias(identities, **{name: options[name] for name in names})
        return make_margin(settings.kind, **options)
    return margin
