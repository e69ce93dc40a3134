"""Both stages from scratch: a small recogniser trained on LFW and a head on it, both tested on CFP.

    python benchmarks/from_scratch.py LFW CFP --out runs/scratch

LFW is the folder with ``train.rec``, CFP the folder with one folder per person and the pair lists. The run
takes half an hour on one thread. A finished recogniser in ``OUT/backbone`` is used without retraining;
everything else resumes where it stopped.
"""

import argparse
from pathlib import Path

import numpy as np

from spherecf.data import Degradation, View, open_pairs, open_source
from spherecf.embeddings import Embeddings
from spherecf.evaluation import tenfold
from spherecf.extract import embed
from spherecf.models import FrozenBackbone
from spherecf.training import (
    BACKBONE_FILE,
    BackboneConfig,
    ConfidenceConfig,
    train_backbone,
    train_confidence,
)

RECIPE = Path(__file__).parents[1] / "recipes" / "lfw-backbone.toml"
RECIPES = ("cross", "unseen")


def accuracy(embeddings: Embeddings, path: Path) -> str:
    """Ten-fold accuracy of the cosine on a pair list."""
    pairs = open_pairs(path)
    left, right = pairs.rows(embeddings.keys)
    scores = (embeddings.mu[left] * embeddings.mu[right]).sum(1)
    result = tenfold(scores, pairs.mated, pairs.fold)
    return f"{result.mean:.3f} +- {result.std:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/scratch"))
    parser.add_argument("--cache", type=Path, help="feature cache of the head, by default in OUT")
    arguments = parser.parse_args()
    train, test, out = open_source(arguments.train), open_source(arguments.test), arguments.out
    history = out / "backbone" / "history.jsonl"
    if not (out / "backbone" / BACKBONE_FILE).exists():
        train_backbone(train, out / "backbone", BackboneConfig.load(RECIPE))
    lines = history.read_text().splitlines()
    print(f"stage 1, first epoch: {lines[0]}\nstage 1, last epoch:  {lines[-1]}")
    backbone = FrozenBackbone.from_checkpoint(out / "backbone" / BACKBONE_FILE)
    model = train_confidence(backbone, train, out / "head", ConfidenceConfig(), cache=arguments.cache)
    losses = [f"{epoch['held_out_loss']:.2f}" for epoch in model.record["history"]]
    print(f"stage 2, held-out loss by epoch: {', '.join(losses)}")
    clean = embed(model, test, out / "clean.safetensors")
    for name in ("FF", "FP"):
        print(f"ten-fold accuracy, CFP-{name}: {accuracy(clean, arguments.test / f'pairs_{name}.txt')}")
    kappa = np.exp(clean.log_kappa)
    print(f"median kappa, clean: {np.median(kappa):.0f}")
    for recipe in RECIPES:
        shown = embed(model, test, out / f"{recipe}.safetensors", view=View(Degradation(recipe)))
        below = np.exp(shown.log_kappa) < kappa
        print(
            f"median kappa, {recipe}: {np.median(np.exp(shown.log_kappa)):.0f}; "
            f"below its own clean image's: {100 * below.mean():.0f} % of {len(below):,}"
        )


if __name__ == "__main__":
    main()
