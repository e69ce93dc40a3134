"""Kappa compared with other confidences by the same code: error versus discard, pooling, search, and cost."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.calibration import threshold_at_rate
from spherecf.common.progress import progress
from spherecf.common.rowstore import RowStore
from spherecf.common.version import environment
from spherecf.data import ImageSource, ViewRequest, load_batch
from spherecf.demo.trial import HeadVariant, fit_variants
from spherecf.errors import InputError
from spherecf.evaluation import interval
from spherecf.evaluation.open_set import (
    RejectionOrder,
    decide,
    fpir_threshold,
    prr_of,
    prr_shares,
)
from spherecf.extract import backbone_identity
from spherecf.models import ConfidenceModel, FrozenBackbone, RecogniserQuality
from spherecf.report import ReportFiles, Section, Table, write_report
from spherecf.scoring import pool
from spherecf.training import ConfidenceConfig, FeatureCache, build_cache, new_head, prepare
from studies.graded import CALIBRATED, GRADES, divide

Array = NDArray[Any]

HEADS = (
    HeadVariant("mls"),
    HeadVariant("pfe_g", objective="pfe-gaussian"),
    HeadVariant("probface", objective="probface"),
    HeadVariant("cr_fiqa", objective="cr-fiqa"),
    HeadVariant("rts", objective="rts"),
)
"""Heads of the same architecture on the same features; they differ in their training objective."""

BY_RECOGNISER: dict[str, Callable[[RecogniserQuality, Array], torch.Tensor]] = {
    "grafiqs": lambda quality, images: quality.grafiqs(images),
    "ser_fiq": lambda quality, images: quality.ser_fiq(images),
    "faceqan": lambda quality, images: quality.faceqan(images),
}
"""Methods that run the recogniser again on every image, from the fastest to the slowest (seconds)."""

SETTINGS: dict[str, Sequence[str]] = {
    "clean": ("none",),
    "known damage": CALIBRATED,
    "unseen damage": ("none", "unseen"),
}
"""Grades of damage in each setting; one of them is drawn for each image."""

FMR, LIMIT, FPIR = 1e-3, 0.3, 0.1
IMAGES = 3
"""Images per template, and per enrolled person in search."""
_TIMED = 6  # images
_MIN_WEIGHT = np.finfo(np.float32).tiny  # negligible, but a template of such images still has a direction


@dataclass(frozen=True, eq=False)
class Faces:
    """Images with the damage of one setting.

    Attributes:
        mu: (n, dim) directions.
        person: (n,) labels.
        group: (n,) "frontal", "profile" or "".
        confidence: by name one array (n,) per seed; a single array if the seed makes no difference.
        clean: (n, dim) directions of the undamaged images, for enrolment.
    """

    mu: NDArray[np.float32]
    person: NDArray[np.int64]
    group: Array
    confidence: Mapping[str, Sequence[Array]]
    clean: NDArray[np.float32]

    def only(self, rows: Array) -> "Faces":
        """The images in these rows."""
        return Faces(
            self.mu[rows], self.person[rows], self.group[rows],
            {name: [values[rows] for values in seeds] for name, seeds in self.confidence.items()},
            self.clean[rows],
        )  # fmt: skip

    def weights(self, draws: int, seed: int = 0) -> Array:
        """(draws + 1, n) how often the person of each image is drawn; the first row is all ones."""
        names, code = np.unique(self.person, return_inverse=True)
        drawn = np.random.default_rng(seed).multinomial(
            len(names), np.full(len(names), 1 / len(names)), draws
        )
        return np.concatenate([np.ones((1, len(names))), drawn])[:, code]


Runs = dict[str, NDArray[np.float64]]
"""By confidence (1 + draws,) means over the seeds: on all people, and on every bootstrap sample of them."""


@dataclass(frozen=True, eq=False)
class Rivals:
    """All results.

    Attributes:
        measured: by (people, measure) and confidence; the measures are in the order of the columns.
        base: by (people, measure), the rate without any confidence: FNMR, TMR of the mean, F1.
        seconds: CPU time per image by confidence, in addition to the recogniser's pass.
        facts: JSON-serialisable counts.
    """

    measured: dict[tuple[str, str], Runs] = field(default_factory=dict)
    base: dict[tuple[str, str], float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Effort:
    """Amount of computation.

    Attributes:
        seeds: number of trainings of every head.
        ask: names of the methods of `BY_RECOGNISER` to run.
        people: number of people of the test set for these slow methods.
        draws: bootstrap samples of people, for the intervals.

    Raises:
        InputError: fewer than one seed, two draws or four people, or an unknown name.
    """

    seeds: int = 2
    ask: Sequence[str] = ("grafiqs", "ser_fiq")
    people: int = 20
    draws: int = 200

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.draws < 2 or self.people < 4:
            raise InputError(
                "expected seeds >= 1, draws >= 2 and people >= 4, got "
                f"{self.seeds}, {self.draws}, {self.people}"
            )
        if unknown := sorted(set(self.ask) - set(BY_RECOGNISER)):
            raise InputError(f"ask: expected some of {', '.join(BY_RECOGNISER)}, got {', '.join(unknown)}")


def compare_rivals(
    backbone: FrozenBackbone,
    train: ImageSource,
    test: ImageSource,
    folder: str | Path,
    config: ConfidenceConfig | None = None,
    effort: Effort = Effort(),
) -> Rivals:
    """Train every head, run the slow methods on a subset of people, and measure all confidences alike.

    Caches have the same layout as in the study "shipped", so its folder can be used.

    Args:
        backbone: frozen recogniser.
        train: aligned crops of the people to train on; people who look like somebody in ``test`` are left
            out.
        test: aligned crops of other people.
        folder: output folder for caches, heads and the results of the slow methods.
        config: settings of the heads; objective and seed are set by this function.
        effort: amount of computation.

    Raises:
        InputError: too few people to train on or to search.
    """
    seeds, ask, people, draws = effort.seeds, effort.ask, effort.people, effort.draws
    config, folder, views = config or ConfidenceConfig(), Path(folder), list(GRADES.values())
    cache = build_cache(backbone, new_head(backbone, config), test, views, folder / "test-cache")
    data = prepare(backbone, train, config, folder / "train-cache")
    division = divide(data.cache, cache, share=0.0)
    models = fit_variants(backbone, division.training(data), config, folder / "rivals", range(seeds), HEADS)
    confidences = {
        variant.score: [cache.log_kappa(models[seed, variant.score].head) for seed in range(seeds)]
        for variant in HEADS
    }
    confidences |= {name: [cache.store.arrays[name]] for name in ("norm", "sharpness")}
    confidences["random"] = [np.random.default_rng(0).random(len(cache), np.float32)]
    usable = cache.valid.reshape(-1, len(views)).all(1) & (cache.source.labels >= 0)
    rows = {name: drawn_rows(cache, number, grades) for number, (name, grades) in enumerate(SETTINGS.items())}
    subset = _subset(cache.source.labels, usable, people if ask else 0)
    slow_rows = np.unique(np.concatenate([of_setting[subset] for of_setting in rows.values()]))
    slow = ask_recogniser(backbone, cache, slow_rows, ask, folder)
    result = Rivals(facts={**division.facts, "tested_people": len(np.unique(test.labels[usable])),
                           "asked_people": people, "asked_views": len(slow_rows)})  # fmt: skip
    result.seconds.update(_cost(backbone, models, cache))
    groups = _groups(cache.source.keys)
    for name, of_setting in rows.items():
        faces = Faces(
            cache.mu[of_setting], cache.source.labels, groups,
            {key: [values[of_setting] for values in seeds] for key, seeds in (confidences | slow).items()},
            cache.mu[:: len(views)],
        )  # fmt: skip
        cheap = Faces(faces.mu, faces.person, groups,
                      {key: faces.confidence[key] for key in confidences}, faces.clean)  # fmt: skip
        _measure(result, "all", name, cheap.only(np.flatnonzero(usable)), draws)
        if len(subset):
            _measure(result, "some", name, faces.only(subset), draws)
    return result


def drawn_rows(cache: FeatureCache, seed: int, grades: Sequence[str]) -> NDArray[np.int64]:
    """(images,) cache row of each image in one of these grades, drawn at random."""
    views = [list(GRADES).index(grade) for grade in grades]
    images = np.arange(len(cache.source))
    drawn: NDArray[np.int64] = np.random.default_rng([seed, 5]).choice(views, len(images))
    return images * len(GRADES) + drawn


def _subset(labels: NDArray[np.int64], usable: NDArray[np.bool_], people: int) -> NDArray[np.int64]:
    """Row indices of the usable images of this many people, drawn at random."""
    drawn = np.random.default_rng(0).permutation(np.unique(labels[usable]))[:people]
    return np.flatnonzero(usable & np.isin(labels, drawn))


def _groups(keys: Sequence[str]) -> Array:
    """(images,) folder inside the person's: "frontal" for "001/frontal/01.jpg", "" if there is none."""
    return np.array([key.split("/")[-2] if key.count("/") > 1 else "" for key in keys])


def ask_recogniser(
    backbone: FrozenBackbone,
    cache: FeatureCache,
    rows: NDArray[np.int64],
    names: Sequence[str],
    folder: Path,
) -> dict[str, list[Array]]:
    """Results of the slow methods for these rows of a cache, NaN for the others; the passes are resumable."""
    quality, views = RecogniserQuality(backbone), list(cache.views)
    identity = {
        "source": cache.source.fingerprint(), "rows_asked": rows.tolist(),
        "backbone": backbone_identity(backbone), "views": [view.signature for view in views],
    }  # fmt: skip
    results = {}
    for name in names:
        method = BY_RECOGNISER[name]
        store = RowStore(folder / f"{name}-cache", len(rows), {"value": ((), "float32")}, identity)
        with progress(name, len(rows), store.done) as advance:
            for row in rows[store.done :].tolist():
                image = _image(cache, backbone, row)
                store.append({"value": method(quality, image).cpu().numpy()})
                advance(1)
            store.commit()
        values = np.full(len(cache), np.nan, np.float32)
        values[rows] = store.arrays["value"]
        results[name] = [values]
    return results


def _image(cache: FeatureCache, backbone: FrozenBackbone, row: int) -> Array:
    """(1, height, width, 3) the image of one row of a cache."""
    image, view = divmod(row, len(cache.views))
    zero = np.zeros(1, np.int64)
    shown = ViewRequest(zero, zero + image, cache.views, zero + view)
    return load_batch(cache.source, backbone.preprocessing.size, shown, on_error="raise").images


def _cost(
    backbone: FrozenBackbone,
    models: Mapping[tuple[int, str], ConfidenceModel],
    cache: FeatureCache,
) -> dict[str, float]:
    """CPU seconds per image, one at a time; for heads and norm in addition to the recogniser's pass."""
    rows = np.flatnonzero(cache.valid[:: len(cache.views)])[:_TIMED] * len(cache.views)
    images = [_image(cache, backbone, row) for row in rows.tolist()]

    def timed(work: Callable[[Array], object]) -> float:
        work(images[0])  # warm up
        start = time.process_time()
        for image in images:
            work(image)
        return (time.process_time() - start) / len(images)

    recogniser_seconds = timed(backbone)
    head = models[0, "mls"].head.eval()
    outputs = {id(image): backbone(image) for image in images}

    def apply_head(image: Array) -> torch.Tensor:
        with torch.no_grad():
            return head.log_kappa(outputs[id(image)].features, outputs[id(image)].embedding)

    head_seconds = timed(apply_head)
    seconds = {
        "recogniser": recogniser_seconds, "norm": 0.0, **{variant.score: head_seconds for variant in HEADS}
    }  # fmt: skip
    quality = RecogniserQuality(backbone)
    seconds |= {name: timed(partial(method, quality)) for name, method in BY_RECOGNISER.items()}
    return seconds


def _measure(result: Rivals, who: str, setting: str, faces: Faces, draws: int) -> None:
    """Fill in one setting: pairs by kind, templates weighted in two ways, search."""
    for kind, sides in _kinds(faces.group).items():
        key = who, f"EDC {kind}, {setting}"
        result.measured[key], result.base[key] = discard_pairs(faces, sides, draws)
    for by_rank in (False, True):
        key = who, f"TMR {'by rank' if by_rank else 'as it is'}, {setting}"
        result.measured[key], result.base[key] = pool_by(faces, by_rank, draws)
    key = who, f"PRR, {setting}"
    result.measured[key], result.base[key] = reject_probes(faces, draws)


def _kinds(group: Array) -> dict[str, tuple[Array, Array]]:
    """Left and right images of the pairs: frontal/profile and frontal/frontal as in CFP, otherwise all."""
    frontal, profile = (np.flatnonzero(group == name) for name in ("frontal", "profile"))
    if len(frontal) and len(profile):
        return {"FP": (frontal, profile), "FF": (frontal, frontal)}
    everything = np.arange(len(group))
    return {"pairs": (everything, everything)}


def _threshold(mated: Array, non_mated: Array, rate: float) -> float:
    """Threshold with the largest TMR at FMR <= ``rate``; NaN if there are too few non-mated pairs."""
    highest = min(non_mated.size, int(rate * non_mated.size) + 2)
    largest = np.sort(np.partition(non_mated, non_mated.size - highest)[-highest:])
    threshold = threshold_at_rate(np.sort(mated), largest, rate, trials=non_mated.size)
    return float("nan") if threshold is None else float(threshold)


def discard_pairs(faces: Faces, sides: tuple[Array, Array], draws: int) -> tuple[Runs, float]:
    """pAUC of error versus discard for each confidence, and the FNMR with nothing discarded.

    The threshold of the cosine is set at FMR 1e-3 on all pairs of the two sides. Mated pairs are discarded by
    the smaller confidence of their two images, up to 30 %. The area is 0 for the oracle and 1 for an
    uninformative confidence.
    """
    left, right = sides
    cosine = faces.mu[left] @ faces.mu[right].T
    same = faces.person[left][:, None] == faces.person[right]
    # With the same images on both sides, count each pair once and no image against itself.
    is_pair = left[:, None] < right if np.array_equal(left, right) else np.ones_like(same)
    rows, columns = np.nonzero(same & is_pair)
    mated = cosine[rows, columns]
    threshold = _threshold(mated, cosine[~same & is_pair], FMR)
    wrong, i, j = mated < threshold, left[rows], right[columns]
    weights = faces.weights(draws)[:, i] * (1.0 if np.isfinite(threshold) else np.nan)
    areas = {
        name: np.mean([partial_areas(wrong, np.minimum(v[i], v[j]), weights) for v in seeds], 0)
        for name, seeds in faces.confidence.items()
    }
    return areas, float(np.average(wrong, weights=weights[0]))


def partial_areas(wrong: Array, quality: Array, weights: Array, limit: float = LIMIT) -> NDArray[np.float64]:
    """pAUC of `spherecf.evaluation.edc`, rescaled so that the oracle is 0 and no information is 1.

    The oracle discards errors first; if most pairs are errors, it cannot discard all of them either. There is
    one area per row of weights; it is NaN if no pair, or every pair, is an error.

    Args:
        wrong: (n,) whether the mated pair is below the threshold.
        quality: (n,) larger is better; pairs of equal quality are discarded together.
        weights: (k, n) how often each pair counts.
        limit: largest share discarded.
    """
    order = np.argsort(quality, kind="stable")
    first = np.concatenate([[0], np.flatnonzero(np.diff(quality[order])) + 1])
    areas = np.full(len(weights), np.nan)
    for row, weight in enumerate(weights):
        w = weight[order]
        discarded, discarded_errors = (
            np.concatenate([[0.0], np.cumsum(part)])[first] for part in (w, w * wrong[order])
        )
        total, errors = w.sum(), float(w @ wrong[order])
        if not 0 < errors < total:  # all pairs alike, or no threshold (NaN)
            continue
        left = total - discarded
        share = np.minimum(discarded / total, limit)
        rate = np.divide(errors - discarded_errors, left, out=np.zeros_like(left), where=left > 0)
        area = (np.diff(np.append(share, limit)) * rate).sum()
        best, flat = _oracle_area(errors / total, limit), limit * errors / total
        areas[row] = (area - best) / (flat - best)
    return areas


def _oracle_area(start: float, limit: float) -> float:
    """Integral of (start - q) / (1 - q) over the discarded share q up to the limit, or until none is left."""
    end = min(start, limit)
    return end + (1 - start) * float(np.log1p(-end))


def pool_by(faces: Faces, by_rank: bool, draws: int) -> tuple[Runs, float]:
    """TMR at FMR 1e-3 of templates of three images pooled by each confidence, and that of the plain mean.

    Args:
        faces: with at least two templates of some people.
        by_rank: if true, the confidence determines only the order of the images, and the weights are the
            values of kappa in that order; otherwise the confidence itself is the weight.
        draws: bootstrap samples of people, with a fixed threshold.
    """
    rows = np.concatenate(list(_templates(faces.person)))
    rows, template = rows[:, 0], rows[:, 1]
    first = rows[np.unique(template, return_index=True)[1]]  # one image of each template
    person = faces.person[first]
    left, right = np.triu_indices(len(person), 1)
    same = person[left] == person[right]
    drawn = faces.weights(draws)[:, first[left[same]]]

    def tmr(weight: Array) -> Array:
        mu = pool(faces.mu[rows], np.maximum(weight[rows], _MIN_WEIGHT), template).mu
        cosine = (mu @ mu.T)[left, right]
        threshold = _threshold(cosine[same], cosine[~same], FMR)
        rates = (drawn * (cosine[same] >= threshold)).sum(1) / drawn.sum(1)
        return rates if np.isfinite(threshold) else np.full_like(rates, np.nan)

    kappas = faces.confidence["mls"]
    results = {}
    for name, seeds in faces.confidence.items():
        runs = []
        for number, values in enumerate(seeds):
            if by_rank:
                ranked = np.empty(len(values))
                ranked[np.argsort(values, kind="stable")] = np.sort(np.exp(kappas[number % len(kappas)]))
                runs.append(tmr(ranked))
            else:
                runs.append(tmr(np.exp(values) if name in _LOGARITHMS else values))
        results[name] = np.mean(runs, 0)
    return results, float(tmr(np.ones(len(faces.person)))[0])


NAMES = {
    "mls": "kappa (SCF)", "pfe_g": "PFE-G, mean precision", "probface": "ProbFace", "cr_fiqa": "CR-FIQA",
    "rts": "RTS", "norm": "norm", "sharpness": "sharpness", "random": "random", "grafiqs": "GraFIQs",
    "ser_fiq": "SER-FIQ", "faceqan": "FaceQAN",
}  # fmt: skip
_NOTE = (
    "+ and -: better and worse than kappa, with a 95 % interval of the difference over people that excludes "
    "0. Means over seeds. The row start has nothing discarded (FNMR), pooling by the mean (TMR), or nothing "
    "rejected (F1)."
)


def rival_tables(result: Rivals) -> list[Table]:
    """EDC, pooling and search, on all people and on the subset for the slow methods."""
    tables = []
    for who in dict.fromkeys(who for who, _ in result.measured):
        count = result.facts["tested_people" if who == "all" else "asked_people"]
        for prefix, title in (
            (
                "EDC",
                f"Error versus discard: pAUC to {LIMIT:g} at FMR {FMR:g}, oracle 0, no information 1",
            ),
            ("TMR", f"Templates of {IMAGES} images: TMR at FMR {FMR:g}"),
            ("PRR", f"Open-set search: PRR at FPIR {FPIR:g}, oracle 1, no information 0"),
        ):
            keys = [key for key in result.measured if key[0] == who and key[1].startswith(prefix)]
            names = list(result.measured[keys[0]])
            rows = [["start", *(_number(result.base[key]) for key in keys)]]
            rows += [
                [NAMES[name], *(_cell(result.measured[key], name, prefix == "EDC") for key in keys)]
                for name in names
            ]
            header = [
                "confidence",
                *(key[1].removeprefix(f"{prefix} ").removeprefix(f"{prefix}, ") for key in keys),
            ]
            tables.append(Table(f"{title} ({count} people)", header, rows, _NOTE))
    rows = [[NAMES.get(name, name), f"{1000 * value:.1f}"] for name, value in result.seconds.items()]
    note = (
        "One image at a time. Times of heads and norm are in addition to the recogniser's pass; those of the "
        "last three rows include their own passes."
    )
    return [*tables, Table("CPU time per image", ["confidence", "ms"], rows, note)]


def _number(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "–"


def _cell(runs: Runs, name: str, smaller_is_better: bool) -> str:
    values = runs[name]
    if name == "mls" or not np.isfinite(values[0]):
        return _number(values[0])
    gain = (runs["mls"] - values if smaller_is_better else values - runs["mls"])[1:]
    between = interval(gain)
    return f"{_number(values[0])}{' +' if between.low > 0 else ' -' if between.high < 0 else ''}"


def present_rivals(result: Rivals, folder: str | Path, provenance: Mapping[str, Any]) -> ReportFiles:
    """Write ``report.html``, ``report.md`` and ``report.json``."""
    tables = rival_tables(result)
    numbers = {
        f"{who}: {measure}": {
            name: [float(values[0]), between.low, between.high]
            for name, values in runs.items()
            for between in (interval(values[1:]),)
        }
        for (who, measure), runs in result.measured.items()
    }
    return write_report(
        folder,
        title="Kappa compared with other confidences",
        sections=[Section("Tables", tables=tables, plots=[])],
        results={"value_and_interval": numbers, "facts": result.facts, "seconds": result.seconds},
        provenance={"environment": environment(), **provenance},
    )


_LOGARITHMS = ("mls", "pfe_g", "probface", "rts")
"""Heads whose output is the logarithm of a concentration, a precision or an inverse temperature."""


def _templates(person: NDArray[np.int64]) -> Iterator[Array]:
    """(images, 2) for each person: row index of an image and number of its template, disjoint."""
    rng, number = np.random.default_rng(3), 0
    for label in np.unique(person).tolist():
        rows = rng.permutation(np.flatnonzero(person == label))
        count = len(rows) // IMAGES
        yield np.stack([rows[: count * IMAGES], number + np.repeat(np.arange(count), IMAGES)], 1)
        number += count


def reject_probes(faces: Faces, draws: int) -> tuple[Runs, float]:
    """PRR of F1 at FPIR 0.1 for each confidence of the probe, and F1 with nothing rejected.

    Every second person is enrolled with the mean of three undamaged images, frontal ones if available. The
    probes are their other images and those of the people who are not enrolled. Threshold and gallery are the
    same in all bootstrap samples.
    """
    people = np.unique(faces.person)
    enrolled = people[::2]
    preferred = np.argsort(faces.group != "frontal", kind="stable")
    templates = np.concatenate([preferred[faces.person[preferred] == label][:IMAGES] for label in enrolled])
    gallery = pool(faces.clean[templates], np.ones(len(templates), np.float32), faces.person[templates])
    probes = np.setdiff1d(np.arange(len(faces.person)), templates)
    cosine = faces.mu[probes] @ gallery.mu.T
    best, mated = cosine.argmax(1), np.isin(faces.person[probes], enrolled)
    similarity = cosine.max(1)
    if not mated.any():
        raise InputError(f"search: expected people with more than {IMAGES} images, all have fewer")
    threshold, reason = fpir_threshold(similarity, mated, FPIR)
    if threshold is None:
        raise InputError(f"search: {reason}")
    decisions = decide(similarity, gallery.groups[best] == faces.person[probes], mated, threshold)
    shares, weights = prr_shares(len(probes), 0.5), faces.weights(draws)[:, probes]
    results = {}
    for name, seeds in faces.confidence.items():
        orders = [RejectionOrder.of(values[probes]) for values in seeds]
        results[name] = np.mean(
            [[prr_of(order, decisions, shares, w) for w in weights] for order in orders], 0
        )
    identified, errors = decisions.identified.sum(), decisions.wrong.sum()
    return results, float(2 * identified / max(1, 2 * identified + errors))
