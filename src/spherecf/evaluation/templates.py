"""Template sets: find the embeddings of their images, pool them into templates, and score templates.

The direction of a template is the weighted sum of its images' directions, which are first averaged within
each medium. The weight of an image is the product of the factors that the mode switches on: N, the norm of
the raw feature; D, the detector score; K, the concentration (equation 14 of Li et al., CVPR 2021). F states
whether mirrored images were added when the images were embedded. The mode "precision" pools Gaussian
embeddings by precision (Shi and Jain, ICCV 2019).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation.bootstrap import check_draws
from spherecf.evaluation.folds import contradictions, template_people
from spherecf.evaluation.results import input_facts, short_hash
from spherecf.scoring import (
    Templates,
    cosine_tiles,
    gaussian_score,
    mutual_likelihood_matrix,
    pool_templates,
    score_template_pairs,
)

Array = NDArray[Any]


@dataclass(frozen=True)
class TemplateOptions:
    """Options of `evaluate_ijb` and `evaluate_identification`.

    Attributes:
        modes: pooling modes like "N1D1F1K0" (see ``docs/ijb.md``), or "precision"; default: mean, norm,
            detector score, kappa and precision, as far as the embeddings have them.
        scores: any of "cosine", "mls" and "pfe"; default: the cosine; for kappa pooling also the mutual
            likelihood score; for precision pooling the PFE score.
        targets: FMR targets (1:1) or FPIR targets (1:N); default: those of the protocol.
        radius: r of the mutual likelihood score; default: that in the provenance, else 64.
        draws: bootstrap draws of people; 0 for no intervals.
        seed: seed of the bootstrap.
        threads: threads for scoring.

    Raises:
        InputError: ``draws`` or ``seed`` is negative.
    """

    modes: Sequence[str] = ()
    scores: Sequence[str] = ()
    targets: Sequence[float] = ()
    radius: float | None = None
    draws: int = 1000
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        check_draws(self.draws, self.seed)


_MAX_ID_SPAN = 1 << 24  # ids are looked up in a table, or by bisection if their range is larger than this


@runtime_checkable
class TemplateSet(Protocol):
    """Interface of a template set, e.g. from `spherecf.data.read_ijb`."""

    @property
    def name(self) -> str:
        """Name in reports, e.g. "ijbc"."""

    @property
    def files(self) -> Sequence[str]:
        """(m,) image of each entry."""

    @property
    def templates(self) -> Array:
        """(m,) template of each entry."""

    @property
    def media(self) -> Array:
        """(m,) medium of each entry."""

    @property
    def detector_score(self) -> Array | None:
        """(m,) detector score of each entry's image."""

    @property
    def pairs(self) -> tuple[Array, Array, Array] | None:
        """(left templates, right templates, mated) of the 1:1 protocol."""

    @property
    def galleries(self) -> Mapping[str, tuple[Array, Array]]:
        """(templates, subjects) of each gallery, by name."""

    @property
    def probes(self) -> tuple[Array, Array] | None:
        """(templates, subjects) of the probes."""

    @property
    def absent(self) -> Mapping[str, str]:
        """File of the set that is missing -> reason."""

    def subjects(self) -> dict[int, int]:
        """Template -> subject, for templates of a known subject."""

    def repeated_pairs(self) -> int:
        """Number of pairs that repeat an earlier pair of the list."""

    def fingerprint(self) -> str:
        """SHA-256 of the whole set."""


@dataclass(frozen=True, eq=False)
class TemplateImages:
    """The entries of a template set whose image is embedded."""

    rows: Array
    """(m,) row of the entry's image in the embeddings."""
    templates: Array
    """(m,)"""
    media: Array
    """(m,)"""
    detector_score: Array | None
    """(m,)"""
    failures: list[tuple[str, str]]
    """(file, reason) of every image without an embedding."""
    empty_templates: Array
    """Templates without an embedded image."""

    @property
    def images(self) -> int:
        """Number of distinct images."""
        return int(np.unique(self.rows).size)

    def have_images(self, templates: Array) -> NDArray[np.bool_]:
        """Which of these templates have an image, elementwise."""
        return np.isin(templates, self.empty_templates, invert=True)

    def split(self, listed: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        """Split a list of (templates, subjects) by whether a template has an image.

        Returns:
            The distinct templates with an image, ascending as in `Templates`; their subjects; and the
            subjects of the templates without an image.
        """
        ids, first = np.unique(listed[0], return_index=True)
        subjects, has_image = listed[1][first], self.have_images(ids)
        return ids[has_image], subjects[has_image], subjects[~has_image]


def find_images(embeddings: Embeddings, templates: TemplateSet) -> TemplateImages:
    """Find the embeddings of a set's images; images that are skipped or missing are failures to acquire.

    Raises:
        InputError: none of the images is embedded, e.g. because the names are written differently.
    """
    index = {key: row for row, key in enumerate(embeddings.keys)}
    rows = np.array([index.get(name, -1) for name in templates.files], np.int64)
    is_embedded = rows >= 0
    if not is_embedded.any():
        raise InputError(
            f"{templates.name}: none of its {len(rows)} images is among the {len(embeddings)} embeddings. "
            f"The file names look like {_examples(templates.files)}, the keys of the embeddings like "
            f"{_examples(embeddings.keys)}; they must match."
        )
    reasons = dict(embeddings.skipped)
    missing = dict.fromkeys(templates.files[entry] for entry in np.flatnonzero(~is_embedded).tolist())
    scores = templates.detector_score
    # If the meta files have no detector scores, use those of the embeddings.
    if scores is None and "detector_score" in embeddings.extras:
        scores = embeddings.extras["detector_score"][np.where(is_embedded, rows, 0)]
    return TemplateImages(
        rows[is_embedded],
        templates.templates[is_embedded],
        templates.media[is_embedded],
        None if scores is None else scores[is_embedded],
        [(name, reasons.get(name, "not among the embeddings")) for name in missing],
        np.setdiff1d(templates.templates, templates.templates[is_embedded]),
    )


def positions(ids: Array, queries: Array) -> Array:
    """Position in ``ids`` of each query; fast for millions of queries.

    Args:
        ids: (k,) distinct ids, ascending.
        queries: (n,) ids, all among ``ids``.

    >>> positions(np.array([3, 5, 9]), np.array([9, 3, 3])).tolist()
    [2, 0, 0]
    """
    span = int(ids[-1] - ids[0]) + 1
    if span > _MAX_ID_SPAN:
        return np.searchsorted(ids, queries)
    table = np.zeros(span, np.int64)
    table[ids - ids[0]] = np.arange(ids.size)
    indices: Array = table[queries - ids[0]]
    return indices


def check_disjoint(name: str, enrolled: Array, probes: Array) -> None:
    """Raise `InputError` if a template is enrolled and also a probe."""
    both = np.intersect1d(enrolled, probes)
    if both.size:
        raise InputError(
            f"{name}: {both.size} templates are in the gallery and among the probes, first {both[0]}; each "
            "would match itself. Remove them from one of the two lists."
        )


def set_facts(embeddings: Embeddings, templates: TemplateSet) -> dict[str, object]:
    """The inputs that a result depends on, for its signature."""
    provenance, digest = embeddings.provenance, embeddings.fingerprint()
    facts = input_facts(provenance, provenance, digest, digest, None)
    kappa = "constant" if provenance.get("log_kappa") == "constant" else None
    return {"meta": short_hash(templates.fingerprint()), **facts, "kappa": kappa}


def missing_file(templates: TemplateSet, requirement: str, name_part: str) -> InputError:
    """The error of a protocol that lacks a file; ``name_part`` selects missing files by name."""
    missing = [f"{name} ({reason})" for name, reason in templates.absent.items() if name_part in name]
    return InputError(
        f"{templates.name}: {requirement} needed but missing: {', '.join(missing) or 'none was given'}"
    )


def _examples(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:2]) or "(none)"


_TILE_CELLS = 1 << 22  # scores in memory at once
_GAUSSIAN_NUMBERS = 1 << 22  # numbers in memory at once for PFE: pairs times dimensions


def score_pairs(
    left: Templates,
    right: Templates,
    left_at: Array,
    right_at: Array,
    score: str,
    radius: float,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """(pairs,) scores ("cosine", "mls" or "pfe") of the templates at these positions, larger = more alike."""
    name = "gaussian" if score == "pfe" else score
    return score_template_pairs(left, right, left_at, right_at, name, radius, threads=threads)


def score_tiles(
    left: Templates, right: Templates, score: str, radius: float, threads: int | None = None
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Scores of all ``left`` against all ``right`` templates, in blocks of rows.

    Yields:
        (rows, scores); the array of scores may be overwritten by the next block.
    """
    if score == "cosine":
        yield from cosine_tiles(left.mu, right.mu, threads=threads)
        return
    cells = _TILE_CELLS if score == "mls" else _GAUSSIAN_NUMBERS // left.dim
    height = max(1, cells // max(1, len(right)))
    p, q = left.log_precision, right.log_precision
    if score == "pfe" and (p is None or q is None):
        raise InputError("score pfe: these templates have no log_precision; pool them with mode precision")
    mu, kappa = torch.from_numpy(right.mu), torch.from_numpy(right.kappa)
    for start in range(0, len(left), height):
        rows = slice(start, min(start + height, len(left)))
        mu_left = torch.from_numpy(left.mu[rows])
        if p is None or q is None or score == "mls":
            k = torch.from_numpy(left.kappa[rows])
            yield rows, mutual_likelihood_matrix(mu_left, k, mu, kappa, radius, compiled=False).numpy()
        else:
            tau, tau_right = torch.from_numpy(p[rows]), torch.from_numpy(q)
            yield rows, gaussian_score(mu_left[:, None], tau[:, None], mu[None], tau_right[None]).numpy()


@dataclass(frozen=True, eq=False)
class Side:
    """The left or the right templates of all pairs."""

    used: Array
    """(s,) positions, among all templates with images, of the templates on this side, ascending."""
    ids: Array
    """(s,) ids of these templates."""
    people: Array
    """(s,) their subjects."""
    at: Array
    """(pairs,) position of each pair's template in ``used``."""

    @classmethod
    def of(cls, ids: Array, people: Array, positions: Array) -> "Side":
        """Collect one side of the pairs from ``positions`` (pairs,) among all templates."""
        is_used = np.zeros(ids.size, bool)
        is_used[positions] = True
        used = np.flatnonzero(is_used)
        return cls(used, ids[used], people[used], (np.cumsum(is_used) - 1)[positions])


@dataclass(frozen=True, eq=False)
class ComparedTemplates:
    """The pairs of templates that both have images."""

    left: Side
    right: Side
    mated: Array
    unit: str
    """Unit resampled by the bootstrap: "subject" or "component", see `template_people`."""
    failed: int
    """Number of pairs left out because a template has no image."""
    notes: list[str]

    def people(self) -> tuple[Array, Array]:
        """Person of the left and of the right template of every pair."""
        return self.left.people[self.left.at], self.right.people[self.right.at]

    def groups(self, groups: Mapping[int, str]) -> tuple[Array, Array]:
        """Group of the left and of the right template of every pair, "" where unknown."""
        left, right = (
            np.array([groups.get(template, "") for template in side.ids.tolist()])[side.at]
            for side in (self.left, self.right)
        )
        return left, right


def compare_templates(
    listed: tuple[Array, Array, Array], templates: TemplateSet, images: TemplateImages
) -> ComparedTemplates:
    """Resolve a list of template pairs (left, right, mated), leaving out templates without images.

    Raises:
        InputError: only mated or only non-mated pairs are left.
    """
    left, right, mated = listed
    if images.empty_templates.size:
        complete = images.have_images(left) & images.have_images(right)
        left, right, mated = left[complete], right[complete], mated[complete]
    failed, n_mated = listed[2].size - mated.size, int(mated.sum())
    if n_mated in (0, mated.size):
        raise InputError(
            f"{templates.name}: {failed} of {listed[2].size} pairs have a template without images; the rest "
            f"are {n_mated} mated and {mated.size - n_mated} non-mated; error rates need both kinds. Embed "
            "the missing images."
        )
    ids = np.unique(images.templates)
    a, b = positions(ids, left), positions(ids, right)
    unit, people = template_people(ids, templates.subjects(), a, b, mated)
    notes = []
    if n_wrong := contradictions(people, a, b, mated):
        notes.append(f"{n_wrong:,} pairs have a label that contradicts the subjects of their templates.")
    if n_same := int((a == b).sum()):
        notes.append(f"{n_same:,} pairs compare a template with itself; they are counted as labelled.")
    return ComparedTemplates(Side.of(ids, people, a), Side.of(ids, people, b), mated, unit, failed, notes)


SCORES = ("cosine", "mls", "pfe")
_MODE_PATTERN = re.compile(r"(?:N([01]))?(?:D([01]))?(?:F([01]))?(?:K([01]))?")


@dataclass(frozen=True)
class Mode:
    """A pooling mode.

    >>> str(Mode(kappa=True, flip="1")), Mode(norm=True, detector=True).pooling, Mode().pooling
    ('N0D0F1K1', 'norm*detector', 'mean')
    """

    norm: bool = False
    detector: bool = False
    kappa: bool = False
    flip: str = "?"
    """"1" or "0", "?" if the embeddings do not record it."""
    precision: bool = False

    def __str__(self) -> str:
        if self.precision:
            return f"F{self.flip}-precision"
        return f"N{int(self.norm)}D{int(self.detector)}F{self.flip}K{int(self.kappa)}"

    @property
    def pooling(self) -> str:
        """The weights of the images in words, e.g. "norm*detector"; "mean" without weights."""
        if self.precision:
            return "precision"
        factors = {"norm": self.norm, "detector": self.detector, "kappa": self.kappa}
        return "*".join(name for name, is_on in factors.items() if is_on) or "mean"

    def pool(self, embeddings: Embeddings, images: TemplateImages) -> Templates:
        """Pool images into templates. In every mode, kappa is pooled from ``kappa_i mu_i``."""
        precision = embeddings.log_precision if self.precision else None
        weights = None if self.pooling in ("kappa", "precision") else self._weights(embeddings, images)
        return pool_templates(
            embeddings.mu, embeddings.kappa, images.templates, images.media, rows=images.rows,
            weights=weights, log_precision=precision, checked=True,
        )  # fmt: skip

    def _weights(self, embeddings: Embeddings, images: TemplateImages) -> NDArray[np.float32]:
        weights = np.ones(images.rows.size, np.float32)
        if self.norm:
            weights *= embeddings.extras["norm"][images.rows]
        if self.detector and images.detector_score is not None:
            weights *= images.detector_score
        if self.kappa:
            weights *= embeddings.kappa[images.rows]
        return weights


def parse_mode(text: str, embeddings: Embeddings, images: TemplateImages) -> Mode:
    """Parse a mode like "N0D0F1K1" or "precision", and check that the embeddings support it.

    Factors that are left out are 0, except F, which is taken from the embeddings.

    Raises:
        InputError: the name has another form, the embeddings lack what the mode needs, or F differs from how
            the images were embedded.
    """
    flip = {"sum": "1", "none": "0"}.get(str(embeddings.provenance.get("flip")), "?")
    if text == "precision":
        mode = Mode(precision=True, flip=flip)
    else:
        match = _MODE_PATTERN.fullmatch(text)
        if not text or match is None:
            raise InputError(f"mode: expected a name like N0D0F1K1, or precision, got {text!r}")
        n, d, f, k = match.groups()
        if f is not None and f != flip:
            raise InputError(f"mode {text}: {_flip_problem(f, flip)}")
        mode = Mode(n == "1", d == "1", k == "1", flip)
    if problem := _missing_data(mode, embeddings, images):
        raise InputError(f"mode {text}: {problem}")
    return mode


def _flip_problem(requested: str, flip: str) -> str:
    if flip == "?":
        return (
            "the embeddings do not record whether mirrored images were added; leave F out of the mode, or "
            "import the features again with `spherecf data import ... --flip sum` (or none)"
        )
    if requested == "1":
        return (
            "F1 needs embeddings with the mirrored image added, but these are without (provenance: flip "
            "none); mirrored images cannot be added afterwards: embed with `spherecf embed ... --flip`"
        )
    return (
        "F0 needs embeddings without the mirrored image, but in these it was added (provenance: flip sum); "
        "it cannot be removed afterwards: embed without --flip"
    )


def _missing_data(mode: Mode, embeddings: Embeddings, images: TemplateImages) -> str:
    """What the mode needs and the embeddings lack; empty if nothing is missing."""
    if mode.norm and "norm" not in embeddings.extras:
        return "N1 needs the extra `norm` (norm of the raw feature), which these embeddings lack"
    if mode.detector and images.detector_score is None:
        return "D1 needs detector scores: the file *_name_5pts_score.txt, or the extra `detector_score`"
    if mode.precision and embeddings.log_precision is None:
        return "needs embeddings with log_precision (a PFE-G head), these have none"
    return ""


def conditions(
    modes: Sequence[str], scores: Sequence[str], embeddings: Embeddings, images: TemplateImages
) -> tuple[dict[Mode, list[str]], list[str]]:
    """The scores to evaluate in each mode, and notes on modes that had to be left out.

    The defaults are those of `TemplateOptions`.

    Raises:
        InputError: unknown modes or scores, or a score that does not fit a mode.
    """
    if unknown := [score for score in scores if score not in SCORES]:
        raise InputError(f"score: expected any of {', '.join(SCORES)}, got {unknown}")
    notes: list[str] = []
    if modes:
        parsed_modes = [parse_mode(mode, embeddings, images) for mode in modes]
        if _has_constant_kappa(embeddings) and any(mode.kappa for mode in parsed_modes):
            notes.append("kappa is constant (the features have none): pooling by kappa equals the mean.")
    else:
        parsed_modes, notes = _available_modes(embeddings, images)
    scores_of: dict[Mode, list[str]] = {}
    for mode in dict.fromkeys(parsed_modes):
        for score in dict.fromkeys(scores or _default_scores(mode)):
            if score == "pfe" and not mode.precision:
                if modes:
                    raise InputError(f"score pfe goes with mode precision, not with {mode}")
                continue
            scores_of.setdefault(mode, []).append(score)
    if not scores_of:
        raise InputError("score pfe needs embeddings with log_precision (a PFE-G head), these have none")
    return scores_of, notes


def _available_modes(embeddings: Embeddings, images: TemplateImages) -> tuple[list[Mode], list[str]]:
    """All default modes that the embeddings support, and notes on the others."""
    modes, notes = [], []
    for text in ("N0", "N1", "D1", "K1", "precision"):
        try:
            mode = parse_mode(text, embeddings, images)
        except InputError as error:
            if text != "precision":
                notes.append(f"Left out: {error}.")
            continue
        if mode.kappa and _has_constant_kappa(embeddings):
            notes.append("Left out: pooling by kappa, which is constant (the features have none).")
        else:
            modes.append(mode)
    return modes, notes


def _has_constant_kappa(embeddings: Embeddings) -> bool:
    return embeddings.provenance.get("log_kappa") == "constant"


def _default_scores(mode: Mode) -> tuple[str, ...]:
    return ("pfe",) if mode.precision else ("cosine", "mls") if mode.kappa else ("cosine",)
