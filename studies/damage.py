"""Which damage a head must have seen, and what it says of pictures that are no faces."""

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
LEAST = 3  # images of each person
_BATCH = 32
_SHOWN = 200  # of each kind of picture that is no face
_FACES_BELOW = 0.05
_UNLIKE = 0.02  # cosine that a perfect kappa takes for no likeness at all, and for a perfect one


def single(kind: str) -> View:
    """One kind alone, of any strength."""
    return View(Degradation(DegradationRecipe(f"only_{kind}", 1, {kind: 1.0}, (1, 1), (0.0, 1.0), "single")))


def chosen(source: ImageSource, people: int, seed: int = 0) -> ImageSource:
    """`LEAST` images of so many people.

    Raises:
        InputError: there are not so many people with as many images.
    """
    counts = np.bincount(source.labels[source.labels >= 0])
    several = np.flatnonzero(counts >= LEAST)
    if len(several) < people:
        raise InputError(
            f"{source.name}: {len(several)} people have {LEAST} images or more, {people} were asked for"
        )
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.permutation(several)[:people])
    rows = [rng.permutation(np.flatnonzero(source.labels == one))[:LEAST] for one in drawn.tolist()]
    return source.subset(np.sort(np.concatenate(rows)))


@dataclass(frozen=True)
class LeftOut:
    """One kind, on people and pictures that no head has seen.

    Attributes:
        kind: of damage.
        cosine: mean cosine between the damaged picture and the person.
        expected: the mean cosine that each head expects, by its name.
        loss: mean sphere confidence loss, by the head's name.
    """

    kind: str
    cosine: float
    expected: dict[str, float]
    loss: dict[str, float]


class Heads:
    """Heads learnt from some kinds of damage, each alone in its view, tested on other people.

    Args:
        backbone: the frozen recogniser.
        source: aligned crops of known people.
        folder: gets the cache.
        config: of the heads.
        people: to learn from and, a third of them, to test on.
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
        few = chosen(source, people)
        self._cache: FeatureCache = build_cache(
            backbone, new_head(backbone, config), few, views, folder, batch_size=_BATCH
        )
        self._targets = prototype_targets(self._cache)
        self._view = self._targets.rows % len(views)
        train, _ = split_identities(self._targets.identities, 1 / 3, config.seed)
        self._train = np.isin(np.arange(len(self._view)), train)

    def fit(self, kinds: Sequence[str]) -> ConfidenceHead:
        """Learn from clean pictures and these kinds: the fewer there are, the more often each is seen."""
        shown = [0, *(1 + list(KINDS).index(kind) for kind in kinds)]
        features = CachedFeatures(self._cache, self._some(self._train & np.isin(self._view, shown)))
        fit = self._config.fit
        epochs = round(fit.epochs * (1 + len(KINDS)) / len(shown))
        config = replace(self._config, fit=replace(fit, epochs=epochs))
        return fit_head(new_head(self._backbone, config), features, config).head

    def test(self, kind: str, heads: Mapping[str, ConfidenceHead]) -> LeftOut:
        """Heads on other people's pictures with this damage; "" for none."""
        view = 1 + list(KINDS).index(kind) if kind else 0
        own = self._some(~self._train & (self._view == view))
        cosine = torch.from_numpy(own.cosine).double()  # (n,)
        expected, loss = {}, {}
        for name, head in heads.items():
            with torch.no_grad():
                kappa = head.eval()(self._cache.summaries(own.rows)).double().exp()  # (n,)
            expected[name] = float(mean_resultant_length(kappa, self._backbone.dim).mean())
            loss[name] = float(sphere_confidence_loss_from_cosine(cosine, kappa, self._backbone.dim))
        return LeftOut(kind or "none", float(cosine.mean()), expected, loss)

    def _some(self, entries: NDArray[np.bool_]) -> Targets:
        found = self._targets
        return replace(
            found, rows=found.rows[entries], cosine=found.cosine[entries],
            identities=found.identities[entries], singletons=[],
        )  # fmt: skip


FEW, WITHOUT, ALL = "train's kinds", "all but this", "all kinds"
WIDE, PERFECT = "wide's kinds", "perfect"


def leave_one_out(heads: Heads) -> tuple[list[LeftOut], dict[str, ConfidenceHead]]:
    """Every kind by a head that never saw it; and the heads of both training recipes' kinds."""
    fixed = {FEW: heads.fit(list(RECIPES["train"].kinds)), ALL: heads.fit(list(KINDS))}
    found = [heads.test("", {FEW: fixed[FEW], WITHOUT: fixed[ALL], ALL: fixed[ALL]})]
    for kind in KINDS:
        console.print(f"without {kind}", highlight=False)
        without = heads.fit([other for other in KINDS if other != kind])
        found.append(heads.test(kind, {FEW: fixed[FEW], WITHOUT: without, ALL: fixed[ALL]}))
    return found, {FEW: fixed[FEW], WIDE: heads.fit(list(RECIPES["wide"].kinds))}


@dataclass(frozen=True)
class Reached:
    """What one kappa is worth in the mutual likelihood score under one condition.

    Attributes:
        condition: which pictures.
        kappa: whose: a head's name, or `PERFECT`.
        tmr: at the rates `RATES` of false matches.
    """

    condition: str
    kappa: str
    tmr: list[float]


RATES = (1e-2, 1e-3)
_SHOWN_AS = {"none": View(), "cross": View(Degradation("cross")), "beyond": View(Degradation("beyond"))}


def reach(
    backbone: FrozenBackbone, heads: Mapping[str, ConfidenceHead], source: ImageSource, folder: Path
) -> list[Reached]:
    """All pairs of these pictures by every head's kappa, and by the best that any head could say.

    A perfect kappa knows the cosine between the picture and the mean of the person's other clean ones,
    and is the concentration with this expected cosine.
    """
    cache = build_cache(
        backbone, next(iter(heads.values())), source, list(_SHOWN_AS.values()), folder, batch_size=_BATCH
    )
    shape = len(source), len(_SHOWN_AS)
    targets = prototype_targets(cache)
    known = np.zeros(len(cache))
    known[targets.rows] = targets.cosine
    best = inverse_mean_resultant_length(torch.from_numpy(known).clamp(_UNLIKE, 1 - _UNLIKE), backbone.dim)
    kappas = {name: np.exp(cache.log_kappa(head)) for name, head in heads.items()} | {PERFECT: best.numpy()}
    usable = np.asarray(np.isin(np.arange(len(cache)), targets.rows).reshape(shape).all(1))
    found = []
    for name, kappa in kappas.items():
        faces = GradedFaces(
            list(_SHOWN_AS), cache.mu.reshape(*shape, -1), kappa.astype(np.float32).reshape(shape),
            source.labels, source.keys, ConfidenceConfig().loss.radius,
        ).only(usable)  # fmt: skip
        for condition in conditions(list(_SHOWN_AS)):
            pairs = faces.pairs(condition)
            score = pairs.scores["mls"]
            accept = [np.quantile(score[~pairs.mated], 1 - rate) for rate in RATES]
            tmr = [float((score[pairs.mated] > threshold).mean()) for threshold in accept]
            found.append(Reached(condition.name, name, tmr))
    return found


def textures(count: int, rng: np.random.Generator) -> list[Picture]:
    """Cells around random points, shaded; not the patterns that training has."""
    y, x = np.mgrid[:SIZE, :SIZE]
    found = []
    for _ in range(count):
        points = rng.uniform(0, SIZE, (int(rng.integers(4, 60)), 2))
        distance = np.hypot(x[..., None] - points[:, 0], y[..., None] - points[:, 1])  # (h, w, points)
        shade = np.clip(distance.min(2) / rng.uniform(5, 25), 0.2, 1)
        colours = rng.integers(0, 256, (len(points), 3))
        found.append((colours[distance.argmin(2)] * shade[..., None]).astype(np.uint8))
    return found


def cartoons(count: int, rng: np.random.Generator) -> list[Picture]:
    """Drawn heads: an oval, two eyes, brows, a nose, a mouth, where a face's are."""
    found = []
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
        found.append(canvas)
    return found


def halves_of(faces: Sequence[Picture], rng: np.random.Generator) -> list[Picture]:
    """One half of each face, the other one grey."""
    found = []
    for face in faces:
        half = face.copy()
        side, at = int(rng.integers(4)), SIZE // 2
        half[((slice(at), slice(None)), (slice(at, None), slice(None)),
              (slice(None), slice(at)), (slice(None), slice(at, None)))[side]] = 128  # fmt: skip
        found.append(half)
    return found


def upside_down(faces: Sequence[Picture], _: np.random.Generator) -> list[Picture]:
    """Standing on their heads."""
    return [np.ascontiguousarray(face[::-1]) for face in faces]


def patches(faces: Sequence[Picture], rng: np.random.Generator) -> list[Picture]:
    """A quarter of each face's width: skin, hair, an eye."""
    found = []
    for face in faces:
        top, left = rng.integers(0, SIZE - SIZE // 4, 2)
        small = face[top : top + SIZE // 4, left : left + SIZE // 4]
        found.append(np.asarray(cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC), np.uint8))
    return found


def squares(source: ImageSource, count: int, rng: np.random.Generator) -> list[Picture]:
    """Square parts of any pictures, from 56 pixels wide to the picture's shorter side."""
    found = []
    pictures = [source.image(index) for index in range(len(source))]
    for number in range(count):
        picture = pictures[number % len(pictures)]
        shorter = min(picture.shape[:2])
        side = int(rng.integers(min(SIZE // 2, shorter), shorter + 1))
        top, left = (int(rng.integers(0, length - side + 1)) for length in picture.shape[:2])
        part = picture[top : top + side, left : left + side]
        found.append(np.asarray(cv2.resize(part, (SIZE, SIZE), interpolation=cv2.INTER_AREA), np.uint8))
    return found


_FROM_FACES: dict[str, Callable[[Sequence[Picture], np.random.Generator], list[Picture]]] = {
    "half faces": halves_of,
    "faces upside down": upside_down,
    "patches of faces": patches,
}


def calibrating(source: ImageSource, people: int) -> ImageSource:
    """Pictures of some of those whom the shipped model is calibrated on: those of its check stay unseen."""
    first, _ = halves(source.labels)
    drawn = np.random.default_rng(0).permutation(np.unique(source.labels[first]))[:people]
    return source.subset(np.flatnonzero(np.isin(source.labels, drawn)))


def no_faces(
    faces: Sequence[Picture], pictures: ImageSource | None, count: int, seed: int = 0
) -> dict[str, list[Picture]]:
    """Kinds of pictures in which no one can be recognised, or hardly; by name."""
    rng = np.random.default_rng(seed)
    found = {"textures": textures(count, rng), "cartoons": cartoons(count, rng)}
    if pictures is not None:
        found["other pictures"] = squares(pictures, count, rng)
    return found | {name: make(faces[:count], rng) for name, make in _FROM_FACES.items()}


@dataclass(frozen=True)
class Doubt:
    """Kappa of one kind of pictures by one head.

    Attributes:
        pictures: which.
        head: name.
        kappa: percentiles 5, 50, 95.
        above: share whose kappa is above the 5 % quantile of faces.
    """

    pictures: str
    head: str
    kappa: list[float]
    above: float


def doubts(
    backbone: FrozenBackbone,
    heads: Mapping[str, ConfidenceHead],
    faces: Sequence[Picture],
    others: Mapping[str, Sequence[Picture]],
) -> list[Doubt]:
    """Kappa of faces and of others by every head."""
    shown = {"faces": faces, **others}
    found = []
    kappas = {name: _kappas(backbone, heads, pictures) for name, pictures in shown.items()}
    for name, by_head in kappas.items():
        for head, kappa in by_head.items():
            least = np.quantile(kappas["faces"][head], _FACES_BELOW)
            percentiles = np.percentile(kappa, (5, 50, 95)).tolist()
            found.append(Doubt(name, head, percentiles, float((kappa > least).mean())))
    return found


@torch.no_grad()
def _kappas(
    backbone: FrozenBackbone, heads: Mapping[str, ConfidenceHead], pictures: Sequence[Picture]
) -> dict[str, NDArray[Any]]:
    found: dict[str, list[NDArray[Any]]] = {name: [] for name in heads}
    size = backbone.preprocessing.size
    for start in range(0, len(pictures), _BATCH):
        batch = [cv2.resize(picture, size[::-1]) for picture in pictures[start : start + _BATCH]]
        output = backbone.forward(np.stack(batch))
        for name, head in heads.items():
            found[name].append(head.eval().log_kappa(output.features, output.embedding).exp().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


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
    """Three tables: every kind left out, what kappa is worth in pairs, and what is no face.

    Args:
        backbone: the frozen recogniser.
        train: aligned crops of known people, to learn from and to test on.
        test: aligned crops of other people, for pairs and as the faces to compare with.
        folder: of the caches.
        config: of the heads.
        people: of ``train``, a third of whom test, and of ``test``.
        heads: further ones for the last two tables, by name.
        pictures: that are no faces, of any size.

    Raises:
        InputError: ``train`` has too few people with three images.
    """
    kinds, fixed = leave_one_out(Heads(backbone, train, folder / "kinds", config, people[0]))
    shown = {**fixed, **(heads or {})}
    few = calibrating(test, people[1])
    faces = [np.asarray(cv2.resize(few.image(row), (SIZE, SIZE)), np.uint8) for row in range(len(few))]
    return damage_tables(
        kinds,
        reach(backbone, shown, few, folder / "pairs"),
        doubts(backbone, shown, faces, no_faces(faces, pictures, _SHOWN)),
    )


def damage_tables(
    kinds: Sequence[LeftOut], reached: Sequence[Reached], others: Sequence[Doubt]
) -> list[Table]:
    """What was found as tables."""
    names = list(kinds[0].loss)
    heads = list(dict.fromkeys(one.kappa for one in reached))
    return [
        Table(
            "Every kind of damage by heads that did and did not see it",
            ["kind", "cosine seen", *(f"expected: {name}" for name in names),
             *(f"loss: {name}" for name in names if name != ALL)],
            [
                [one.kind, f"{one.cosine:.3f}", *(f"{one.expected[name]:.3f}" for name in names),
                 *(f"{one.loss[name] - one.loss[ALL]:+.2f}" for name in names if name != ALL)]
                for one in kinds
            ],
            "Means over the pictures of people who taught no head. Loss in nats above that of the head that "
            "saw all kinds.",
        ),
        Table(
            "What kappa is worth in pairs: TMR at FMR " + " / ".join(f"{rate:g}" for rate in RATES),
            ["pictures", *heads],
            [
                [condition, *(" / ".join(f"{value:.3f}" for value in one.tmr)
                              for one in reached if one.condition == condition)]
                for condition in dict.fromkeys(one.condition for one in reached)
            ],
            "Mutual likelihood score, all pairs. perfect: the concentration whose expected cosine is the one "
            "between the picture and the person's others, which no head can know.",
        ),
        Table(
            "Pictures that are no faces",
            ["pictures", "head", "kappa 5 / 50 / 95 %", "above the lowest 5 % of faces"],
            [
                [one.pictures, one.head, " / ".join(f"{value:.0f}" for value in one.kappa),
                 f"{100 * one.above:.1f} %"]
                for one in others
            ],
        ),
    ]  # fmt: skip
