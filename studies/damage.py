"""Which kinds of damage a head must be trained on, and its kappa on images that are not faces."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.common.progress import console
from spherecf.data import RECIPES, Degradation, DegradationRecipe, ImageSource, View, split_identities
from spherecf.data.damage import KINDS
from spherecf.errors import InputError
from spherecf.losses import sphere_confidence_loss_from_cosine
from spherecf.models import ConfidenceHead, FrozenBackbone
from spherecf.report import Table
from spherecf.training import (
    CachedFeatures,
    ConfidenceConfig,
    FeatureCache,
    Targets,
    build_cache,
    fit_head,
    new_head,
    prototype_targets,
)
from spherecf.vmf import inverse_mean_resultant_length, mean_resultant_length
from studies.graded import GradedFaces, conditions
from studies.shipped import halves

Picture = NDArray[np.uint8]
SIZE = 112  # of an aligned crop
IMAGES_EACH = 3  # images of each person
_BATCH = 32
_NON_FACES = 200  # images of each kind that are not faces
_FACE_QUANTILE = 0.05  # quantile of the kappas of faces that other images are compared with
_MARGIN = 0.02  # the ideal kappa is computed from cosines clipped to this distance from 0 and 1


def single(kind: str) -> View:
    """One kind of damage only, of any strength."""
    return View(Degradation(DegradationRecipe(f"only_{kind}", 1, {kind: 1.0}, (1, 1), (0.0, 1.0), "single")))


def sample_people(source: ImageSource, people: int, seed: int = 0) -> ImageSource:
    """`IMAGES_EACH` images of this number of people, drawn at random.

    Raises:
        InputError: too few people have enough images.
    """
    counts = np.bincount(source.labels[source.labels >= 0])
    eligible = np.flatnonzero(counts >= IMAGES_EACH)
    if len(eligible) < people:
        raise InputError(
            f"{source.name}: {len(eligible)} people have {IMAGES_EACH} images or more, "
            f"{people} were requested"
        )
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.permutation(eligible)[:people])
    rows = [
        rng.permutation(np.flatnonzero(source.labels == person))[:IMAGES_EACH] for person in drawn.tolist()
    ]
    return source.subset(np.sort(np.concatenate(rows)))


@dataclass(frozen=True)
class LeftOut:
    """Results for one kind of damage, on people who were not used for training.

    Attributes:
        kind: of damage.
        cosine: mean cosine between the damaged image and the person's prototype.
        expected: mean cosine expected by each head, A_d(kappa), by its name.
        loss: mean sphere confidence loss, by the head's name.
    """

    kind: str
    cosine: float
    expected: dict[str, float]
    loss: dict[str, float]


class Heads:
    """Trains heads on some kinds of damage, one kind per view, and tests them on other people.

    Args:
        backbone: the frozen recogniser.
        source: aligned crops of known people.
        folder: of the cache.
        config: of the heads.
        people: number of people; two thirds are for training, one third for testing.
    """

    def __init__(
        self,
        backbone: FrozenBackbone,
        source: ImageSource,
        folder: Path,
        config: ConfidenceConfig,
        people: int,
    ) -> None:
        views = [View(), *map(single, KINDS)]
        self._backbone, self._config = backbone, config
        sample = sample_people(source, people)
        self._cache: FeatureCache = build_cache(
            backbone, new_head(backbone, config), sample, views, folder, batch_size=_BATCH
        )
        self._targets = prototype_targets(self._cache)
        self._view = self._targets.rows % len(views)
        train, _ = split_identities(self._targets.identities, 1 / 3, config.seed)
        self._train = np.isin(np.arange(len(self._view)), train)

    def fit(self, kinds: Sequence[str]) -> ConfidenceHead:
        """Train a head on clean images and these kinds of damage.

        With fewer kinds there are more epochs, so that all heads take about the same number of steps.
        """
        views = [0, *(1 + list(KINDS).index(kind) for kind in kinds)]
        features = CachedFeatures(self._cache, self._select(self._train & np.isin(self._view, views)))
        fit = self._config.fit
        epochs = round(fit.epochs * (1 + len(KINDS)) / len(views))
        config = replace(self._config, fit=replace(fit, epochs=epochs))
        return fit_head(new_head(self._backbone, config), features, config).head

    def test(self, kind: str, heads: Mapping[str, ConfidenceHead]) -> LeftOut:
        """Test the heads on images of the test people with this damage; "" for none."""
        view = 1 + list(KINDS).index(kind) if kind else 0
        targets = self._select(~self._train & (self._view == view))
        cosine = torch.from_numpy(targets.cosine).double()  # (n,)
        expected, loss = {}, {}
        for name, head in heads.items():
            with torch.no_grad():
                kappa = head.eval()(self._cache.summaries(targets.rows)).double().exp()  # (n,)
            expected[name] = float(mean_resultant_length(kappa, self._backbone.dim).mean())
            loss[name] = float(sphere_confidence_loss_from_cosine(cosine, kappa, self._backbone.dim))
        return LeftOut(kind or "none", float(cosine.mean()), expected, loss)

    def _select(self, entries: NDArray[np.bool_]) -> Targets:
        targets = self._targets
        return replace(
            targets, rows=targets.rows[entries], cosine=targets.cosine[entries],
            identities=targets.identities[entries], singletons=[],
        )  # fmt: skip


FEW, WITHOUT, ALL = "train's kinds", "all but this", "all kinds"
WIDE, PERFECT = "wide's kinds", "perfect"


def leave_one_out(heads: Heads) -> tuple[list[LeftOut], dict[str, ConfidenceHead]]:
    """Test every kind of damage with a head trained without it; also return the heads of both recipes."""
    fixed = {FEW: heads.fit(list(RECIPES["train"].kinds)), ALL: heads.fit(list(KINDS))}
    results = [heads.test("", {FEW: fixed[FEW], WITHOUT: fixed[ALL], ALL: fixed[ALL]})]
    for kind in KINDS:
        console.print(f"without {kind}", highlight=False)
        without = heads.fit([other for other in KINDS if other != kind])
        results.append(heads.test(kind, {FEW: fixed[FEW], WITHOUT: without, ALL: fixed[ALL]}))
    return results, {FEW: fixed[FEW], WIDE: heads.fit(list(RECIPES["wide"].kinds))}


@dataclass(frozen=True)
class Reached:
    """TMR of the mutual likelihood score with the kappa of one head under one condition.

    Attributes:
        condition: grades of the two sides.
        kappa: name of the head, or `PERFECT`.
        tmr: at the false match rates `RATES`.
    """

    condition: str
    kappa: str
    tmr: list[float]


RATES = (1e-2, 1e-3)
_VIEWS = {"none": View(), "cross": View(Degradation("cross")), "beyond": View(Degradation("beyond"))}


def reach(
    backbone: FrozenBackbone, heads: Mapping[str, ConfidenceHead], source: ImageSource, folder: Path
) -> list[Reached]:
    """Score all pairs of these images with the kappa of every head, and with an ideal kappa.

    The ideal kappa is the concentration whose expected cosine equals the true cosine between the image and
    the mean of the person's other clean images. No head can know it.
    """
    cache = build_cache(
        backbone, next(iter(heads.values())), source, list(_VIEWS.values()), folder, batch_size=_BATCH
    )
    shape = len(source), len(_VIEWS)
    targets = prototype_targets(cache)
    cosine = np.zeros(len(cache))
    cosine[targets.rows] = targets.cosine
    ideal = inverse_mean_resultant_length(torch.from_numpy(cosine).clamp(_MARGIN, 1 - _MARGIN), backbone.dim)
    kappas = {name: np.exp(cache.log_kappa(head)) for name, head in heads.items()} | {PERFECT: ideal.numpy()}
    usable = np.asarray(np.isin(np.arange(len(cache)), targets.rows).reshape(shape).all(1))
    results = []
    for name, kappa in kappas.items():
        faces = GradedFaces(
            list(_VIEWS), cache.mu.reshape(*shape, -1), kappa.astype(np.float32).reshape(shape),
            source.labels, source.keys, ConfidenceConfig().loss.radius,
        ).only(usable)  # fmt: skip
        for condition in conditions(list(_VIEWS)):
            pairs = faces.pairs(condition)
            score = pairs.scores["mls"]
            accept = [np.quantile(score[~pairs.mated], 1 - rate) for rate in RATES]
            tmr = [float((score[pairs.mated] > threshold).mean()) for threshold in accept]
            results.append(Reached(condition.name, name, tmr))
    return results


def textures(count: int, rng: np.random.Generator) -> list[Picture]:
    """Shaded Voronoi cells of random points; different from the patterns used in training."""
    y, x = np.mgrid[:SIZE, :SIZE]
    images = []
    for _ in range(count):
        points = rng.uniform(0, SIZE, (int(rng.integers(4, 60)), 2))
        distance = np.hypot(x[..., None] - points[:, 0], y[..., None] - points[:, 1])  # (h, w, points)
        shade = np.clip(distance.min(2) / rng.uniform(5, 25), 0.2, 1)
        colours = rng.integers(0, 256, (len(points), 3))
        images.append((colours[distance.argmin(2)] * shade[..., None]).astype(np.uint8))
    return images


def cartoons(count: int, rng: np.random.Generator) -> list[Picture]:
    """Drawn heads: an oval with eyes, brows, nose and mouth in the positions of an aligned face."""
    images = []
    for _ in range(count):
        canvas = np.full((SIZE, SIZE, 3), rng.integers(120, 256, 3), np.uint8)
        skin, ink = rng.integers(120, 256, 3).tolist(), rng.integers(0, 90, 3).tolist()
        wide, thick = int(rng.integers(36, 52)), int(rng.integers(1, 4))
        cv2.ellipse(canvas, (56, 60), (wide, 54), 0, 0, 360, skin, cv2.FILLED)
        cv2.ellipse(canvas, (56, 60), (wide, 54), 0, 0, 360, ink, thick)
        size = int(rng.integers(4, 10))
        for side in (-1, 1):
            eye = (56 + 18 * side, 52)
            cv2.ellipse(canvas, eye, (size + 2, size), 0, 0, 360, (255, 255, 255), cv2.FILLED)
            cv2.circle(canvas, eye, max(2, size // 2), ink, cv2.FILLED)
            cv2.line(canvas, (eye[0] - 8, 38), (eye[0] + 8, 38 - int(rng.integers(-3, 6)) * side), ink, thick)
        cv2.line(canvas, (56, 56), (56 + int(rng.integers(-5, 6)), 72), ink, thick)
        bend = int(rng.integers(3, 14))
        cv2.ellipse(canvas, (56, 88), (18, bend), 0, 0, 180, ink, thick)
        images.append(canvas)
    return images


def halves_of(faces: Sequence[Picture], rng: np.random.Generator) -> list[Picture]:
    """One half of each face; the other half is grey."""
    images = []
    for face in faces:
        half = face.copy()
        side, middle = int(rng.integers(4)), SIZE // 2
        half[((slice(middle), slice(None)), (slice(middle, None), slice(None)),
              (slice(None), slice(middle)), (slice(None), slice(middle, None)))[side]] = 128  # fmt: skip
        images.append(half)
    return images


def upside_down(faces: Sequence[Picture], _: np.random.Generator) -> list[Picture]:
    """Faces flipped vertically."""
    return [np.ascontiguousarray(face[::-1]) for face in faces]


def patches(faces: Sequence[Picture], rng: np.random.Generator) -> list[Picture]:
    """A random square of a quarter of each face's width, enlarged: skin, hair, an eye."""
    images = []
    for face in faces:
        top, left = rng.integers(0, SIZE - SIZE // 4, 2)
        small = face[top : top + SIZE // 4, left : left + SIZE // 4]
        images.append(np.asarray(cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC), np.uint8))
    return images


def squares(source: ImageSource, count: int, rng: np.random.Generator) -> list[Picture]:
    """Random square crops of the images, from 56 pixels to the shorter side of the image."""
    images = []
    pictures = [source.image(index) for index in range(len(source))]
    for number in range(count):
        picture = pictures[number % len(pictures)]
        shorter = min(picture.shape[:2])
        side = int(rng.integers(min(SIZE // 2, shorter), shorter + 1))
        top, left = (int(rng.integers(0, length - side + 1)) for length in picture.shape[:2])
        part = picture[top : top + side, left : left + side]
        images.append(np.asarray(cv2.resize(part, (SIZE, SIZE), interpolation=cv2.INTER_AREA), np.uint8))
    return images


_FROM_FACES: dict[str, Callable[[Sequence[Picture], np.random.Generator], list[Picture]]] = {
    "half faces": halves_of,
    "faces upside down": upside_down,
    "patches of faces": patches,
}


def sample_calibration_people(source: ImageSource, people: int) -> ImageSource:
    """Images of some of the shipped model's calibration people; its evaluation people are not used."""
    first, _ = halves(source.labels)
    drawn = np.random.default_rng(0).permutation(np.unique(source.labels[first]))[:people]
    return source.subset(np.flatnonzero(np.isin(source.labels, drawn)))


def non_faces(
    faces: Sequence[Picture], pictures: ImageSource | None, count: int, seed: int = 0
) -> dict[str, list[Picture]]:
    """By name, kinds of images in which nobody, or hardly anybody, can be recognised."""
    rng = np.random.default_rng(seed)
    images = {"textures": textures(count, rng), "cartoons": cartoons(count, rng)}
    if pictures is not None:
        images["other pictures"] = squares(pictures, count, rng)
    return images | {name: make(faces[:count], rng) for name, make in _FROM_FACES.items()}


@dataclass(frozen=True)
class KappaSummary:
    """Kappa of one head on one kind of images.

    Attributes:
        pictures: kind of images.
        head: name of the head.
        kappa: percentiles 5, 50, 95.
        above: share of the images whose kappa is above the 5 % quantile of faces.
    """

    pictures: str
    head: str
    kappa: list[float]
    above: float


def summarise_kappas(
    backbone: FrozenBackbone,
    heads: Mapping[str, ConfidenceHead],
    faces: Sequence[Picture],
    others: Mapping[str, Sequence[Picture]],
) -> list[KappaSummary]:
    """Kappa of faces, and of all other images, by every head."""
    summaries = []
    kappas = {
        name: _kappas(backbone, heads, pictures) for name, pictures in {"faces": faces, **others}.items()
    }
    for name, by_head in kappas.items():
        for head, kappa in by_head.items():
            threshold = np.quantile(kappas["faces"][head], _FACE_QUANTILE)
            percentiles = np.percentile(kappa, (5, 50, 95)).tolist()
            summaries.append(KappaSummary(name, head, percentiles, float((kappa > threshold).mean())))
    return summaries


@torch.no_grad()
def _kappas(
    backbone: FrozenBackbone, heads: Mapping[str, ConfidenceHead], pictures: Sequence[Picture]
) -> dict[str, NDArray[Any]]:
    """(n,) kappas of these images, by head."""
    kappas: dict[str, list[NDArray[Any]]] = {name: [] for name in heads}
    size = backbone.preprocessing.size
    for start in range(0, len(pictures), _BATCH):
        batch = [cv2.resize(picture, size[::-1]) for picture in pictures[start : start + _BATCH]]
        output = backbone.forward(np.stack(batch))
        for name, head in heads.items():
            kappas[name].append(head.eval().log_kappa(output.features, output.embedding).exp().numpy())
    return {name: np.concatenate(parts) for name, parts in kappas.items()}


def study_damage(
    backbone: FrozenBackbone,
    train: ImageSource,
    test: ImageSource,
    folder: Path,
    config: ConfidenceConfig,
    *,
    people: tuple[int, int] = (100, 60),
    heads: Mapping[str, ConfidenceHead] | None = None,
    pictures: ImageSource | None = None,
) -> list[Table]:
    """Three tables: each kind of damage left out, TMR with each kappa, and kappa on images without a face.

    Args:
        backbone: the frozen recogniser.
        train: aligned crops of known people, for training and testing.
        test: aligned crops of other people, for pairs and as the faces to compare with.
        folder: of the caches.
        config: of the heads.
        people: number of people of ``train``, a third of whom are for testing, and of ``test``.
        heads: further heads for the last two tables, by name.
        pictures: images without faces, of any size.

    Raises:
        InputError: ``train`` has too few people with three images.
    """
    kinds, fixed = leave_one_out(Heads(backbone, train, folder / "kinds", config, people[0]))
    all_heads = {**fixed, **(heads or {})}
    sample = sample_calibration_people(test, people[1])
    faces = [np.asarray(cv2.resize(sample.image(row), (SIZE, SIZE)), np.uint8) for row in range(len(sample))]
    return damage_tables(
        kinds,
        reach(backbone, all_heads, sample, folder / "pairs"),
        summarise_kappas(backbone, all_heads, faces, non_faces(faces, pictures, _NON_FACES)),
    )


def damage_tables(
    kinds: Sequence[LeftOut], reached: Sequence[Reached], kappas: Sequence[KappaSummary]
) -> list[Table]:
    """All results as tables."""
    names = list(kinds[0].loss)
    heads = list(dict.fromkeys(result.kappa for result in reached))
    return [
        Table(
            "Each kind of damage, by heads trained with and without it",
            ["kind", "true cosine", *(f"expected: {name}" for name in names),
             *(f"loss: {name}" for name in names if name != ALL)],
            [
                [kind.kind, f"{kind.cosine:.3f}", *(f"{kind.expected[name]:.3f}" for name in names),
                 *(f"{kind.loss[name] - kind.loss[ALL]:+.2f}" for name in names if name != ALL)]
                for kind in kinds
            ],
            "Means over the images of people who were not used for training. Loss in nats above that of the "
            "head trained on all kinds.",
        ),
        Table(
            "TMR at FMR " + " / ".join(f"{rate:g}" for rate in RATES) + " with each kappa",
            ["images", *heads],
            [
                [condition, *(" / ".join(f"{value:.3f}" for value in result.tmr)
                              for result in reached if result.condition == condition)]
                for condition in dict.fromkeys(result.condition for result in reached)
            ],
            "Mutual likelihood score, all pairs. perfect: the concentration whose expected cosine equals the "
            "true cosine between the image and the person's other images, which no head can know.",
        ),
        Table(
            "Images that are not faces",
            ["images", "head", "kappa 5 / 50 / 95 %", "above the lowest 5 % of faces"],
            [
                [row.pictures, row.head, " / ".join(f"{value:.0f}" for value in row.kappa),
                 f"{100 * row.above:.1f} %"]
                for row in kappas
            ],
        ),
    ]  # fmt: skip
