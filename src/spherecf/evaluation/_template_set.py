"""From a template set's file names to rows of the embeddings, failures to acquire set apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation._signature import input_facts, short_hash

Array = NDArray[Any]

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
