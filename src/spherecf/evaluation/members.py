"""Whether decision rules hold for the members of a gallery, searched as `identify` searches it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.calibration import GALLERY_SCORES, Calibration, DecisionRule
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation.people import PeoplePairs, RuleCount, RuleCounter, count_rule, in_turns
from spherecf.scoring import (
    cosine_matrix,
    cosine_score,
    mutual_likelihood_matrix,
    mutual_likelihood_score,
    pool,
    without_each,
)

Array = NDArray[Any]

MIN_MEMBERS = 20
_PROBES = 2000  # images that are searched
_ROWS = 256  # images searched at once
_ALIKE = 5  # pairs of members that are named


@dataclass(frozen=True)
class MembersReport:
    """Result of `check_members`; `to_dict` is JSON-able.

    Attributes:
        counts: ``members``, ``images`` that were searched, ``mated``, ``non_mated`` comparisons.
        rules: for templates of one image, then of several, as far as there are any.
        alike: (name, name, evidence) of the members who resemble each other most, if the strictest rule that
            was counted calls them a match: look-alikes, or one person under two names.
    """

    counts: dict[str, int]
    rules: tuple[RuleCount, ...]
    alike: tuple[tuple[str, str, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists."""
        rules = [one.to_dict() for one in self.rules]
        return {"counts": self.counts, "rules": rules, "alike": [list(pair) for pair in self.alike]}


def check_members(
    members: Embeddings, calibration: Calibration, *, draws: int = 1000, seed: int = 0
) -> MembersReport:
    """Count what the rules of a gallery say when its members' own images are searched in it.

    Each image is compared with the templates of all other members: non-mated. If its member has further
    images, it is compared with the template of these: mated. At most 2,000 images are searched: the first of
    every member, then the second, and so on. Members who are one person under two names count as two.

    Args:
        members: images of some members, with their names (`spherecf.gallery.Gallery.members`).
        calibration: of the model that made them.
        draws: of members, for the intervals; 0 for none, and then nothing is broken.
        seed: of the draws.

    Raises:
        InputError: fewer than 20 members, no names, no rule to check, or rules of another radius.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> mu = rng.normal(size=(60, 64))
        >>> mu /= np.linalg.norm(mu, axis=1, keepdims=True)
        >>> images = Embeddings(
        ...     mu,
        ...     np.full(60, 5.0),
        ...     list(map(str, range(60))),
        ...     labels=np.arange(60),
        ...     identities=list(map(str, range(60))),
        ... )
        >>> rule = DecisionRule("mls", 64.0, "kappa", -1e3, -1e3, 0.0, "fmr", 0.01, 0.05)
        >>> found = check_members(images, Calibration("m", "d", decisions=(rule,)), draws=100)
        >>> found.counts["non_mated"], found.rules[0].verdict
        (1770, 'broken')
    """
    if members.labels is None or not members.identities or np.min(members.labels, initial=0) < 0:
        raise InputError("check_members: the embeddings name no members")
    people = np.unique(members.labels).size
    if people < MIN_MEMBERS:
        raise InputError(f"check_members: expected at least {MIN_MEMBERS} members, got {people}")
    rules = [_rules(calibration, names) for names in GALLERY_SCORES]
    if not rules[0]:
        raise InputError("check_members: the calibration has no rule for the false match rate of two images")
    radii = {rule.radius for rule in (*rules[0], *rules[1])} - {None, members.radius}
    if radii:
        raise InputError(
            f"check_members: the rules are for radius {radii.pop():g}, the gallery has {members.radius:g}"
        )
    searched = _Searched.of(members)
    found: list[RuleCount] = []
    pairs: list[PeoplePairs] = []
    for several, own in enumerate(rules):
        some = searched.pairs(bool(several), own[0].score, calibration)
        pairs.append(some)
        if some.counts["non_mated"]:
            counter = RuleCounter(some, own, draws, seed)
            found += [count_rule(rule, counter) for rule in own]
    counts = {"members": people, "images": searched.probes.size}
    counts |= {name: sum(some.counts[name] for some in pairs) for name in ("mated", "non_mated")}
    names = list(members.identities)
    alike = sorted(
        (pair for some, own in zip(pairs, rules) for pair in _alike(some, own)), key=lambda pair: -pair[2]
    )
    shown = tuple((names[left], names[right], value) for left, right, value in alike[:_ALIKE])
    return MembersReport(counts, tuple(found), shown)


def _rules(calibration: Calibration, names: tuple[str, ...]) -> list[DecisionRule]:
    """Of the best score that has any."""
    each = ([r for r in calibration.decisions if (r.score, r.error) == (name, "fmr")] for name in names)
    return next((found for found in each if found), [])


def _alike(pairs: PeoplePairs, rules: list[DecisionRule]) -> Iterator[tuple[int, int, float]]:
    """Pairs of members whom the strictest rule that was counted calls a match, and the highest evidence."""
    counted = [rule for rule in rules if rule.extrapolated is None and rule.accept is not None]
    if not counted:
        return
    rule = min(counted, key=lambda rule: rule.alpha)
    values = pairs.values[rule.score]
    rows = np.flatnonzero(~pairs.mated & (values >= rule.accept) & (pairs.confidence >= rule.min_confidence))
    seen: set[tuple[int, int]] = set()
    for row in rows[np.argsort(-values[rows], kind="stable")].tolist():
        both = int(min(pairs.left[row], pairs.right[row])), int(max(pairs.left[row], pairs.right[row]))
        if both not in seen and len(seen) < _ALIKE:
            seen.add(both)
            yield *both, float(values[row])


@dataclass(frozen=True, eq=False)
class _Searched:
    """A gallery of t templates, and the rows of the n images that are searched in it."""

    members: Embeddings
    probes: NDArray[np.int64]
    """(p,) rows."""
    mu: torch.Tensor
    """(t, dim) of the templates."""
    kappa: torch.Tensor
    person: NDArray[np.int64]
    """(t,)."""
    size: NDArray[np.int64]
    """(t,) images of each."""
    rest: tuple[torch.Tensor, torch.Tensor]
    """(n, dim) directions and (n,) concentrations of the further images of each image's member."""

    @classmethod
    def of(cls, members: Embeddings) -> "_Searched":
        person = np.asarray(members.labels)
        mu, kappa = _tensors(members)
        owner = torch.from_numpy(person)
        pooled, rest = pool(mu, kappa, owner), without_each(mu, kappa, owner)
        size = np.unique(person, return_counts=True)[1]
        probes = np.sort(in_turns(person)[:_PROBES])
        return cls(members, probes, pooled.mu, pooled.kappa, pooled.groups.numpy(), size, rest)

    def pairs(self, several: bool, score: str, calibration: Calibration) -> PeoplePairs:
        """The comparisons with templates of one image, or of several."""
        blocks = [*self._others(several), self._own(several)]
        mls, cosines, theirs, ours, left, right = (np.concatenate(part) for part in zip(*blocks))
        values = calibration.evidence(score, mls, cosines, (theirs, ours)).astype(np.float32)
        confidence = np.minimum(theirs, ours).astype(np.float32)
        return PeoplePairs({score: values}, confidence, left, right, left == right)

    def _others(self, several: bool) -> Iterator[tuple[Array, ...]]:
        """(score, cosine, kappa of template and image, member of template and image) of other members."""
        mu, kappa = _tensors(self.members)
        labels = np.asarray(self.members.labels)
        chosen = np.flatnonzero((self.size > 1) == several)
        theirs, single = (
            self.person[chosen],
            self.size[np.searchsorted(self.person, labels)] == 1,
        )
        at = torch.from_numpy(chosen)
        for start in range(0, self.probes.size if chosen.size else 0, _ROWS):
            rows = self.probes[start : start + _ROWS]
            ours = labels[rows]
            # Two templates of one image each are one comparison, not two.
            twice = single[rows, None] & (theirs < ours[:, None]) & (not several)
            image, template = np.nonzero((theirs != ours[:, None]) & ~twice)
            own = mu[torch.from_numpy(rows)], kappa[torch.from_numpy(rows)]
            mls = mutual_likelihood_matrix(*own, self.mu[at], self.kappa[at], self.members.radius)
            cosines = cosine_matrix(own[0], self.mu[at])
            yield (
                mls.numpy()[image, template], cosines.numpy()[image, template],
                self.kappa[at].numpy()[template], own[1].numpy()[image], theirs[template], ours[image],
            )  # fmt: skip

    def _own(self, several: bool) -> tuple[Array, ...]:
        """The same of each image's own member, without the image."""
        labels = np.asarray(self.members.labels)
        size = self.size[np.searchsorted(self.person, labels)] - 1
        rows = self.probes[(size[self.probes] > 1) == several]
        at = torch.from_numpy(rows[size[rows] > 0])
        mu, kappa = (side[at] for side in _tensors(self.members))
        rest, length = (side[at] for side in self.rest)
        mls = mutual_likelihood_score(rest, length, mu, kappa, radius=self.members.radius)
        own = labels[at.numpy()]
        return mls.numpy(), cosine_score(rest, mu).numpy(), length.numpy(), kappa.numpy(), own, own


def _tensors(members: Embeddings) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, dim) directions and (n,) concentrations, in float64."""
    return torch.from_numpy(np.asarray(members.mu, np.float64)), torch.from_numpy(
        np.asarray(members.kappa, np.float64)
    )
