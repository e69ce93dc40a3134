"""Why the default head has its form: which statistics of the last feature map predict the cosine.

    python benchmarks/light_head.py LFW --out runs/light_head

One pass of SFace over all images of people with two or more images caches many statistics; small heads are
then trained on parts of them. The table gives the sphere confidence loss on held-out people, the share of the
possible gain over a constant kappa (the bound uses every true cosine), and the number of parameters, as means
over seeds.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spherecf import vmf
from spherecf.data import open_source, split_identities, training_views
from spherecf.losses import initial_kappa, sphere_confidence_loss_from_cosine
from spherecf.models import ConfidenceHead, FrozenBackbone
from spherecf.training import (
    CachedFeatures,
    ConfidenceConfig,
    FeatureCache,
    Targets,
    ViewSettings,
    build_cache,
    fit_head,
    prototype_targets,
)

PARTS = ("mean", "deviation", "maximum", "grid", "embedding")


class StudyHead(ConfidenceHead):
    """Uses some parts of the cached features: channel statistics, a 3x3 grid of means, the embedding."""

    kind = "study"
    summary_kind = "study-1"

    def __init__(
        self, shape: tuple[int, int, int], dim: int, parts: tuple[str, ...], widths: tuple[int, ...]
    ) -> None:
        super().__init__(*shape)
        channels = shape[0]
        sizes = dict(zip(PARTS, (channels, channels, channels, 9 * channels, dim + 1), strict=True))
        ends = dict(zip(PARTS, np.cumsum(list(sizes.values())).tolist(), strict=True))
        self.summary_shape = (sum(sizes.values()),)
        self.columns = torch.cat([torch.arange(ends[part] - sizes[part], ends[part]) for part in parts])
        size = len(self.columns)
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        layers: list[nn.Module] = []
        for number, width in enumerate(widths):
            layers += [nn.Linear(size, width), nn.ReLU(), *([nn.Dropout(0.2)] if number == 0 else [])]
            size = width
        self.hidden, self.final = nn.Sequential(*layers), nn.Linear(size, 1)

    def pool_features(self, features: Tensor, embedding: Tensor) -> Tensor:
        flat = features.flatten(2)
        grid = nn.functional.adaptive_avg_pool2d(features, 3).flatten(1)
        norm = embedding.norm(dim=1, keepdim=True)
        statistics = [flat.mean(2), flat.std(2, correction=0), flat.amax(2)]
        return torch.cat([*statistics, grid, embedding / norm, norm], 1)

    def fit_normalisation(self, summaries: Tensor) -> None:
        selected = summaries[:, self.columns]
        self.shift.copy_(selected.mean(0))
        self.scale.copy_(1 / selected.std(0, correction=0).clamp_min(1e-6))

    def forward(self, summary: Tensor) -> Tensor:
        return self.final(self.hidden((summary[:, self.columns] - self.shift) * self.scale)).squeeze(1)


STATISTICS = ("mean", "deviation", "maximum")
STUDIES: tuple[tuple[str, tuple[str, ...], tuple[int, ...]], ...] = (
    ("mean", ("mean",), (64, 32)),
    ("deviation", ("deviation",), (64, 32)),
    ("maximum", ("maximum",), (64, 32)),
    ("mean, deviation, maximum, linear", STATISTICS, ()),
    ("mean, deviation, maximum, 64-32 (the light head)", STATISTICS, (64, 32)),
    ("mean, deviation, maximum, 256-64", STATISTICS, (256, 64)),
    ("3x3 grid of means, 64-32", ("grid",), (64, 32)),
    ("statistics and embedding, 64-32", (*STATISTICS, "embedding"), (64, 32)),
)


def bounds(targets: Targets, config: ConfidenceConfig, dim: int) -> tuple[float, float]:
    """Held-out loss with the best constant kappa, and with the best kappa for each sample."""
    train, held_out = split_identities(targets.identities, config.fit.held_out, config.seed)
    start = initial_kappa(torch.from_numpy(targets.cosine[train]), dim)
    cosine = torch.from_numpy(targets.cosine[held_out]).double()
    best = vmf.inverse_mean_resultant_length(cosine.clamp(0, 1 - 1e-6), dim)
    kappas = torch.full_like(cosine, start), best
    constant, ideal = (float(sphere_confidence_loss_from_cosine(cosine, kappa, dim)) for kappa in kappas)
    return constant, ideal


def study(cache: FeatureCache, backbone: FrozenBackbone, config: ConfidenceConfig, seeds: int) -> None:
    """Print the table."""
    targets = prototype_targets(cache)
    features = CachedFeatures(cache, targets)
    runs = [replace(config, seed=seed) for seed in range(seeds)]
    limits = [bounds(targets, run, backbone.dim) for run in runs]
    print("| head | parameters | held-out loss | part of the possible gain |\n|---|---|---|---|")
    constant, ideal = np.mean(limits, 0)
    print(f"| constant kappa | 1 | {constant:.3f} | 0 % |")
    for name, parts, widths in STUDIES:
        results: list[Any] = []
        for run, (start, bound) in zip(runs, limits, strict=True):
            torch.manual_seed(run.seed)
            head = StudyHead(backbone.feature_shape, backbone.dim, parts, widths)
            loss = min(epoch["held_out_loss"] for epoch in fit_head(head, features, run).history)
            results.append((loss, (start - loss) / (start - bound)))
        loss, part = np.mean(results, 0)
        print(f"| {name} | {head.parameter_count:,} | {loss:.3f} | {100 * part:.1f} % |", flush=True)
    print(f"| best kappa for each sample (the bound) | | {ideal:.3f} | 100 % |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", help="aligned crops of known people")
    parser.add_argument("--out", default="runs/light_head", help="folder of the feature cache")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--people", type=int, help="use only this many people with two or more images")
    arguments = parser.parse_args()
    backbone = FrozenBackbone.default()
    source = open_source(arguments.data)
    counts = np.bincount(source.labels[source.labels >= 0])
    several = np.flatnonzero(counts > 1)[: arguments.people]
    source = source.subset(np.flatnonzero(np.isin(source.labels, several)))
    config = ConfidenceConfig(views=ViewSettings(degraded=3))
    head = StudyHead(backbone.feature_shape, backbone.dim, ("mean",), ())
    cache = build_cache(backbone, head, source, training_views(3), Path(arguments.out) / "cache")
    study(cache, backbone, config, arguments.seeds)


if __name__ == "__main__":
    main()
