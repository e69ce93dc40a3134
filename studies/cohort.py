"""Whether a search gains by scores that are normalised on the probe's own gallery."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.calibration import PAIR_EVIDENCE, TEMPLATE_EVIDENCE, TEMPLATES_EVIDENCE, Calibration
from spherecf.common.progress import progress
from spherecf.data import ImageSource, View
from spherecf.errors import InputError
from spherecf.models import ConfidenceModel
from spherecf.report import Table
from spherecf.scoring import cosine_matrix, mutual_likelihood_matrix, pool
from spherecf.training import build_cache
from studies.graded import GRADES, GradedFaces
from studies.promise import some_of
from studies.shipped import graded, halves

Array = NDArray[Any]
Side = tuple[Array, Array, Array]
"""(n, dim) directions, (n,) concentrations, (n,) people."""

FPIR = 0.01
SCORES = ("evidence", "mls", "cosine")
_TOP = 10  # of the gallery, behind the best one
_ROWS = 256  # probes at once


@dataclass(frozen=True)
class World:
    """How galleries are drawn: half of the people enrolled, the others strangers.

    Attributes:
        name: of the people.
        images: per template, as they are.
        mixed: probes in any grade, else as they are.
    """

    name: str
    images: int
    mixed: bool

    def draw(self, faces: GradedFaces, seed: int) -> tuple[Side, Side]:
        """(gallery, probes): every image that is in no template, of the enrolled and of strangers."""
        rng = np.random.default_rng(seed)
        people = rng.permutation(np.unique(faces.person))
        enrolled = set(people[: people.size // 2].tolist())
        taken: list[Array] = []
        for person in sorted(enrolled):
            own = rng.permutation(np.flatnonzero(faces.person == person))
            if own.size > self.images:
                taken.append(own[: self.images])
        rows = np.concatenate(taken)
        gallery = pool(faces.mu[rows, 0], faces.kappa[rows, 0], faces.person[rows])
        left = np.setdiff1d(np.arange(faces.person.size), rows)
        grade = rng.integers(0, len(faces.grades), left.size) if self.mixed else np.zeros(left.size, int)
        probes = faces.mu[left, grade], faces.kappa[left, grade], faces.person[left]
        return (gallery.mu, gallery.kappa, gallery.groups), probes


def scores_of(
    probes: Side, gallery: Side, evidence: str, calibration: Calibration, radius: float
) -> dict[str, Array]:
    """(probes, gallery) of every score."""
    mu, kappa, their_mu, their_kappa = (
        torch.from_numpy(np.ascontiguousarray(one)) for side in (probes, gallery) for one in side[:2]
    )
    mls = mutual_likelihood_matrix(mu, kappa, their_mu, their_kappa, radius).numpy()
    cosine = cosine_matrix(mu, their_mu).numpy()
    found = np.empty_like(mls)
    for start in range(0, len(mls), _ROWS):
        rows = slice(start, start + _ROWS)
        kappas = np.broadcast_arrays(gallery[1][None], probes[1][rows, None])
        found[rows] = calibration.evidence(evidence, mls[rows], cosine[rows], (kappas[0], kappas[1]))
    named = {"evidence": found, "mls": mls, "cosine": cosine}
    return {name: values.astype(np.float64) for name, values in named.items()}


def normalised(scores: Array, among: Array) -> dict[str, Array]:
    """Scores (p, g) by every way.

    - z: less the mean over the gallery, by its standard deviation, the score itself left out.
    - s: mean of z and of the same over the templates' scores among each other (S-norm).
    - centred: less half of both means.
    - top: less a quarter of the mean of the probe's next 10 scores.
    - tail: the excess over the probe's 11th score, by the mean excess of its 2nd to 10th: an exponential
      tail of the probe's own.

    Args:
        scores: (p, g).
        among: (g, g) of the templates.
    """
    count = scores.shape[1] - 1
    mean = (scores.sum(1, keepdims=True) - scores) / count
    spread = np.sqrt(np.maximum(((scores**2).sum(1, keepdims=True) - scores**2) / count - mean**2, 1e-9))
    off = ~np.eye(len(among), dtype=bool)
    own = among.mean(1, where=off)
    own_spread = among.std(1, where=off)
    z = (scores - mean) / spread
    next_ones = -np.sort(np.partition(-scores, _TOP + 1, axis=1)[:, : _TOP + 2], axis=1)[:, 1:]
    base = next_ones[:, -1:]
    return {
        "as it is": scores,
        "z": z,
        "s": (z + (scores - own) / own_spread) / 2,
        "centred": scores - (mean + own - own.mean()) / 2,
        "top": scores - next_ones[:, :-1].mean(1, keepdims=True) / 4,
        "tail": (scores - base) / np.maximum((next_ones[:, :-1] - base).mean(1, keepdims=True), 1e-3),
    }


@dataclass(frozen=True)
class Gain:
    """One way to normalise one score in one world.

    Attributes:
        world, score, way: which.
        gallery, probes: sizes of the last draw.
        fnir: false negative identification rate at `FPIR`, mean over the draws of galleries.
        more: the same minus that of the score as it is.
        ends: 95 % interval of the difference, over people.
    """

    world: World
    score: str
    way: str
    gallery: int
    probes: int
    fnir: float
    more: float
    ends: tuple[float, float]


@dataclass(frozen=True, eq=False)
class _Searched:
    """Probes after a search: score of the best, whether it is their own, and place of their person."""

    best: Array
    right: NDArray[np.bool_]
    mated: NDArray[np.bool_]
    person: NDArray[np.int64]

    def fnir(self, weight: Array) -> float:
        """At `FPIR`, people weighed."""
        own = weight[self.person]
        alone = ~self.mated
        order = np.argsort(-self.best[alone], kind="stable")
        total = np.cumsum(own[alone][order])
        at = min(int(np.searchsorted(total, FPIR * total[-1] * (1 + 1e-12), side="right")), order.size - 1)
        found = self.right & (self.best > self.best[alone][order][at])
        return 1 - float(own[found].sum() / own[self.mated].sum())


def cohort(
    model: ConfidenceModel,
    test: ImageSource,
    others: Mapping[str, ImageSource],
    folder: str | Path,
    *,
    galleries: int = 8,
    draws: int = 200,
    seed: int = 0,
) -> list[Gain]:
    """FNIR at FPIR 0.01 with scores as they are, and normalised on the gallery.

    The people of TEST who checked the shipped model, and those of other sets; the caches of `promise`.

    Args:
        model: calibrated.
        test: aligned crops, several of each person.
        others: further sets by name.
        folder: of the caches.
        galleries: draws of who is enrolled.
        draws: of people, for the intervals.
        seed: of both.

    Raises:
        InputError: the model is not calibrated.
    """
    calibration, folder = model.calibration, Path(folder)
    if calibration is None:
        raise InputError("cohort: the model is not calibrated")
    whole = graded(
        model, build_cache(model.backbone, model.head, test, list(GRADES.values()), folder / "test-cache")
    )
    _, second = halves(whole.person)
    sets = {test.name: whole.only(second)}
    worlds = [World(test.name, images, mixed) for images in (1, 3) for mixed in (False, True)]
    for name, source in others.items():
        cache = build_cache(model.backbone, model.head, some_of(source), [View()], folder / f"{name}-cache")
        kappa = np.exp(cache.log_kappa(model.head))
        shown = GradedFaces(
            ["none"], cache.mu[:, None], kappa[:, None], cache.source.labels, cache.source.keys, model.radius
        )
        sets[name] = shown.only(cache.valid)
        worlds.append(World(name, 1, False))
    found: list[Gain] = []
    with progress("galleries", len(worlds) * galleries) as advance:
        for world in worlds:
            faces = sets[world.name]
            searched: dict[tuple[str, str], list[_Searched]] = {}
            for draw in range(galleries):
                gallery, probes = world.draw(faces, seed + draw)
                for key, one in _search(world, gallery, probes, calibration, model.radius).items():
                    searched.setdefault(key, []).append(one)
                advance()
            people = int(faces.person.max()) + 1
            known = np.unique(faces.person)
            odds = np.bincount(known, minlength=people) / known.size
            weights = np.random.default_rng(seed).multinomial(known.size, odds, draws)
            sizes = len(gallery[1]), len(probes[1])
            found += _gains(world, sizes, searched, np.vstack([np.ones(people), weights]))
    return found


def _search(
    world: World, gallery: Side, probes: Side, calibration: Calibration, radius: float
) -> dict[tuple[str, str], _Searched]:
    """By score and way."""
    kinds = (TEMPLATE_EVIDENCE, TEMPLATES_EVIDENCE) if world.images > 1 else (PAIR_EVIDENCE,) * 2
    scores, among = (
        scores_of(side, gallery, kind, calibration, radius) for side, kind in zip((probes, gallery), kinds)
    )
    mated = np.isin(probes[2], gallery[2])
    found = {}
    for score in SCORES:
        for way, values in normalised(scores[score], among[score]).items():
            right = gallery[2][values.argmax(1)] == probes[2]
            found[score, way] = _Searched(values.max(1), right, mated, probes[2])
    return found


def _gains(
    world: World, sizes: tuple[int, int], searched: Mapping[tuple[str, str], list[_Searched]], weights: Array
) -> list[Gain]:
    """The first row of the weights (draws, people) counts everybody once."""
    rates = {
        key: np.mean([[one.fnir(weight) for weight in weights] for one in own], axis=0)
        for key, own in searched.items()
    }
    found = []
    for (score, way), values in rates.items():
        more = values - rates[score, "as it is"]
        low, high = np.quantile(more[1:], [0.025, 0.975])
        ends = float(low), float(high)
        found.append(Gain(world, score, way, *sizes, float(values[0]), float(more[0]), ends))
    return found


def cohort_tables(gains: list[Gain]) -> list[Table]:
    """One per world."""
    tables = []
    for world in dict.fromkeys(gain.world for gain in gains):
        own = [gain for gain in gains if gain.world == world]
        ways = list(dict.fromkeys(gain.way for gain in own))
        rows = []
        for score in SCORES:
            each = {gain.way: gain for gain in own if gain.score == score}
            rows.append(
                [
                    score,
                    f"{each[ways[0]].fnir:.4f}",
                    *(
                        f"{each[way].more:+.4f} [{each[way].ends[0]:+.4f}, {each[way].ends[1]:+.4f}]"
                        for way in ways[1:]
                    ),
                ]
            )
        each_has = f"{world.images} image{'s' if world.images > 1 else ''} per template"
        shown = "in any grade" if world.mixed else "as they are"
        sizes = f"{own[0].gallery} enrolled, {own[0].probes:,} probes"
        title = f"{world.name}, {each_has}, probes {shown}: {sizes}"
        tables.append(Table(title, ["score", f"FNIR at FPIR {FPIR:g}", *ways[1:]], rows))
    return tables
