"""MegaFace-style search: a gallery of one mate and ever more distractors.

Protocol: I. Kemelmacher-Shlizerman, S. Seitz, D. Miller, E. Brossard, "The MegaFace Benchmark: 1 Million
Faces for Recognition at Scale", CVPR 2016. Of every pair of two images of one person one is the probe, and
the other stands in the gallery among the first N of the distractors, shuffled once from a seed.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation.pairs import DEFAULT_RADIUS
from spherecf.evaluation.rates import allowed_false
from spherecf.evaluation.results import input_facts, plain, signature
from spherecf.evaluation.templates import score_pairs, score_tiles
from spherecf.scoring import Templates

Array = NDArray[Any]

_BLOCK = 1 << 12  # distractors scored at once against all probes


@dataclass(frozen=True)
class AtSize:
    """With so many distractors."""

    distractors: int
    rank_1: float
    """Share of searches whose mate scores above every distractor; a tie counts against it."""
    tmr: float | None
    """Largest TMR with FMR at most the target; non-mated pairs are every probe with every distractor."""
    refused: float | None
    """The largest non-mated score that must be refused: mates above it count."""
    false_matches: int | None
    non_mated: int
    unresolved: str | None = None


@dataclass(frozen=True)
class DistractorResult:
    """One score."""

    score: str
    signature: str
    sizes: list[AtSize]


@dataclass(frozen=True)
class DistractorReport:
    """Rank 1 and TMR against the number of distractors; `to_dict` is JSON-able."""

    name: str
    target: float
    """Of the FMR."""
    counts: dict[str, int]
    """``searches``, ``probes``, ``people``, ``distractors``, ``failed_images`` of both files"""
    results: list[DistractorResult]

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists."""
        found: dict[str, Any] = plain(asdict(self))
        return found


def identify_with_distractors(
    probes: Embeddings,
    distractors: Embeddings,
    *,
    name: str = "megaface",
    scores: Sequence[str] = ("cosine", "mls"),
    sizes: Sequence[int] = (10, 100, 1_000, 10_000, 100_000, 1_000_000),
    target: float = 1e-6,
    radius: float | None = None,
    seed: int = 0,
    threads: int | None = None,
) -> DistractorReport:
    """Search for the one mate among ever more strangers.

    Distractors are read block by block, so that a million of them need no memory beyond their file. Images
    listed as skipped in either file are counted and take no part.

    Args:
        probes: with labels; every ordered pair of two images of one person is a search.
        distractors: people who are not among the probes.
        name: of the set, for the report.
        scores: of "cosine" and "mls".
        sizes: numbers of distractors; those beyond the file are left out, the whole file is always there.
        target: FMR target.
        radius: r of the mutual likelihood score; default: the one in the provenance, else 64.
        seed: of the order of the distractors.
        threads: of the scoring.

    Raises:
        InputError: no labels, no person with two images, no distractors, another recogniser, unknown scores.

    Example:
        >>> e = Embeddings(np.array([[1, 0], [0.8, 0.6]]), np.zeros(2), ["a", "b"], np.array([0, 0]), ["A"])
        >>> others = Embeddings(np.array([[0.6, 0.8], [-1, 0]]), np.zeros(2), ["x", "y"])
        >>> report = identify_with_distractors(e, others, scores=["cosine"], target=0.5)
        >>> [(at.distractors, at.rank_1, at.non_mated) for at in report.results[0].sizes]
        [(2, 0.5, 4)]
    """
    probe, mate, people = _searches(probes)
    _check(probes, distractors, scores, target)
    order = np.random.default_rng(seed).permutation(len(distractors))
    sizes = [*sorted({size for size in sizes if 0 < size < len(distractors)}), len(distractors)]
    used, place = np.unique(probe, return_inverse=True)
    sides = _images(probes, np.arange(len(probes))), _images(probes, used)
    r = float(probes.provenance.get("radius", DEFAULT_RADIUS)) if radius is None else radius
    facts = input_facts(
        probes.provenance, distractors.provenance, probes.fingerprint(), distractors.fingerprint(), None
    )
    results = []
    for score in scores:
        own = score_pairs(sides[0], sides[0], probe, mate, score, r, threads)
        found = _grow(sides[1], distractors, order, sizes, score, r, target, threads)
        stated = {**facts, "score": score, "r": f"{r:g}" if score == "mls" else None, "fmr": "at-most",
                  "ties": "against", "order": f"shuffled/{seed}"}  # fmt: skip
        at = [_at(own, best[place], one, len(used), target) for best, one in found]
        results.append(DistractorResult(score, signature(f"{name}/distractors", **stated), at))
    counts = {
        "searches": int(probe.size), "probes": len(used), "people": people, "distractors": len(distractors),
        "failed_images": len(probes.skipped) + len(distractors.skipped),
    }  # fmt: skip
    return DistractorReport(name, target, counts, results)


def _searches(probes: Embeddings) -> tuple[Array, Array, int]:
    """(probe row, mate row, people) of every ordered pair of two images of one person."""
    if probes.labels is None:
        raise InputError("distractors: the probes need labels (who is who); embed an identity folder")
    left, right, people = [], [], 0
    for label in np.unique(probes.labels[probes.labels >= 0]).tolist():
        rows = np.flatnonzero(probes.labels == label)
        a, b = np.meshgrid(rows, rows, indexing="ij")
        left.append(a[a != b])
        right.append(b[a != b])
        people += rows.size > 1
    if not people:
        raise InputError(f"distractors: none of the people of {len(probes)} probes has two images")
    return np.concatenate(left), np.concatenate(right), people


def _check(probes: Embeddings, distractors: Embeddings, scores: Sequence[str], target: float) -> None:
    if not len(distractors):
        raise InputError("distractors: the file holds no embeddings")
    if not scores or not set(scores) <= {"cosine", "mls"}:
        raise InputError(f"scores: expected some of cosine and mls, got {list(scores)}")
    allowed_false(target, 1)
    one, other = probes.provenance.get("backbone"), distractors.provenance.get("backbone")
    if probes.dim != distractors.dim or (one is not None and other is not None and one != other):
        raise InputError(
            f"distractors: probes are of dimension {probes.dim} and backbone {one}, distractors of "
            f"{distractors.dim} and {other}; embed both with one recogniser"
        )


def _images(embeddings: Embeddings, rows: Array) -> Templates:
    """Single images as templates of one image each."""
    ones = np.ones(rows.size, np.int64)
    return Templates(rows, np.asarray(embeddings.mu[rows]), embeddings.kappa[rows], ones, ones)


def _grow(
    probes: Templates,
    distractors: Embeddings,
    order: Array,
    sizes: Sequence[int],
    score: str,
    radius: float,
    target: float,
    threads: int | None,
) -> list[tuple[Array, tuple[int, float | None, int]]]:
    """For growing sizes: (best distractor's score per probe, (size, score to be refused, false matches))."""
    best = np.full(len(probes), -np.inf, np.float32)
    highest = np.empty(0, np.float32)  # the non-mated scores that may still decide, no order
    most = int(allowed_false(target, len(probes) * sizes[-1])) + 1
    found: list[tuple[Array, tuple[int, float | None, int]]] = []
    start = 0
    for size in sizes:
        for first in range(start, size, _BLOCK):
            rows = order[first : min(first + _BLOCK, size)]
            others = _images(distractors, np.sort(rows))
            for part, tile in score_tiles(probes, others, score, radius, threads):
                best[part] = np.maximum(best[part], tile.max(1))
                highest = _largest(np.concatenate([highest, _largest(tile.reshape(-1), most)]), most)
        start = size
        allowed = int(allowed_false(target, len(probes) * size))
        if allowed < 1:
            found.append((best.copy(), (size, None, 0)))
            continue
        # Accepting the (allowed + 1)-th largest non-mated score would be one false match too many.
        refused = -np.inf
        if allowed < len(probes) * size:
            refused = float(_largest(highest, allowed + 1).min())
        found.append((best.copy(), (size, refused, int((highest > refused).sum()))))
    return found


def _largest(values: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    return values if values.size <= count else np.partition(values, values.size - count)[-count:]


def _at(own: Array, best: Array, found: tuple[int, float | None, int], probes: int, target: float) -> AtSize:
    size, refused, false = found
    rank_1, pairs = float((own > best).mean()), probes * size
    if refused is None:
        why = f"FMR {target:g} needs at least {int(np.ceil(1 / target))} non-mated pairs, there are {pairs}"
        return AtSize(size, rank_1, None, None, None, pairs, why)
    return AtSize(size, rank_1, float((own > refused).mean()), refused, false, pairs)
