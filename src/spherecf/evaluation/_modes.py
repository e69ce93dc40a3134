"""How images become templates: the field's modes N, D and F, and K for kappa.

The direction of a template is the weighted sum of its images' directions, averaged inside a medium first. The
weights are the product of what is switched on: N the length of the raw feature, D the detector's score, K the
concentration (equation 14 of Li et al., CVPR 2021). F says whether mirrored images were added when the images
were embedded. "precision" pools Gaussian embeddings by precision (Shi and Jain, ICCV 2019).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation._template_set import TemplateImages
from spherecf.scoring import Templates, pool_templates

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
