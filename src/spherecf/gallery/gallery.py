"""A gallery of templates: enrol, identify, remove."""

import json
import secrets
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from spherecf.calibration import Calibration
from spherecf.common.sealing import current_key, refuse_plain
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.gallery.identification import Candidate, Identification, decide, limits_for, weigh
from spherecf.gallery.index import Index
from spherecf.gallery.milvus import Server, is_server
from spherecf.gallery.rows import (
    Enrolled,
    Header,
    Images,
    Template,
    check_images,
    check_probe,
    checked_identity,
    no_images,
    pooled_template,
    review,
)
from spherecf.gallery.sealed import open_store
from spherecf.gallery.search import Finder
from spherecf.gallery.store import Store
from spherecf.scoring import mean_by, natural_parameter

_MIN_CANDIDATES = 16  # considered for a decision
_REVIEW_FMR = 1e-3  # false match rate of the warnings at enrolment
_BATCH = 10_000  # people per write of `Gallery.enrol_many`
_RULES = "calibration"  # fact of the store
_LEAST_KAPPA = 1e-20  # instead of 0, which has no logarithm


class ServerOptions(TypedDict, total=False):
    """How `Gallery.open` reaches a server."""

    token: str
    name: str
    timeout: float


class Gallery:
    """An open gallery; created by `Gallery.open`. It may be used by one thread at a time.

    It is one file, written by one process at a time and read by any number; or it is on a Milvus server.

    Example:
        >>> import tempfile
        >>> rng = np.random.default_rng(0)
        >>> people = rng.standard_normal((2, 64)).astype(np.float32)
        >>> people /= np.linalg.norm(people, axis=1, keepdims=True)
        >>> with Gallery.open(tempfile.mkdtemp() + "/people", model="f" * 64, dim=64, radius=1.0) as gallery:
        ...     _ = gallery.enrol("Ann", people[:1], [500.0], media=["a"], sources=["ann.jpg"])
        ...     _ = gallery.enrol("Bob", people[1:], [400.0], media=["b"], sources=["bob.jpg"])
        ...     result = gallery.identify(people[1], 450.0, threshold=0.0)
        >>> result.answer, result.identity, len(result.candidates)
        ('identified', 'Bob', 2)
    """

    def __init__(self, store: Store, header: Header, calibration: Calibration | None) -> None:
        self._store, self._header, self._calibration = store, header, calibration
        self._interrupted = False
        store.refresh()
        self._index = Index(store, header.dim)
        near = store.near if isinstance(store, Server) else None
        self._finder = Finder(self._index, store, header.radius, calibration, near)

    @classmethod
    def open(
        cls,
        uri: str | Path,
        *,
        model: str,
        backbone: str = "",
        dim: int,
        radius: float,
        calibration: Calibration | None = None,
        create: bool = True,
        **server: Unpack[ServerOptions],
    ) -> "Gallery":
        """Open a gallery, or create it; a new one is encrypted if a key is set (`SPHERECF_KEY_FILE`).

        Args:
            uri: file of the gallery, or http(s):// URI of a Milvus server.
            model: fingerprint of the model.
            backbone: sha256 of its recogniser.
            dim: dimension of its directions.
            radius: r of its scores.
            calibration: for thresholds, likelihood ratios and percentiles; one that the gallery keeps
                (`keep_rules`) is used instead.
            create: create the gallery if it does not exist.
            **server: ``token``, access token of a server; ``name`` of the gallery on a server with several
                (``"spherecf"``); ``timeout``, seconds to wait for an answer (10).

        Raises:
            ModelError: it belongs to another model.
            StorageError: the file cannot be read or made, or the server does not answer.
            FileFormatError: damaged, or not a gallery.
            InputError: it does not exist, and ``create`` is false; it is encrypted with another key than the
                one that is set; or a key is set, and it is not encrypted.
            MissingDependencyError: it is on a server or encrypted, and the extra ``milvus`` or ``encryption``
                is not installed.
        """
        where, key = str(uri), current_key()
        reached: ServerOptions = {"token": "", "name": "spherecf", "timeout": 10.0, **server}
        if unknown := reached.keys() - ServerOptions.__annotations__.keys():
            raise TypeError(f"Gallery.open() got an unexpected keyword argument {min(unknown)!r}")
        remote = is_server(where)
        if not create and not remote and not Path(where).exists():
            raise InputError(f"{where}: there is no gallery here; enrol a person first")
        if calibration is not None:
            calibration.require(model)
        store: Store
        if remote:
            refuse_plain(where, key)
            store = Server(where, dim, **reached)
        else:
            store = open_store(where, dim, key, reached["timeout"])
        try:
            facts = store.header()
            if facts is None:
                if not create:
                    raise InputError(f"{where}: there is no gallery here; enrol a person first")
                salt = secrets.token_hex(16) if remote else ""
                facts = Header.new(model, backbone, dim, radius, salt).to_dict()
                store.create(facts)
            header = Header.read(facts, where)
            header.check(where, model, backbone, dim, radius)
            return cls(store, header, _own_rules(store, model) or calibration)
        except BaseException:
            store.close()
            raise

    def __enter__(self) -> "Gallery":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, identity: str) -> bool:
        return self._store.find(checked_identity(identity)) is not None

    def close(self) -> None:
        """Close the gallery, so that others can write to it; may be called twice."""
        try:
            self._index.close()
        finally:
            self._store.close()

    def enrol(
        self,
        identity: str,
        mu: ArrayLike,
        kappa: ArrayLike,
        *,
        media: Sequence[str],
        sources: Sequence[str],
        add: bool = False,
        replace: bool = False,
        keep: Collection[str] | None = None,
    ) -> Enrolled:
        """Store a person's template, pooled from images; on return it is on the disk.

        Args:
            identity: name of the person.
            mu: (n, dim) unit directions of the images; n may be 0 with ``add``.
            kappa: (n,) their concentrations.
            media: (n,) medium of each image; frames of one video share one. Equal directions in one medium
                are the same image and count once.
            sources: (n,) origin of each image, e.g. a file name.
            add: add to the images of an enrolled person; images that are enrolled already are ignored.
            replace: replace the images of an enrolled person.
            keep: with ``add``, the media of enrolled images to keep; by default all.

        Raises:
            InputError: the name is enrolled, and neither ``add`` nor ``replace`` is given; no image would be
                left; or the name or the arrays are not valid.
            StorageError: it could not be written; the gallery is unchanged.
        """
        name = checked_identity(identity)
        self._store.claim()
        self._refresh()
        nothing = no_images(self._header.dim)
        empty = add and not len(media) and not len(sources)
        given = nothing if empty else check_images(mu, kappa, self._header.dim, media, sources)
        stored = self._store.find(name)
        if stored is not None and not (add or replace):
            raise InputError(f"{name} is already enrolled; use add to add photos, or replace to replace them")
        before = None if replace else stored
        known = nothing if before is None else self._store.images(before)
        kept = known.select([i for i, medium in enumerate(known.media) if keep is None or medium in keep])
        fresh = given.new(kept)
        if before is not None and not len(fresh) and len(kept) == len(known):
            return self._enrolled(before)
        images = kept + fresh
        if not len(images):
            raise InputError(f"{name}: no image would be left; remove this person instead")
        template = pooled_template(name, images, before, lambda *made: self._review(name, *made))
        with self._change():
            row = self._store.put(template, images)
            if stored is not None:
                self._index.drop(np.array([stored.row]))
            self._index.add(np.array([row]), template.mu[None], np.array([template.kappa]))
        return self._enrolled(template)

    def sources(self, identity: str) -> dict[str, str]:
        """Media of the images in a person's template, with the source of the first image of each.

        Empty if nobody of this name is enrolled.
        """
        self._refresh()
        stored = self._store.find(checked_identity(identity))
        if stored is None:
            return {}
        images, sources = self._store.images(stored), dict[str, str]()
        for medium, source in zip(images.media, images.sources):
            sources.setdefault(medium, source)
        return sources

    def enrol_many(
        self,
        identities: Sequence[str],
        mu: ArrayLike,
        kappa: ArrayLike,
        *,
        sources: Sequence[str] | None = None,
    ) -> int:
        """Enrol many people from one image each, without warnings; enrolled people are skipped.

        Args:
            identities: (n,) distinct names.
            mu: (n, dim) unit directions.
            kappa: (n,) concentrations.
            sources: (n,) origin of each image.

        Returns:
            Number of people enrolled. An interrupted call can be repeated to continue.

        Raises:
            InputError, StorageError: as in `enrol`.
        """
        names = [checked_identity(one) for one in identities]
        given = check_images(mu, kappa, self._header.dim, names, sources)
        if len(set(names)) < len(names):
            raise InputError(f"expected distinct names, {len(names) - len(set(names))} occur twice")
        self._store.claim()
        self._refresh()
        known = self._store.enrolled(names)
        fresh = [i for i, name in enumerate(names) if name not in known]
        for start in range(0, len(fresh), _BATCH):
            part = [pooled_template(names[i], given.select([i])) for i in fresh[start : start + _BATCH]]
            with self._change():
                rows = self._store.insert(part)
                mu = np.stack([one.mu for one in part])
                self._index.add(np.array(rows), mu, np.array([one.kappa for one in part]))
        return len(fresh)

    def identify(
        self,
        mu: ArrayLike,
        kappa: float,
        *,
        top: int = 5,
        max_fpir: float = 0.01,
        threshold: float | None = None,
        exact: bool = True,
    ) -> Identification:
        """Identify a probe as a person of the gallery, as unknown, or not at all (undecided).

        A stranger is compared with N people, so by the union bound a false match rate of ``max_fpir / N`` per
        comparison suffices. The thresholds are the calibrated ones for that rate: one for templates of one
        image, another for pooled ones.

        Args:
            mu: (dim,) unit direction of the probe.
            kappa: its concentration.
            top: number of candidates to return.
            max_fpir: bound on the share of strangers that are identified.
            threshold: of the mutual likelihood score, instead of the calibrated ones.
            exact: search exactly; otherwise by the index of a server, which may miss a person. A file is
                always searched exactly.

        Raises:
            InputError: shapes, NaN, or values out of range.
            StorageError: the server does not answer.
        """
        probe, probe_kappa = check_probe(mu, kappa, self._header.dim)
        if not (0 < max_fpir < 1 and top >= 1):
            raise InputError(f"expected 0 < max_fpir < 1 and top >= 1, got {max_fpir} and {top}")
        self._refresh()
        exact = exact or self._store.embedded
        count = len(self._index)
        fmr = max_fpir / max(count, 1)
        limits = limits_for(self._calibration, fmr, threshold, self._header.radius)
        hits = self._finder.find(probe, probe_kappa, max(top, _MIN_CANDIDATES), exact)
        candidates = self._finder.candidates(hits, limits)
        each = None if limits is None else self._finder.limits_of(hits, limits)
        candidates = weigh(candidates, each or (), self._calibration, probe_kappa) or candidates
        answer, identity, reason = decide(candidates, each, probe_kappa, max_fpir)
        if not exact and answer != "identified":
            reason += " (the search was approximate and may have missed a person)"
        first = None if not each else each[0]
        return Identification(
            answer, identity, reason, candidates[:top], max_fpir, count, fmr,
            fmr_used=None if first is None or np.isnan(first.fmr) else first.fmr,
            min_kappa=None if first is None or np.isinf(first.min_kappa) else first.min_kappa,
            exact=exact, scored=hits.scored, tested_on=None if first is None else first.tested_on,
        )  # fmt: skip

    def search(self, mu: ArrayLike, kappa: ArrayLike, *, top: int = 5) -> list[tuple[Candidate, ...]]:
        """The highest scores of many probes, exactly, faster than one by one.

        Args:
            mu: (n, dim) unit directions.
            kappa: (n,).
            top: candidates for each.

        Raises:
            InputError, StorageError: as in `identify`.
        """
        given = check_images(mu, kappa, self._header.dim)
        if top < 1:
            raise InputError(f"top: expected 1 or more, got {top}")
        self._refresh()
        return [self._finder.candidates(hits) for hits in self._finder.find_all(given.mu, given.kappa, top)]

    def remove(self, identity: str, *, erase: bool = True) -> int:
        """Remove a person: template, images and name.

        Args:
            identity: name of the person.
            erase: erase from the log, too; otherwise at the next `compact`, or when the gallery is closed.

        Returns:
            Number of templates removed: 0 if nobody of this name is enrolled.

        Raises:
            StorageError: it could not be written.
        """
        self._store.claim()
        self._refresh()
        stored = self._store.find(checked_identity(identity))
        if stored is None:
            return 0
        with self._change():
            self._store.remove(stored.identity)
            self._index.drop(np.array([stored.row]))
        if erase:
            self._store.erase()
        return 1

    def compact(self) -> None:
        """Check the file, and write it anew without anything that was removed or replaced.

        A server is only asked to compact.

        Raises:
            FileFormatError: the file is damaged.
            StorageError: it could not be written.
        """
        self._store.claim()
        self._refresh()
        self._store.compact()
        self._index.compact()

    def list(self) -> "list[Enrolled]":
        """All enrolled people, sorted by name."""
        self._refresh()
        people = (self._enrolled(one) for page in self._store.templates() for one in page)
        return sorted(people, key=lambda enrolled: enrolled.identity)

    def info(self) -> dict[str, Any]:
        """Facts about the gallery, JSON-able."""
        self._refresh()
        facts = self._header.to_dict()
        facts.pop("salt")
        identities, images = self._store.counts()
        return facts | {
            "uri": self._store.uri,
            "embedded": self._store.embedded,
            "encrypted_with": self._store.encrypted_with,
            "identities": identities,
            "images": images,
            "calibrated": self._calibration is not None,
        }

    @property
    def calibration(self) -> Calibration | None:
        """What it decides by: its own, or that of the model."""
        return self._calibration

    def rates_in_use(self, max_fpir: float = 0.01) -> dict[str, float]:
        """By score, the false match rate of the rule that `identify` decides by; empty if not calibrated.

        Args:
            max_fpir: as in `identify`.
        """
        fmr = max_fpir / max(len(self._index), 1)
        limits = limits_for(self._calibration, fmr, None, self._header.radius)
        return {limit.score: limit.fmr for limit in limits or ()}

    def keep_rules(self, calibration: Calibration | None) -> None:
        """Decide by this calibration from now on, whoever opens the gallery.

        Args:
            calibration: the rules; None forgets them, and whoever opens the gallery decides by the model's.

        Raises:
            ModelError: it is of another model.
            InputError: the gallery is on a server, which keeps none.
            StorageError: it could not be written.
        """
        if not self._store.embedded:
            raise InputError(f"{self._store.uri}: a server keeps no rules; give the model that has them")
        self._store.claim()
        facts = None if calibration is None else calibration.require(self._header.model).to_dict()
        self._store.set_fact(_RULES, "" if facts is None else json.dumps(facts, allow_nan=False))
        self._calibration = calibration
        self._finder = Finder(self._index, self._store, self._header.radius, calibration, None)

    def members(self, most: int = 1000, *, seed: int = 0) -> Embeddings:
        """The images of some members, drawn at random, with their names; the frames of a video are one image.

        Args:
            most: number of members.
            seed: of the draw.

        Raises:
            InputError: nobody is enrolled, or ``most`` is below 1.
            StorageError: the server does not answer.
        """
        self._refresh()
        rows = self._store.rows()
        if not len(rows) or most < 1:
            raise InputError(f"{self._store.uri}: expected members, 1 or more; it has {len(rows)}")
        drawn = np.random.default_rng(seed).choice(rows, min(most, len(rows)), replace=False)
        people = self._store.people(np.sort(drawn))
        parts = [
            (people.mu[at : at + 1], people.kappa[at : at + 1]) if several < 2 else self._media(name)
            for at, (name, several) in enumerate(zip(people.names, people.images))
        ]
        label = np.repeat(np.arange(len(parts)), [len(kappa) for _, kappa in parts])
        mu, kappa = (np.concatenate(columns) for columns in zip(*parts))
        return Embeddings(
            mu, np.log(np.maximum(kappa, _LEAST_KAPPA)), [str(i) for i in range(len(mu))], labels=label,
            identities=people.names, provenance={"model": self._header.model, "radius": self._header.radius},
        )  # fmt: skip

    def _media(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Directions and lengths of the mean kappa mu of each medium of a person."""
        template = self._store.find(name)
        images = no_images(self._header.dim) if template is None else self._store.images(template)
        each = torch.from_numpy(natural_parameter(images.mu, images.kappa))  # (n, dim)
        eta = mean_by(each, torch.from_numpy(images.medium), len(set(images.media))).double().numpy()
        length = np.linalg.norm(eta, axis=1)
        told = length > 0  # a medium that says nothing has no direction
        return (eta[told] / length[told, None]).astype(np.float32), length[told]

    def _refresh(self) -> None:
        """Take up what others have written."""
        if self._store.refresh() or self._interrupted:
            self._index.follow()
            self._interrupted = False

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Around the writing of a change to the store and the index, which may be interrupted in between."""
        self._interrupted = True
        yield
        self._interrupted = False

    def _review(self, name: str, images: Images, mu: NDArray[np.float32], kappa: float) -> tuple[str, ...]:
        limits = limits_for(self._calibration, _REVIEW_FMR, None, self._header.radius, evidence=False)
        alike = self._finder.candidates(self._finder.find(mu, kappa, 2))
        others = [candidate for candidate in alike if candidate.identity != name]
        return review(images, kappa, others, limits, self._header.radius)

    def _enrolled(self, template: Template) -> Enrolled:
        scale = None if self._calibration is None else self._calibration.kappa
        percentile = None if scale is None else float(scale.percentile([template.kappa])[0])
        facts = template.facts
        return Enrolled(
            template.id, template.identity, template.kappa, percentile, template.images, template.media,
            tuple(facts["warnings"]), tuple(facts["sources"]), facts["enrolled"], facts["changed"],
        )  # fmt: skip


def _own_rules(store: Store, model: str) -> Calibration | None:
    """The calibration that a gallery keeps."""
    known = store.fact(_RULES) if store.embedded else ""
    if not known:
        return None
    try:
        return Calibration.from_dict(json.loads(known), model=model)
    except (ValueError, AttributeError) as error:
        raise store.damaged(f"its rules ({error})") from error
