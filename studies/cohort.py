"""Does open-set search improve if scores are normalised on the searched gallery?"""

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
from studies.graded import GRADES, GradedFaces, centred
from studies.shipped import graded, halves
from studies.transfer import sample_images

Array = NDArray[Any]
Side = tuple[Array, Array, Array]
"""(n, dim) directions, (n,) concentrations, (n,) people."""

FPIR = 0.01
SCORES = ("evidence", "mls", "cosine")
_TOP = 10  # best gallery scores of a probe after the highest one
_ROWS = 256  # probes scored at once


@dataclass(frozen=True)
class World:
    """How galleries are drawn: half of the people are enrolled, the others are not.

    Attributes:
        name: of the set of people.
        images: per template, undamaged.
        mixed: whether probes have any grade of damage; otherwise they are undamaged.
    """

    name: str
    images: int
    mixed: bool

    def draw(self, faces: GradedFaces, seed: int) -> tuple[Side, Side]:
        """(gallery, probes): the probes are all images in no template, of enrolled and of other people."""
        rng = np.random.default_rng(seed)
        people = rng.permutation(np.unique(faces.person))
        enrolled = set(people[: people.size // 2].tolist())
        template_rows: list[Array] = []
        for person in sorted(enrolled):
            images = rng.permutation(np.flatnonzero(faces.person == person))
            if images.size > self.images:
                template_rows.append(images[: self.images])
        rows = np.concatenate(template_rows)
        gallery = pool(faces.mu[rows, 0], faces.kappa[rows, 0], faces.person[rows])
        rest = np.setdiff1d(np.arange(faces.person.size), rows)
        grade = rng.integers(0, len(faces.grades), rest.size) if self.mixed else np.zeros(rest.size, int)
        probes = faces.mu[rest, grade], faces.kappa[rest, grade], faces.person[rest]
        return (gallery.mu, gallery.kappa, gallery.groups), probes


def scores_of(
    probes: Side, gallery: Side, evidence: str, calibration: Calibration, radius: float
) -> dict[str, Array]:
    """A matrix (probes, gallery) for every score."""
    mu, kappa, gallery_mu, gallery_kappa = (
        torch.from_numpy(np.ascontiguousarray(array)) for side in (probes, gallery) for array in side[:2]
    )
    mls = mutual_likelihood_matrix(mu, kappa, gallery_mu, gallery_kappa, radius).numpy()
    cosine = cosine_matrix(mu, gallery_mu).numpy()
    values = np.empty_like(mls)
    for start in range(0, len(mls), _ROWS):
        rows = slice(start, start + _ROWS)
        kappas = np.broadcast_arrays(gallery[1][None], probes[1][rows, None])
        values[rows] = calibration.evidence(evidence, mls[rows], cosine[rows], (kappas[0], kappas[1]))
    matrices = {"evidence": values, "mls": mls, "cosine": cosine}
    return {name: matrix.astype(np.float64) for name, matrix in matrices.items()}


def normalised(scores: Array, among: Array) -> dict[str, Array]:
    """Scores (p, g) normalised in several ways.

    - z: minus the mean of the probe's other gallery scores, divided by their standard deviation (Z-norm).
    - s: mean of z and the same with the scores of the template against the other templates (S-norm).
    - centred: minus half the sum of both means, after subtracting the average template mean.
    - top: minus a quarter of the mean of the probe's next 10 scores after the highest.
    - tail: excess over the probe's 12th score, divided by the mean excess of its 2nd to 11th: an exponential
      tail for each probe.

    Args:
        scores: (p, g) of the probes.
        among: (g, g) of the templates against each other.
    """
    count = scores.shape[1] - 1
    mean = (scores.sum(1, keepdims=True) - scores) / count
    spread = np.sqrt(np.maximum(((scores**2).sum(1, keepdims=True) - scores**2) / count - mean**2, 1e-9))
    off_diagonal = ~np.eye(len(among), dtype=bool)
    template_mean = among.mean(1, where=off_diagonal)
    template_spread = among.std(1, where=off_diagonal)
    z = (scores - mean) / spread
    runners_up = -np.sort(np.partition(-scores, _TOP + 1, axis=1)[:, : _TOP + 2], axis=1)[:, 1:]
    base = runners_up[:, -1:]
    return {
        "as it is": scores,
        "z": z,
        "s": (z + (scores - template_mean) / template_spread) / 2,
        "centred": scores - (mean + template_mean - template_mean.mean()) / 2,
        "top": scores - runners_up[:, :-1].mean(1, keepdims=True) / 4,
        "tail": (scores - base) / np.maximum((runners_up[:, :-1] - base).mean(1, keepdims=True), 1e-3),
    }


@dataclass(frozen=True)
class Gain:
    """Result of one normalisation of one score in one world.

    Attributes:
        world, score, way: the world, the score and the normalisation.
        gallery, probes: sizes in the last draw.
        fnir: false negative identification rate at `FPIR`, mean over the galleries drawn.
        more: difference of ``fnir`` from that of the unnormalised score.
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
    """Results of a search.

    Attributes:
        best: (p,) highest score of each probe.
        right: (p,) whether the highest score is that of the mate.
        mated: (p,) whether the person is enrolled.
        person: (p,) index of the person.
    """

    best: Array
    right: NDArray[np.bool_]
    mated: NDArray[np.bool_]
    person: NDArray[np.int64]

    def fnir(self, weight: Array) -> float:
        """False negative identification rate at `FPIR`, with weights per person."""
        weights = weight[self.person]
        non_mated = ~self.mated
        order = np.argsort(-self.best[non_mated], kind="stable")
        total = np.cumsum(weights[non_mated][order])
        # The first non-mated probe that is no longer allowed by FPIR; 1e-12 absorbs rounding of the sum.
        first = min(int(np.searchsorted(total, FPIR * total[-1] * (1 + 1e-12), side="right")), order.size - 1)
        identified = self.right & (self.best > self.best[non_mated][order][first])
        return 1 - float(weights[identified].sum() / weights[self.mated].sum())


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
    """FNIR at FPIR 0.01 with unnormalised scores, and with scores normalised on the gallery.

    The people are the second half of TEST, which was not used to calibrate the shipped model, and those of
    the other sets. Caches are shared with `studies.transfer`.

    Args:
        model: calibrated.
        test: aligned crops, several of each person.
        others: further sets by name.
        folder: of the caches.
        galleries: number of random galleries.
        draws: bootstrap samples of people, for the intervals.
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
        cache = build_cache(
            model.backbone, model.head, sample_images(source), [View()], folder / f"{name}-cache"
        )
        log_kappa = cache.log_kappa(model.head)
        faces = GradedFaces(
            ["none"], centred(model, cache.mu)[:, None], np.exp(log_kappa)[:, None],
            cache.source.labels, cache.source.keys, model.radius,
        )  # fmt: skip
        sets[name] = faces.only(cache.valid)
        worlds.append(World(name, 1, False))
    gains: list[Gain] = []
    with progress("galleries", len(worlds) * galleries) as advance:
        for world in worlds:
            faces = sets[world.name]
            searched: dict[tuple[str, str], list[_Searched]] = {}
            for draw in range(galleries):
                gallery, probes = world.draw(faces, seed + draw)
                for key, result in _search(world, gallery, probes, calibration, model.radius).items():
                    searched.setdefault(key, []).append(result)
                advance()
            n_labels = int(faces.person.max()) + 1
            people = np.unique(faces.person)
            odds = np.bincount(people, minlength=n_labels) / people.size
            weights = np.random.default_rng(seed).multinomial(people.size, odds, draws)
            sizes = len(gallery[1]), len(probes[1])
            gains += _gains(world, sizes, searched, np.vstack([np.ones(n_labels), weights]))
    return gains


def _search(
    world: World, gallery: Side, probes: Side, calibration: Calibration, radius: float
) -> dict[tuple[str, str], _Searched]:
    """Search results by score and normalisation."""
    kinds = (TEMPLATE_EVIDENCE, TEMPLATES_EVIDENCE) if world.images > 1 else (PAIR_EVIDENCE,) * 2
    scores, among = (
        scores_of(side, gallery, kind, calibration, radius) for side, kind in zip((probes, gallery), kinds)
    )
    mated = np.isin(probes[2], gallery[2])
    results = {}
    for score in SCORES:
        for way, values in normalised(scores[score], among[score]).items():
            right = gallery[2][values.argmax(1)] == probes[2]
            results[score, way] = _Searched(values.max(1), right, mated, probes[2])
    return results


def _gains(
    world: World, sizes: tuple[int, int], searched: Mapping[tuple[str, str], list[_Searched]], weights: Array
) -> list[Gain]:
    """Rates and differences. ``weights`` is (draws + 1, people); its first row is all ones."""
    rates = {
        key: np.mean([[result.fnir(weight) for weight in weights] for result in results], axis=0)
        for key, results in searched.items()
    }
    gains = []
    for (score, way), values in rates.items():
        more = values - rates[score, "as it is"]
        low, high = np.quantile(more[1:], [0.025, 0.975])
        ends = float(low), float(high)
        gains.append(Gain(world, score, way, *sizes, float(values[0]), float(more[0]), ends))
    return gains


def cohort_tables(gains: list[Gain]) -> list[Table]:
    """One table per world."""
    tables = []
    for world in dict.fromkeys(gain.world for gain in gains):
        of_world = [gain for gain in gains if gain.world == world]
        ways = list(dict.fromkeys(gain.way for gain in of_world))
        rows = []
        for score in SCORES:
            by_way = {gain.way: gain for gain in of_world if gain.score == score}
            rows.append(
                [
                    score,
                    f"{by_way[ways[0]].fnir:.4f}",
                    *(
                        f"{by_way[way].more:+.4f} [{by_way[way].ends[0]:+.4f}, {by_way[way].ends[1]:+.4f}]"
                        for way in ways[1:]
                    ),
                ]
            )
        template = f"{world.images} image{'s' if world.images > 1 else ''} per template"
        grades = "of any grade" if world.mixed else "undamaged"
        sizes = f"{of_world[0].gallery} enrolled, {of_world[0].probes:,} probes"
        title = f"{world.name}, {template}, probes {grades}: {sizes}"
        tables.append(Table(title, ["score", f"FNIR at FPIR {FPIR:g}", *ways[1:]], rows))
    return tables
