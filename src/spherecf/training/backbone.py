"""`train_backbone`: stage 1, from images of known people to a recogniser and its prototypes."""

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

from spherecf.common.files import sha256_file
from spherecf.common.readers import Readers, reading_processes
from spherecf.common.version import environment
from spherecf.data import Degradation, ImageBatch, ImageSource, Shown, View, batch_bytes, load_batch
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
from spherecf.training.batches import TrainingIdentities, on_device, part_of, shuffled_batches
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
        history: metrics by epoch: ``train_loss``, ``train_cosine``, ``lr``, and those of ``validate``.
        record: config, data, counts, skipped images with reasons, versions.
        path, prototypes: the files, ``backbone.safetensors`` and ``prototypes.safetensors``.
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
    """Train a recogniser by margin softmax: stage 1 of the sphere confidence face.

    Several processes started by ``torchrun`` (`join_ranks`) train one network: batches and prototypes are
    sharded, the losses are those of one process. After an interruption the same call, with any number of
    ranks, resumes inside the epoch where it stopped.

    Args:
        source: aligned crops of known people, of the network's input size.
        folder: gets the two files, ``history.jsonl`` and checkpoints; all ranks must see it.
        config: settings, by default those of `BackboneConfig`.
        ranks: from `join_ranks`; a single process by default.
        validate: called on rank 0 after each epoch, with a frozen copy of the network; gives metrics for the
            history.
        tensorboard: also write event files.

    Returns:
        The network after the last epoch. Its prototypes are in their file, with the names of the identities.

    Raises:
        InputError: fewer than two identities to classify.
        StorageError: the disk is full; the last checkpoint is intact.
        SpherecfError: the loss is not finite; the keys of the batch are saved.
    """
    config, ranks, folder = config or BackboneConfig(), ranks or Ranks(), Path(folder)
    identities = TrainingIdentities.of(source, config.fit.min_images)
    task = _BackboneTask(source, identities, config, ranks, validate)
    settings = config.to_dict()
    del settings["engine"]  # how it is computed: a run may go on with another
    # Checkpoints of runs that began when this setting was named `least` are still resumed.
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
        # From the shards of the last checkpoint: all prototypes together may not fit on a GPU.
        prototypes = load_sharded(folder, run.identity, "weight")
        save_prototypes(result.prototypes, prototypes, identities.names)

    ranks.run_on_main(save, "saving the backbone")
    return result


class _BackboneTask:
    """Images through the network to the sharded margin softmax."""

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
        half = (
            config.engine.precision_on(ranks.device) in ("bfloat16", "float16") and ranks.device.type != "cpu"
        )
        self.classifier = ShardedClassifier(
            len(identities.names), settings.dim, _margin(margin, len(identities.names)), ranks,
            config.optimizer, margin.sample_rate, config.seed, torch.bfloat16 if half else torch.float32,
        )  # fmt: skip
        self._classes = torch.from_numpy(identities.classes)  # (len(source),)
        reads = config.fit.epochs * len(identities.rows) // ranks.size
        largest = math.ceil(config.fit.batch_size / (ranks.size * config.engine.accumulate))
        self._readers = Readers[Shown, ImageBatch](
            partial(load_batch, source, self.preprocessing.size),
            threads=config.engine.workers,
            processes=reading_processes(config.engine.workers, reads, ranks.device),
            largest=batch_bytes(largest, self.preprocessing.size),
            device=ranks.device,
            name="decode",
        )
        self._sampled: Tensor | None = None  # rows of this step's prototypes, None for all
        self._cosine = [0.0, 0]  # sum and number of steps of the current epoch
        self._cosines: list[Tensor] = []  # of further steps, on the device

    def batches(self, epoch: int) -> list[Rows]:
        fit = self._config.fit
        return shuffled_batches(
            self._identities.rows, fit.batch_size, self._config.seed, epoch, drop_last=True
        )

    def cut(self, batch: Rows, parts: int) -> list[Rows]:
        return np.array_split(batch, parts)

    def load(self, epoch: int, parts: Iterable[Rows]) -> Generator[Part, None, None]:
        with closing(self._readers(map(self._shown(epoch), parts))) as loaded:
            yield from on_device(map(part_of, loaded), self._ranks.device)

    def _shown(self, epoch: int) -> Callable[[Rows], Shown]:
        """How each image is shown in this epoch: a function of seed, epoch and image."""
        settings, seed = self._config.augment, self._config.seed
        # For all images at once: a draw depends neither on the ranks nor on the order of the batches.
        draw = np.random.default_rng([seed, epoch, 1]).random((2, len(self._source)), dtype=np.float32)
        degrade = Degradation(settings.recipe, seed * 1000 + epoch)
        views = [View(damage, flip) for damage in (None, degrade) for flip in (False, True)]
        view = 2 * (draw[1] < settings.degraded) + ((draw[0] < 0.5) & settings.flip)  # (len(source),)
        return lambda rows: Shown(rows, rows, views, view[rows])

    def close(self) -> None:
        """End the processes that read."""
        self._readers.close()

    def begin(self, rows: Rows, step: int) -> None:
        self._sampled = self.classifier.begin(self._classes[rows], step)

    def loss(self, forward: Forward, part: Part) -> Loss:
        device = self._ranks.device
        images = part.data.to(device, non_blocking=True)  # (n_r, height, width, 3) uint8
        labels = self._classes[part.rows].to(device, non_blocking=True)  # (n_r,)
        # A rank without a readable image must still take part in the collectives of forward and backward.
        # Two black images, since batch normalisation cannot take one; their embeddings are dropped.
        if not len(images):
            images = torch.zeros(2, *self.preprocessing.size, 3, dtype=torch.uint8, device=device)
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
                validation = {name: float(value) for name, value in self._validate(self._frozen()).items()}
            metrics |= self._ranks.broadcast_object(validation)
        return metrics

    def _read_cosines(self) -> None:
        for cosine in torch.stack(self._cosines).tolist() if self._cosines else []:
            if math.isfinite(cosine):
                self._cosine = [self._cosine[0] + cosine, self._cosine[1] + 1]
        self._cosines.clear()

    def _frozen(self) -> FrozenBackbone:
        # A copy: freezing turns off gradients, and a validation must not change the network in training.
        copy = deepcopy(self.network)
        return FrozenBackbone.from_module(copy, self.preprocessing, device=str(self._ranks.device))

    def state(self) -> dict[str, Any]:
        self._read_cosines()
        return {"cosine": self._cosine}

    def load_state(self, state: dict[str, Any]) -> None:
        self._cosine = state["cosine"]


def _start_from(network: Network, path: str) -> None:
    start = load_backbone(path, network.name)
    if (start.dim, start.size, start.width) != (network.dim, network.size, network.width):
        raise InputError(
            f"network.start: {path} holds {start.name} of dim {start.dim}, size {start.size} and width "
            f"{start.width:g}, the recipe asks for {network.dim}, {network.size} and {network.width:g}"
        )
    network.load_state_dict(start.state_dict())


def _margin(settings: MarginSettings, identities: int) -> Margin:
    options = dict(settings.options)
    if settings.kind == "sphereface2":
        # Its bias depends on the number of identities: with the default the first loss would be huge.
        known = {name: options[name] for name in ("scale", "margin", "balance", "t") if name in options}
        options.setdefault("start", sphereface2_bias(identities, **known))
    return make_margin(settings.kind, **options)
