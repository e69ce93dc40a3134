"""Template sets: file names to rows, images to templates by the field's modes, and scores of templates.

The direction of a template is the weighted sum of its images' directions, averaged inside a medium first. The
weights are the product of what is switched on: N the length of the raw feature, D the detector's score, K the
concentration (equation 14 of Li et al., CVPR 2021). F says whether mirrored images were added when the images
were embedded. "precision" pools Gaussian embeddings by precision (Shi and Jain, ICCV 2019).
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
    """What `evaluate_ijb` and `evaluate_identification` measure, and how.

    Attributes:
        modes: like "N1D1F1K0" (see ``docs/ijb.md``), or "precision"; default: mean, norm, detector score,
            kappa and precision, as far as the embeddings know them.
        scores: of "cosine", "mls" and "pfe"; default: the cosine, for kappa pooling the mutual likelihood
            as well, for precision PFE's own.
        targets: of FMR (1:1) or FPIR (1:N); default: those of the protocol.
        radius: r of the mutual likelihood score; default: the one in the provenance, else 64.
        draws: bootstrap draws of people; 0 for no intervals.
        seed: of the bootstrap.
        threads: of the scoring.

    Raises:
        InputError: fewer than 0 draws.
    """

    modes: Sequence[str] = ()
    scores: Sequence[str] = ()
    targets: Sequence[float] = ()
    radius: float | None = None
    draws: int = 1000
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.draws < 0:
            raise InputError(f"draws: expected 0 (no intervals) or more, got {self.draws}")


_LARGEST_TABLE = 1 << 24  # ids this far apart are looked up by bisection, others in a table, which is faster


@runtime_checkable
class TemplateSet(Protocol):
    """What template protocols need to know; `spherecf.data.read_ijb` gives it."""

    @property
    def name(self) -> str:
        """For reports, e.g. "ijbc"."""

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
        """(m,) of each entry's image."""

    @property
    def pairs(self) -> tuple[Array, Array, Array] | None:
        """(left, right, mated) of 1:1."""

    @property
    def galleries(self) -> Mapping[str, tuple[Array, Array]]:
        """(templates, subjects) by name."""

    @property
    def probes(self) -> tuple[Array, Array] | None:
        """(templates, subjects)."""

    @property
    def absent(self) -> Mapping[str, str]:
        """File that was not there to the reason."""

    def subjects(self) -> dict[int, int]:
        """Template to subject, as far as known."""

    def repeated_pairs(self) -> int:
        """Pairs that stand in the list more than once."""

    def fingerprint(self) -> str:
        """SHA-256 of all of it."""


@dataclass(frozen=True, eq=False)
class TemplateImages:
    """The entries whose image is embedded."""

    rows: Array
    """(m,) row of the entry's image in the embeddings."""
    templates: Array
    media: Array
    detector_score: Array | None
    failures: list[tuple[str, str]]
    """(file, reason) of every image that is not there."""
    lost: Array
    """Templates without any image left."""

    @property
    def images(self) -> int:
        """Number of distinct images."""
        return int(np.unique(self.rows).size)

    def known(self, templates: Array) -> NDArray[np.bool_]:
        """Which of these templates have an image."""
        return np.isin(templates, self.lost, invert=True)

    def split(self, listed: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        """(templates, subjects) of a list that have an image, ascending as in `Templates`, each once.

        And the subjects of those that have none.
        """
        ids, first = np.unique(listed[0], return_index=True)
        subjects, there = listed[1][first], self.known(ids)
        return ids[there], subjects[there], subjects[~there]


def find_images(embeddings: Embeddings, templates: TemplateSet) -> TemplateImages:
    """Find the rows; an image that is skipped or not there is a failure to acquire.

    Raises:
        InputError: none of the images is there: the names are spelt differently.
    """
    index = {key: row for row, key in enumerate(embeddings.keys)}
    rows = np.array([index.get(name, -1) for name in templates.files], np.int64)
    there = rows >= 0
    if not there.any():
        raise InputError(
            f"{templates.name}: none of its {len(rows)} images is among the {len(embeddings)} embeddings. "
            f"They look like {_some(templates.files)} there and {_some(embeddings.keys)} here; "
            "both must be spelt alike."
        )
    reasons = dict(embeddings.skipped)
    missing = dict.fromkeys(templates.files[place] for place in np.flatnonzero(~there).tolist())
    scores = templates.detector_score
    # Meta files without detector scores: the embeddings may have their own, of the same images.
    if scores is None and "detector_score" in embeddings.extras:
        scores = embeddings.extras["detector_score"][np.where(there, rows, 0)]
    return TemplateImages(
        rows[there],
        templates.templates[there],
        templates.media[there],
        None if scores is None else scores[there],
        [(name, reasons.get(name, "not among the embeddings")) for name in missing],
        np.setdiff1d(templates.templates, templates.templates[there]),
    )


def positions(ids: Array, wanted: Array) -> Array:
    """Where among ``ids`` (ascending, unique, all wanted ones are there) each of millions of ids stands.

    >>> positions(np.array([3, 5, 9]), np.array([9, 3, 3])).tolist()
    [2, 0, 0]
    """
    span = int(ids[-1] - ids[0]) + 1
    if span > _LARGEST_TABLE:
        return np.searchsorted(ids, wanted)
    table = np.zeros(span, np.int64)
    table[ids - ids[0]] = np.arange(ids.size)
    found: Array = table[wanted - ids[0]]
    return found


def check_apart(name: str, enrolled: Array, probes: Array) -> None:
    """Refuse probes that would find themselves in the gallery."""
    both = np.intersect1d(enrolled, probes)
    if both.size:
        raise InputError(
            f"{name}: {both.size} templates are in the gallery and among the probes, first {both[0]}; each "
            "would find itself. Take them out of one of the two lists."
        )


def set_facts(embeddings: Embeddings, templates: TemplateSet) -> dict[str, object]:
    """What a result owes to its inputs, for the signature."""
    own, digest = embeddings.provenance, embeddings.fingerprint()
    facts = input_facts(own, own, digest, digest, None)
    kappa = "constant" if own.get("log_kappa") == "constant" else None
    return {"meta": short_hash(templates.fingerprint()), **facts, "kappa": kappa}


def missing_file(templates: TemplateSet, what: str, part: str) -> InputError:
    """Why a protocol cannot run."""
    known = [f"{name} ({reason})" for name, reason in templates.absent.items() if part in name]
    return InputError(f"{templates.name}: {what} needed, not there: {', '.join(known) or 'none was given'}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:2]) or "(none)"


_TILE_CELLS = 1 << 22
_GAUSSIAN_NUMBERS = 1 << 22  # held at once: pairs times dimensions


def score_pairs(
    left: Templates,
    right: Templates,
    left_at: Array,
    right_at: Array,
    score: str,
    radius: float,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """(pairs,) scores by "cosine", "mls" or "pfe" of templates at these positions, larger = more alike."""
    name = "gaussian" if score == "pfe" else score
    return score_template_pairs(left, right, left_at, right_at, name, radius, threads=threads)


def score_tiles(
    left: Templates, right: Templates, score: str, radius: float, threads: int | None = None
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Row blocks of all scores of ``left`` against ``right``; a tile holds until the next is asked for."""
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
        own = torch.from_numpy(left.mu[rows])
        if p is None or q is None or score == "mls":
            k = torch.from_numpy(left.kappa[rows])
            yield rows, mutual_likelihood_matrix(own, k, mu, kappa, radius, compiled=False).numpy()
        else:
            tau, tau_right = torch.from_numpy(p[rows]), torch.from_numpy(q)
            yield rows, gaussian_score(own[:, None], tau[:, None], mu[None], tau_right[None]).numpy()


@dataclass(frozen=True, eq=False)
class Side:
    """The left or the right templates of all pairs."""

    used: Array
    """(s,) positions among all templates with images, ascending."""
    ids: Array
    """(s,) their ids."""
    people: Array
    """(s,) whom they show."""
    at: Array
    """(pairs,) position of each pair's template among ``used``."""

    @classmethod
    def of(cls, ids: Array, people: Array, place: Array) -> "Side":
        """``place`` (pairs,) is among all templates."""
        here = np.zeros(ids.size, bool)
        here[place] = True
        used = np.flatnonzero(here)
        return cls(used, ids[used], people[used], (np.cumsum(here) - 1)[place])


@dataclass(frozen=True, eq=False)
class ComparedTemplates:
    """The pairs whose templates have images."""

    left: Side
    right: Side
    mated: Array
    unit: str
    """What an interval draws: "subject" or "component", see `template_people`."""
    failed: int
    """Pairs left out: a template has no image."""
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
    """Find the templates of the pairs.

    Raises:
        InputError: of the pairs whose templates have images only one kind is left.
    """
    left, right, mated = listed
    if images.lost.size:
        kept = images.known(left) & images.known(right)
        left, right, mated = left[kept], right[kept], mated[kept]
    failed, true = listed[2].size - mated.size, int(mated.sum())
    if true in (0, mated.size):
        raise InputError(
            f"{templates.name}: {failed} of {listed[2].size} pairs have a template without images; the rest "
            f"are {true} mated and {mated.size - true} non-mated; error rates need both kinds. Embed the "
            "missing images."
        )
    ids = np.unique(images.templates)
    a, b = positions(ids, left), positions(ids, right)
    unit, people = template_people(ids, templates.subjects(), a, b, mated)
    notes = []
    if wrong := contradictions(people, a, b, mated):
        notes.append(f"{wrong:,} pairs are labelled otherwise than the people of their templates say.")
    if alike := int((a == b).sum()):
        notes.append(f"{alike:,} pairs compare a template with itself; they count as they stand in the list.")
    return ComparedTemplates(Side.of(ids, people, a), Side.of(ids, people, b), mated, unit, failed, notes)


SCORES = ("cosine", "mls", "pfe")
_FORM = re.compile(r"(?:N([01]))?(?:D([01]))?(?:F([01]))?(?:K([01]))?")


@dataclass(frozen=True)
class Mode:
    """One way to pool, checked against the embeddings.

    >>> str(Mode(kappa=True, flip="1")), Mode(norm=True, detector=True).pooling, Mode().pooling
    ('N0D0F1K1', 'norm*detector', 'mean')
    """

    norm: bool = False
    detector: bool = False
    kappa: bool = False
    flip: str = "?"
    """"1" or "0", "?" where the embeddings do not say."""
    precision: bool = False

    def __str__(self) -> str:
        if self.precision:
            return f"F{self.flip}-precision"
        return f"N{int(self.norm)}D{int(self.detector)}F{self.flip}K{int(self.kappa)}"

    @property
    def pooling(self) -> str:
        """In words: what the images are weighted by."""
        if self.precision:
            return "precision"
        parts = {"norm": self.norm, "detector": self.detector, "kappa": self.kappa}
        return "*".join(name for name, on in parts.items() if on) or "mean"

    def pool(self, embeddings: Embeddings, images: TemplateImages) -> Templates:
        """The templates. kappa is always pooled from ``kappa_i mu_i``, whatever weighs the directions."""
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
    """A mode by its name: "N0D0F1K1", letters left out are 0 (F: as the embeddings are), or "precision".

    Raises:
        InputError: another form, or something the embeddings do not have; F cannot be switched afterwards.
    """
    flip = {"sum": "1", "none": "0"}.get(str(embeddings.provenance.get("flip")), "?")
    if text == "precision":
        mode = Mode(precision=True, flip=flip)
    else:
        found = _FORM.fullmatch(text)
        if not text or found is None:
            raise InputError(f"mode: expected a name like N0D0F1K1, or precision, got {text!r}")
        n, d, f, k = found.groups()
        if f is not None and f != flip:
            raise InputError(f"mode {text}: {_flip_text(f, flip)}")
        mode = Mode(n == "1", d == "1", k == "1", flip)
    if lacking := _lacking(mode, embeddings, images):
        raise InputError(f"mode {text}: {lacking}")
    return mode


def _flip_text(asked: str, flip: str) -> str:
    if flip == "?":
        return (
            "the embeddings do not say whether mirrored images were added; leave F out of the mode, or "
            "import the features again with `spherecf data import ... --flip sum` (or none)"
        )
    if asked == "1":
        return (
            "F1 needs embeddings with the mirrored image added, these are without (provenance: flip none); "
            "it cannot be switched on afterwards: embed with `spherecf embed ... --flip`"
        )
    return (
        "F0 needs embeddings without the mirrored image, in these it was added (provenance: flip sum); it "
        "cannot be taken out afterwards: embed without --flip"
    )


def _lacking(mode: Mode, embeddings: Embeddings, images: TemplateImages) -> str:
    """What the embeddings lack for this mode, empty if nothing."""
    if mode.norm and "norm" not in embeddings.extras:
        return "N1 needs the extra `norm` (length of the raw feature), which these embeddings lack"
    if mode.detector and images.detector_score is None:
        return "D1 needs detector scores: the file *_name_5pts_score.txt, or the extra `detector_score`"
    if mode.precision and embeddings.log_precision is None:
        return "needs embeddings with log_precision (a PFE-G head), these have none"
    return ""


def conditions(
    modes: Sequence[str], scores: Sequence[str], embeddings: Embeddings, images: TemplateImages
) -> tuple[list[tuple[Mode, str]], list[str]]:
    """What is evaluated side by side: (mode, score) of each row, and notes on what had to be left out.

    Without ``modes``: mean, norm, detector and kappa pooling and precision, as far as the embeddings know
    them. Without ``scores``: the cosine, for kappa also the mutual likelihood, for precision PFE's own.

    Raises:
        InputError: unknown modes or scores, or a score that does not fit a mode.
    """
    if unknown := [score for score in scores if score not in SCORES]:
        raise InputError(f"score: expected some of {', '.join(SCORES)}, got {unknown}")
    notes: list[str] = []
    if modes:
        chosen = [parse_mode(mode, embeddings, images) for mode in modes]
        if _constant(embeddings) and any(mode.kappa for mode in chosen):
            notes.append("kappa is constant (these features came without one): pooling by it is the mean.")
    else:
        chosen, notes = _every_mode(embeddings, images)
    rows = []
    for mode in chosen:
        for score in scores or _own_scores(mode):
            if score == "pfe" and not mode.precision:
                if modes:
                    raise InputError(f"score pfe goes with mode precision, not with {mode}")
                continue
            rows.append((mode, score))
    if not rows:
        raise InputError("score pfe needs embeddings with log_precision (a PFE-G head), these have none")
    return list(dict.fromkeys(rows)), notes


def _every_mode(embeddings: Embeddings, images: TemplateImages) -> tuple[list[Mode], list[str]]:
    kept, notes = [], []
    for text in ("N0", "N1", "D1", "K1", "precision"):
        try:
            mode = parse_mode(text, embeddings, images)
        except InputError as error:
            if text != "precision":
                notes.append(f"Left out: {error}.")
            continue
        if mode.kappa and _constant(embeddings):
            notes.append("Left out: pooling by kappa, which is constant (these features came without one).")
        else:
            kept.append(mode)
    return kept, notes


def _constant(embeddings: Embeddings) -> bool:
    return embeddings.provenance.get("log_kappa") == "constant"


def _own_scores(mode: Mode) -> tuple[str, ...]:
    return ("pfe",) if mode.precision else ("cosine", "mls") if mode.kappa else ("cosine",)
