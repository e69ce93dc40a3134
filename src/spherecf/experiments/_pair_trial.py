"""Pair lists of one seed: every head's own score beside the cosine, in one report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.data import Degradation, PairList, View
from spherecf.evaluation import PairReport, evaluate_pairs
from spherecf.experiments._variants import HeadVariant
from spherecf.models import ConfidenceModel
from spherecf.scoring import gaussian_score, mutual_likelihood_score
from spherecf.training import FeatureCache

CONFIDENCES = ("kappa", "norm", "sharpness", "random")


@dataclass(frozen=True)
class Condition:
    """Which view stands left and right in every pair."""

    name: str
    left: int
    right: int


def view_of(cache: FeatureCache, recipe: str, seed: int) -> int:
    """Place of a degraded view among those of a cache."""
    return [view.signature for view in cache.views].index(View(Degradation(recipe, seed)).signature)


def conditions(cache: FeatureCache, recipes: Sequence[str], seed: int) -> list[Condition]:
    """Clean, and by each recipe across and both degraded; view 0 of the cache is the clean one."""
    found = [Condition("clean/clean", 0, 0)]
    for recipe in recipes:
        degraded = view_of(cache, recipe, seed)
        found += [
            Condition(f"clean/{recipe}", 0, degraded), Condition(f"{recipe}/{recipe}", degraded, degraded)
        ]  # fmt: skip
    return found


def evaluate_condition(
    cache: FeatureCache,
    models: Mapping[str, ConfidenceModel],
    said: Mapping[str, NDArray[np.float32]],
    variants: Sequence[HeadVariant],
    pairs: PairList,
    condition: Condition,
    name: str,
    seed: int,
    draws: int,
) -> PairReport:
    """One pair list under one condition.

    Args:
        cache: features of the test images; its first view is clean.
        models: by the score's name; "mls" gives the kappa of EDC and rejection.
        said: by the score's name, what the head says of every row of the cache.
        variants: the heads.
        pairs: who is compared with whom.
        condition: which views.
        name: of the pairs in the report.
        seed: of the heads, for the label.
        draws: of the bootstrap.
    """
    model = models["mls"]
    facts: dict[str, Any] = {
        "model": model.fingerprint(), "backbone": model.backbone.sha256, "radius": model.radius,
    }  # fmt: skip
    left, right = (cache.embeddings(view, said["mls"], facts) for view in (condition.left, condition.right))
    extra = {
        variant.score: score_pairs(cache, said[variant.score], variant, pairs, condition, model.radius)
        for variant in variants
        if variant.score != "mls"
    }
    return evaluate_pairs(
        left, left if condition.left == condition.right else right, pairs.left, pairs.right,
        pairs.mated, pairs.fold,
        name=name, subjects=pairs.subjects, radius=model.radius,
        extra_scores=extra, confidences=CONFIDENCES, draws=draws, condition=condition.name,
        pairs_hash=pairs.fingerprint(), step=seed, label=f"seed {seed}",
    )  # fmt: skip


def score_pairs(
    cache: FeatureCache,
    said: NDArray[np.float32],
    variant: HeadVariant,
    pairs: PairList,
    condition: Condition,
    radius: float,
) -> NDArray[np.float64]:
    """All listed pairs by one head's own score; 0 where an image could not be used."""
    views = len(cache.views)
    rows = pairs.rows(cache.source.keys)
    a, b = (row * views + view for row, view in zip(rows, (condition.left, condition.right)))
    usable = cache.valid[a] & cache.valid[b]
    scores, a, b = np.zeros(len(usable)), a[usable], b[usable]
    mu_a, mu_b = torch.from_numpy(cache.mu[a]), torch.from_numpy(cache.mu[b])
    if variant.gaussian:
        one, two = (torch.from_numpy(said[side].reshape(len(a), -1)).double() for side in (a, b))
        scores[usable] = gaussian_score(mu_a.double(), one, mu_b.double(), two).numpy()
        return scores
    # The exponential in float32, as that of an embeddings file.
    kappa_a, kappa_b = (torch.from_numpy(np.exp(said[side])).double() for side in (a, b))
    scores[usable] = mutual_likelihood_score(mu_a, kappa_a, mu_b, kappa_b, radius).numpy()
    return scores
